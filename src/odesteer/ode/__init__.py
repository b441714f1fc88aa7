"""Mathematics of steering: barriers, fields, solvers and doses; needs torch alone."""

from odesteer.ode.barriers.base import (
    AffineBarrier,
    AndBarrier,
    Barrier,
    LinearBarrier,
    MetricBarrier,
    ModuleBarrier,
    OrBarrier,
)
from odesteer.ode.barriers.density_ratio import GaussianBarrier, MixtureBarrier
from odesteer.ode.barriers.mlp import Dense, Network, NetworkBarrier
from odesteer.ode.barriers.quadratic import QuadraticBarrier
from odesteer.ode.barriers.random_features import FourierBarrier, SketchBarrier
from odesteer.ode.dose import (
    DOSES,
    Angle,
    Dose,
    DoseBatch,
    PathLength,
    PerRow,
    Target,
    Time,
    as_dose,
    columns_of,
)
from odesteer.ode.fields.base import (
    ConstantField,
    GivenField,
    GradientField,
    PlainGradientField,
    VectorField,
    ZeroField,
)
from odesteer.ode.fields.cbf import SafetyField
from odesteer.ode.fields.maps import FormBarrier, RotationField, TransportField
from odesteer.ode.fields.rectified_flow import Hourglass, RectifiedField
from odesteer.ode.solve import Result, Solution, solve, trajectory
from odesteer.ode.solvers import (
    SOLVERS,
    Adaptive,
    Certified,
    GreatCircle,
    RungeKutta,
    Solver,
    Tableau,
)
from odesteer.ode.whitening import Whitening

__all__ = [
    "DOSES",
    "SOLVERS",
    "Adaptive",
    "AffineBarrier",
    "AndBarrier",
    "Angle",
    "Barrier",
    "Certified",
    "ConstantField",
    "Dense",
    "Dose",
    "DoseBatch",
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
    "Result",
    "RotationField",
    "RungeKutta",
    "SafetyField",
    "SketchBarrier",
    "Solution",
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
