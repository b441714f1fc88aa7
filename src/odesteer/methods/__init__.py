"""Steering methods, one file per paper, and their table `METHODS`.

Another package adds a `Method` class under the entry-point group "odesteer.methods":

    [project.entry-points."odesteer.methods"]
    median = "my_package:MedianDifference"
"""

from odesteer.common.registry import resolve
from odesteer.methods.base import Method
from odesteer.methods.baselines import NoSteering, RandomDirection
from odesteer.methods.caa import CAA
from odesteer.methods.cbf import SafetyFilter
from odesteer.methods.gaussian import GaussianODESteer
from odesteer.methods.hpr import HPR
from odesteer.methods.iti import ITI, HeadITI
from odesteer.methods.kernel_density import MixtureODESteer
from odesteer.methods.linear_act import LinearAcT
from odesteer.methods.mimic import MiMiC
from odesteer.methods.mlp import NetworkODESteer
from odesteer.methods.natural_gradient import NaturalGradient
from odesteer.methods.odesteer.method import ODESteer
from odesteer.methods.odesteer.paper import FourierODESteer, OneStepODESteer, PaperODESteer
from odesteer.methods.re_control import REControl
from odesteer.methods.repe import RepE
from odesteer.methods.trained import TrainedODESteer
from odesteer.methods.truthflow import TruthFlow

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        NoSteering,
        RandomDirection,
        CAA,
        RepE,
        ITI,
        HeadITI,
        MiMiC,
        LinearAcT,
        HPR,
        REControl,
        TruthFlow,
        NaturalGradient,
        ODESteer,
        TrainedODESteer,
        PaperODESteer,
        OneStepODESteer,
        FourierODESteer,
        GaussianODESteer,
        MixtureODESteer,
        NetworkODESteer,
        SafetyFilter,
    )
}

GROUP = "odesteer.methods"


def find_method(name: str) -> type[Method]:
    """Return a method's class by name, from here or from another package.

    Raises:
        ValueError: for an unknown name, listing the known ones, or an entry point whose name is
            not its method's.
    """
    method: type[Method] = resolve(METHODS, name, "method", GROUP, Method)
    if method.name != name:
        raise ValueError(
            f"The entry point '{name}' leads to {method.__name__}, whose name is '{method.name}': "
            f"its package should call both the same."
        )
    return method


__all__ = [
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
    "NaturalGradient",
    "NetworkODESteer",
    "NoSteering",
    "ODESteer",
    "OneStepODESteer",
    "PaperODESteer",
    "REControl",
    "RandomDirection",
    "RepE",
    "SafetyFilter",
    "TrainedODESteer",
    "TruthFlow",
    "find_method",
]
