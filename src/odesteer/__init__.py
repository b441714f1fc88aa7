"""odesteer: steer language models by solving an ODE on their activations.

    da/dt = v(a), a(0) = a; the steered activation is a(T)
"""

from odesteer.activations import activations
from odesteer.attach import Handle
from odesteer.backends import TransformersBackend
from odesteer.backends.base import Sampling
from odesteer.contrast import Contrast
from odesteer.methods import (
    CAA,
    ITI,
    METHODS,
    FourierODESteer,
    Method,
    NoSteering,
    ODESteer,
    OneStepODESteer,
    PaperODESteer,
)
from odesteer.ode import SOLVERS, Angle, PathLength, Target, Time
from odesteer.steering import Calibration, Steering
from odesteer.tune import fit

__version__ = "0.1.0"

__all__ = [
    "CAA",
    "ITI",
    "METHODS",
    "SOLVERS",
    "Angle",
    "Calibration",
    "Contrast",
    "FourierODESteer",
    "Handle",
    "Method",
    "NoSteering",
    "ODESteer",
    "OneStepODESteer",
    "PaperODESteer",
    "PathLength",
    "Sampling",
    "Steering",
    "Target",
    "Time",
    "TransformersBackend",
    "activations",
    "fit",
]
