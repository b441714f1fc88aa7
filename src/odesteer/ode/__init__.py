"""The mathematics of steering: barriers, fields, solvers and doses. Imports torch alone."""

from odesteer.ode.algebra import AndBarrier, OrBarrier
from odesteer.ode.barrier import AffineBarrier, Barrier, LinearBarrier, ModuleBarrier
from odesteer.ode.dose import DOSES, Angle, Dose, PathLength, Target, Time, as_dose
from odesteer.ode.field import (
    ConstantField,
    GivenField,
    GradientField,
    PlainGradientField,
    VectorField,
    ZeroField,
)
from odesteer.ode.flow import solve, trajectory
from odesteer.ode.fourier import FourierBarrier
from odesteer.ode.gaussian import GaussianBarrier
from odesteer.ode.metric import MetricBarrier
from odesteer.ode.mixture import MixtureBarrier
from odesteer.ode.network import Dense, Network, NetworkBarrier
from odesteer.ode.per_row import Columns, PerRow, columns_of
from odesteer.ode.quadratic import QuadraticBarrier
from odesteer.ode.rectified import Hourglass, RectifiedField
from odesteer.ode.rotation import RotationField
from odesteer.ode.safety import SafetyField
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
    "Columns",
    "ConstantField",
    "Dense",
    "Dose",
    "FormBarrier",
    "FourierBarrier",
    "GaussianBarrier",
    "GivenField",
    "GradientField",
    "GreatCircle",
    "Hourglass",
    "LinearBarrier",
    "MetricBarrier",
    "MixtureBarrier",
    "ModuleBarrier",
    "Network",
    "NetworkBarrier",
    "OrBarrier",
    "PathLength",
    "PerRow",
    "PlainGradientField",
    "QuadraticBarrier",
    "RectifiedField",
    "RotationField",
    "RungeKutta",
    "SafetyField",
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
    "columns_of",
    "solve",
    "trajectory",
]
