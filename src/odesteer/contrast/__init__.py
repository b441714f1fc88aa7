"""The texts that a steering learns from."""

from odesteer.contrast.contrast import Contrast
from odesteer.contrast.rows import Columns, Example

__all__ = ["Columns", "Contrast", "Example"]
