"""Fits of a steering to a model, and doses by KL divergence."""

from odesteer.fitting.dose_search import KL
from odesteer.fitting.fit import ActivationSet, fit, fit_readings, read
from odesteer.fitting.layer_choice import (
    RANKING_METHOD,
    best_layer,
    middle_layers,
    rank_layers,
    spread_layers,
)

__all__ = [
    "KL",
    "RANKING_METHOD",
    "ActivationSet",
    "best_layer",
    "fit",
    "fit_readings",
    "middle_layers",
    "rank_layers",
    "read",
    "spread_layers",
]
