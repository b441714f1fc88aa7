from .backends import Sampling, TransformersBackend
from .data import Contrast, behaviours
from .data.pairs import write_pairs
from .evaluation.assessment import Assessment, assess
from .evaluation.detector import Scores, score
from .evaluation.selection import Tuned, tune
from .extraction.extract import activations
from .extraction.extract_shards import extract_shards
from .extraction.sensitivities import Sensitivity, sensitivities
from .extraction.shards import Shards
from .fitting import KL, fit
from .methods import (
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
    NaturalGradient,
    NetworkODESteer,
    NoSteering,
    ODESteer,
    OneStepODESteer,
    PaperODESteer,
    RandomDirection,
    REControl,
    RepE,
    SafetyFilter,
    TrainedODESteer,
    TruthFlow,
)
from .models.hooks.handle import Handle
from .models.layers import use_layers
from .ode import SOLVERS, Angle, PathLength, PerRow, Target, Time
from .steering import Calibration, Steering, all_of, any_of, guarded, load

__version__: str

__all__ = [
    "CAA",
    "HPR",
    "ITI",
    "KL",
    "METHODS",
    "SOLVERS",
    "Angle",
    "Assessment",
    "Calibration",
    "Contrast",
    "FourierODESteer",
    "GaussianODESteer",
    "Handle",
    "HeadITI",
    "LinearAcT",
    "Method",
    "MiMiC",
    "MixtureODESteer",
    "NaturalGradient",
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
    "Sensitivity",
    "Shards",
    "Steering",
    "Target",
    "Time",
    "TrainedODESteer",
    "TransformersBackend",
    "TruthFlow",
    "Tuned",
    "activations",
    "all_of",
    "any_of",
    "assess",
    "behaviours",
    "extract_shards",
    "fit",
    "guarded",
    "load",
    "score",
    "sensitivities",
    "tune",
    "use_layers",
    "write_pairs",
]
