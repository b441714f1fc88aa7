"""llama.cpp's own reader of `--control-vector` finds what we wrote."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.integrations.control_vectors.llama_library import Library

from odesteer.integrations.control_vectors import Vectors, write_vectors

gguf = pytest.importorskip("gguf")

D = 8


def test_it_reads_every_direction_where_we_put_it(library: Library, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    written = {layer: torch.randn(D, generator=generator) for layer in (7, 1, 4)}
    notes = {"odesteer.method": "caa", "odesteer.fidelity": "cosine 0.95"}
    path = write_vectors(Vectors(written, "llama", notes), tmp_path / "ä file.gguf")
    width, data = library.read(path)
    rows = data.reshape(-1, D)
    assert width == D and len(rows) == 7
    for block in range(1, 8):
        expected = written.get(block, torch.zeros(D))
        assert torch.equal(rows[block - 1], expected)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("direction.0", np.ones(D, np.float32)),
        ("direction.2", np.ones(D, np.float16)),
        ("direction.2", np.ones((2, D), np.float32)),
        ("direction.2", np.ones(D + 1, np.float32)),
        ("provenance", np.ones(D, np.float32)),
    ],
)
def test_one_other_tensor_and_it_refuses_the_file(
    name: str, numbers: np.ndarray, library: Library, tmp_path: Path
) -> None:
    """Why notes are keys, and why block 0 is refused here."""
    path = tmp_path / "v.gguf"
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_tensor("direction.1", np.ones(D, np.float32))
    writer.add_tensor(name, numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert library.read(path)[0] == -1
