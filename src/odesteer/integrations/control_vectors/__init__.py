"""Control vectors of other libraries: reading, writing and flattening to them."""

from odesteer.integrations.control_vectors.files import FORMATS, read_vectors, write_vectors
from odesteer.integrations.control_vectors.flatten import (
    Divergence,
    Fidelity,
    divergence,
    flattened,
)
from odesteer.integrations.control_vectors.vectors import Vectors, vectors_of

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
