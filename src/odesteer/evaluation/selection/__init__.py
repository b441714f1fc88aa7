"""Selection of layer and dose on held-out data under a damage budget."""

from odesteer.evaluation.selection.result import Trial, Tuned
from odesteer.evaluation.selection.search import tune

__all__ = ["Trial", "Tuned", "tune"]
