"""Contrasts: the texts that a steering learns from."""

from odesteer.data import behaviours
from odesteer.data.contrast import Columns, Contrast, Example

__all__ = ["Columns", "Contrast", "Example", "behaviours"]
