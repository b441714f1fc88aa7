"""Choosing layer and dose on held-out data, for a target under a damage budget."""

from odesteer.tuning.result import Trial, Tuned
from odesteer.tuning.search import tune

__all__ = ["Trial", "Tuned", "tune"]
