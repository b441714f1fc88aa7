"""odesteer: steer language models by solving an ODE on their activations.

da/dt = v(a), a(0) = a; the steered activation is a(T)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odesteer.attach import Handle
    from odesteer.backends import Sampling, TransformersBackend
    from odesteer.contrast import Contrast
    from odesteer.extraction import activations
    from odesteer.fitting import fit
    from odesteer.layered import LayeredSteering, load
    from odesteer.methods import (
        CAA,
        ITI,
        METHODS,
        FourierODESteer,
        GaussianODESteer,
        HeadITI,
        LinearAcT,
        Method,
        MiMiC,
        MixtureODESteer,
        NetworkODESteer,
        NoSteering,
        ODESteer,
        OneStepODESteer,
        PaperODESteer,
        RepE,
        SafetyFilter,
    )
    from odesteer.ode import SOLVERS, Angle, PathLength, Target, Time
    from odesteer.steering import Calibration, Steering

__version__ = "0.1.0"

# Imported at first use (PEP 562): torch and scikit-learn take seconds, and `odesteer --help`
# needs neither.
_HOMES = {
    "odesteer.extraction": ("activations",),
    "odesteer.attach": ("Handle",),
    "odesteer.backends": ("Sampling", "TransformersBackend"),
    "odesteer.contrast": ("Contrast",),
    "odesteer.layered": ("LayeredSteering", "load"),
    "odesteer.methods": (
        "CAA",
        "ITI",
        "METHODS",
        "FourierODESteer",
        "GaussianODESteer",
        "HeadITI",
        "LinearAcT",
        "Method",
        "MiMiC",
        "MixtureODESteer",
        "NetworkODESteer",
        "NoSteering",
        "ODESteer",
        "OneStepODESteer",
        "PaperODESteer",
        "RepE",
        "SafetyFilter",
    ),
    "odesteer.ode": ("SOLVERS", "Angle", "PathLength", "Target", "Time"),
    "odesteer.steering": ("Calibration", "Steering"),
    "odesteer.fitting": ("fit",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CAA",
    "ITI",
    "METHODS",
    "SOLVERS",
    "Angle",
    "Calibration",
    "Contrast",
    "FourierODESteer",
    "GaussianODESteer",
    "Handle",
    "HeadITI",
    "LayeredSteering",
    "LinearAcT",
    "Method",
    "MiMiC",
    "MixtureODESteer",
    "NetworkODESteer",
    "NoSteering",
    "ODESteer",
    "OneStepODESteer",
    "PaperODESteer",
    "PathLength",
    "RepE",
    "SafetyFilter",
    "Sampling",
    "Steering",
    "Target",
    "Time",
    "TransformersBackend",
    "activations",
    "fit",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'odesteer' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
