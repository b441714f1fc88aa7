"""Contrasts: the texts that a steering learns from."""

from odesteer.data.contrast import Contrast
from odesteer.data.parse_rows import Columns, Example

__all__ = ["Columns", "Contrast", "Example"]
