"""One file a paper; `METHODS` is the table that everything else reads."""

from odesteer.methods.base import Method
from odesteer.methods.caa import CAA
from odesteer.methods.iti import ITI
from odesteer.methods.none import NoSteering
from odesteer.methods.odesteer import ODESteer
from odesteer.methods.paper import FourierODESteer, OneStepODESteer, PaperODESteer

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        NoSteering,
        CAA,
        ITI,
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
    "Method",
    "NoSteering",
    "ODESteer",
    "OneStepODESteer",
    "PaperODESteer",
]
