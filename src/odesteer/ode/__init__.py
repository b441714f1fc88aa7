"""The mathematics of steering: barriers, fields, solvers and doses. Imports torch alone."""

from odesteer.ode.algebra import AndBarrier, OrBarrier
from odesteer.ode.barrier import AffineBarrier, Barrier, LinearBarrier, ModuleBarrier
from odesteer.ode.dose import DOSES, Angle, Dose, PathLength, Target, Time, as_dose
from odesteer.ode.field import ConstantField, GivenField, GradientField, VectorField, ZeroField
from odesteer.ode.flow import solve, trajectory
from odesteer.ode.fourier import FourierBarrier
from odesteer.ode.network import Dense, Network, NetworkBarrier
from odesteer.ode.quadratic import QuadraticBarrier
from odesteer.ode.sketch import SketchBarrier
from odesteer.ode.solver import SOLVERS, Adaptive, GreatCircle, RungeKutta, Solver
from odesteer.ode.tableau import Tableau
from odesteer.ode.transport import FormBarrier, TransportField
from odesteer.ode.whitening import Whitening

__all__ = [
    "DOSES",
    "SOLVERS",
    "Adaptive",
    "AffineBarrier",
    "AndBarrier",
    "Angle",
    "Barrier",
    "ConstantField",
    "Dense",
    "Dose",
    "FormBarrier",
    "FourierBarrier",
    "GivenField",
    "GradientField",
    "GreatCircle",
    "LinearBarrier",
    "ModuleBarrier",
    "Network",
    "NetworkBarrier",
    "OrBarrier",
    "PathLength",
    "QuadraticBarrier",
    "RungeKutta",
    "SketchBarrier",
    "Solver",
    "Tableau",
    "Target",
    "Time",
    "TransportField",
    "VectorField",
    "Whitening",
    "ZeroField",
    "as_dose",
    "solve",
    "trajectory",
]
