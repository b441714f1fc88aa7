"""Steering methods, one file a paper; `METHODS` is the table.

Another package adds a method, a `Method` class, under the entry-point group "odesteer.methods":

    [project.entry-points."odesteer.methods"]
    median = "my_package:MedianDifference"
"""

from odesteer.common.registry import resolve
from odesteer.methods.base import Method
from odesteer.methods.baselines import NoSteering, RandomDirection
from odesteer.methods.caa import CAA
from odesteer.methods.extra.cbf import SafetyFilter
from odesteer.methods.extra.gaussian import GaussianODESteer
from odesteer.methods.extra.kernel_density import MixtureODESteer
from odesteer.methods.extra.mlp import NetworkODESteer
from odesteer.methods.hpr import HPR
from odesteer.methods.iti import ITI, HeadITI
from odesteer.methods.linear_act import LinearAcT
from odesteer.methods.mimic import MiMiC
from odesteer.methods.odesteer.method import ODESteer
from odesteer.methods.odesteer.paper import FourierODESteer, OneStepODESteer, PaperODESteer
from odesteer.methods.re_control import REControl
from odesteer.methods.repe import RepE
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
        ODESteer,
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
    """A method's class by its name, ours or another package's.

    Raises:
        ValueError: for an unknown name; says which there are. Also for an entry point of another
            name than its method's.
    """
    found: type[Method] = resolve(METHODS, name, "method", GROUP, Method)
    if found.name != name:
        raise ValueError(
            f"The entry point '{name}' leads to {found.__name__}, whose name is '{found.name}': "
            f"its package should call both the same."
        )
    return found


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
    "find_method",
]
