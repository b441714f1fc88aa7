"""Fits of a steering to a model, and doses by KL divergence."""

from odesteer.fitting.fit import (
    RANKING_METHOD,
    ActivationSet,
    best_layer,
    fit,
    fit_readings,
    middle_layers,
    rank_layers,
    read,
    spread_layers,
)
from odesteer.fitting.kl_budget import KL

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
