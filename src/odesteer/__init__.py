"""odesteer: steer language models by solving an ODE on their activations.

da/dt = v(a), a(0) = a; the steered activation is a(T)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from odesteer.backends import Sampling, TransformersBackend
    from odesteer.data import Contrast
    from odesteer.evaluation.detector import Scores, score
    from odesteer.evaluation.selection import Tuned, tune
    from odesteer.extraction.extract import activations
    from odesteer.extraction.shards import Shards, extract_shards
    from odesteer.fitting import fit
    from odesteer.methods import (
        CAA,
        HPR,
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
        RandomDirection,
        REControl,
        RepE,
        SafetyFilter,
        TruthFlow,
    )
    from odesteer.models.hooks.handle import Handle
    from odesteer.models.layers import use_layers
    from odesteer.ode import SOLVERS, Angle, PathLength, PerRow, Target, Time
    from odesteer.steering.composition import all_of, any_of, guarded
    from odesteer.steering.layered import LayeredSteering, load
    from odesteer.steering.steering import Calibration, Steering

__version__ = "0.1.0"

# Imported at first use (PEP 562): torch and scikit-learn take seconds, and `odesteer --help`
# needs neither.
_HOMES = {
    "odesteer.extraction.extract": ("activations",),
    "odesteer.models.hooks.handle": ("Handle",),
    "odesteer.backends": ("Sampling", "TransformersBackend"),
    "odesteer.steering.composition": ("all_of", "any_of", "guarded"),
    "odesteer.data": ("Contrast",),
    "odesteer.steering.layered": ("LayeredSteering", "load"),
    "odesteer.models.layers": ("use_layers",),
    "odesteer.methods": (
        "CAA",
        "HPR",
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
        "REControl",
        "RandomDirection",
        "RepE",
        "SafetyFilter",
        "TruthFlow",
    ),
    "odesteer.evaluation.detector": ("Scores", "score"),
    "odesteer.ode": ("SOLVERS", "Angle", "PathLength", "PerRow", "Target", "Time"),
    "odesteer.steering.steering": ("Calibration", "Steering"),
    "odesteer.fitting": ("fit",),
    "odesteer.extraction.shards": ("Shards", "extract_shards"),
    "odesteer.evaluation.selection": ("Tuned", "tune"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "CAA",
    "HPR",
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
    "PerRow",
    "REControl",
    "RandomDirection",
    "RepE",
    "SafetyFilter",
    "Sampling",
    "Scores",
    "Shards",
    "Steering",
    "Target",
    "Time",
    "TransformersBackend",
    "TruthFlow",
    "Tuned",
    "activations",
    "all_of",
    "any_of",
    "extract_shards",
    "fit",
    "guarded",
    "load",
    "score",
    "tune",
    "use_layers",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'odesteer' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
