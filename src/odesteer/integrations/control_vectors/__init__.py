"""Control vectors of other libraries: reading, writing and flattening to them."""

from odesteer.integrations.control_vectors.baking import (
    Logits,
    bake,
    bake_gguf,
    check_new,
    save_baked,
)
from odesteer.integrations.control_vectors.files import FORMATS, read_vectors, write_vectors
from odesteer.integrations.control_vectors.vectors import (
    Divergence,
    Fidelity,
    Vectors,
    divergence,
    flattened,
    is_constant,
    vectors_of,
)

__all__ = [
    "FORMATS",
    "Divergence",
    "Fidelity",
    "Logits",
    "Vectors",
    "bake",
    "bake_gguf",
    "check_new",
    "divergence",
    "flattened",
    "is_constant",
    "read_vectors",
    "save_baked",
    "vectors_of",
    "write_vectors",
]
