"""Other libraries' control vectors, read and written."""

from odesteer.interop.divergence import Divergence, divergence
from odesteer.interop.fidelity import Fidelity, flattened
from odesteer.interop.files import FORMATS, read_vectors, write_vectors
from odesteer.interop.objects import vectors_of
from odesteer.interop.vectors import Vectors

__all__ = [
    "FORMATS",
    "Divergence",
    "Fidelity",
    "Vectors",
    "divergence",
    "flattened",
    "read_vectors",
    "vectors_of",
    "write_vectors",
]
