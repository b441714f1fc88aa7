"""One file a paper; `METHODS` is the table that everything else reads."""

from odesteer.methods.base import Method
from odesteer.methods.caa import CAA
from odesteer.methods.iti import ITI
from odesteer.methods.linear_act import LinearAcT
from odesteer.methods.mimic import MiMiC
from odesteer.methods.none import NoSteering
from odesteer.methods.odesteer import ODESteer
from odesteer.methods.paper import FourierODESteer, OneStepODESteer, PaperODESteer
from odesteer.methods.repe import RepE

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        NoSteering,
        CAA,
        RepE,
        ITI,
        MiMiC,
        LinearAcT,
        ODESteer,
        PaperODESteer,
        OneStepODESteer,
        FourierODESteer,
    )
}

__all__ = [
    "CAA",
    "ITI",
    "METHODS",
    "FourierODESteer",
    "LinearAcT",
    "Method",
    "MiMiC",
    "NoSteering",
    "ODESteer",
    "OneStepODESteer",
    "PaperODESteer",
    "RepE",
]
