"""One file a paper; `METHODS` is the table that everything else reads."""

from odesteer.methods.base import Method
from odesteer.methods.caa import CAA
from odesteer.methods.gaussian import GaussianODESteer
from odesteer.methods.hpr import HPR
from odesteer.methods.iti import ITI
from odesteer.methods.iti_heads import HeadITI
from odesteer.methods.linear_act import LinearAcT
from odesteer.methods.mimic import MiMiC
from odesteer.methods.mixture import MixtureODESteer
from odesteer.methods.network import NetworkODESteer
from odesteer.methods.none import NoSteering
from odesteer.methods.odesteer import ODESteer
from odesteer.methods.paper import FourierODESteer, OneStepODESteer, PaperODESteer
from odesteer.methods.random import RandomDirection
from odesteer.methods.re_control import REControl
from odesteer.methods.repe import RepE
from odesteer.methods.safety import SafetyFilter
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
]
