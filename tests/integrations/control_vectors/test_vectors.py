"""Do control vectors come through every file as they were, and does a field say what it loses?"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.helpers.models import two_gaussians

import odesteer as ods
from odesteer.integrations.control_vectors import (
    FORMATS,
    Vectors,
    flattened,
    read_vectors,
    write_vectors,
)
from odesteer.ode import ConstantField, Target

D = 12


@pytest.fixture
def vectors() -> Vectors:
    generator = torch.Generator().manual_seed(0)
    directions = {layer: torch.randn(D, generator=generator) for layer in (5, 1, 3)}
    return Vectors(directions, "llama", {"odesteer.method": "caa"})


@pytest.mark.parametrize("suffix", [".gguf", ".svec", ".safetensors"])
def test_vectors_come_back_as_they_were(suffix: str, vectors: Vectors, tmp_path: Path) -> None:
    path = write_vectors(vectors, tmp_path / f"v{suffix}")
    found = read_vectors(path)
    assert list(found.directions) == [1, 3, 5] and found.model_type == "llama"
    for layer, direction in vectors.directions.items():
        assert torch.equal(found.directions[layer], direction)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]  # nothing half-written


def test_gguf_files_are_what_llama_cpp_demands(vectors: Vectors, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    reader = gguf.GGUFReader(write_vectors(vectors, tmp_path / "v.gguf"))
    assert reader.fields["general.architecture"].contents() == "controlvector"
    assert reader.fields["controlvector.model_hint"].contents() == "llama"
    assert reader.fields["controlvector.layer_count"].contents() == 3
    assert {one.name: (one.tensor_type.name, list(one.shape)) for one in reader.tensors} == {
        f"direction.{layer}": ("F32", [D]) for layer in (1, 3, 5)
    }


@pytest.mark.parametrize("kind", ["controlvector", "steeringvector", "steervector"])
def test_files_of_others_are_read_with_and_without_what_they_leave_out(
    kind: str, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", kind)
    writer.add_int32(f"{kind}.layer_count", 2)  # llama.cpp's generator: signed, no hint
    for layer in (1, 2):
        writer.add_tensor(f"direction.{layer}", np.full(D, layer, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_vectors(tmp_path / "v.gguf")
    assert found.model_type is None and list(found.directions) == [1, 2]
    earlier = read_vectors(tmp_path / "v.gguf", as_extracted=True)
    assert torch.equal(earlier.directions[0], found.directions[1])


@pytest.mark.parametrize(("shape", "dtype"), [((D,), np.float16), ((1, D), np.float32)])
def test_half_precision_and_a_single_row_are_read(
    shape: tuple[int, ...], dtype: type, tmp_path: Path
) -> None:
    gguf = pytest.importorskip("gguf")
    numbers = np.arange(D, dtype=dtype).reshape(shape)
    writer = gguf.GGUFWriter(tmp_path / "v.gguf", "controlvector")
    writer.add_tensor("direction.1", numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_vectors(tmp_path / "v.gguf").directions[1]
    assert torch.equal(found, torch.arange(D, dtype=torch.float32))


def test_only_llama_cpps_generator_is_off_by_one(vectors: Vectors, tmp_path: Path) -> None:
    plain = write_vectors(vectors, tmp_path / "v.safetensors")
    with pytest.raises(ValueError, match="Only GGUF files"):
        read_vectors(plain, as_extracted=True)
    first = write_vectors(Vectors({1: torch.ones(D)}), tmp_path / "v.gguf")
    assert list(read_vectors(first, as_extracted=True).directions) == [0]


def test_a_gguf_file_that_is_no_control_vector_is_refused(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    for kind, name, word in (
        ("llama", "direction.1", "holds a llama"),
        ("controlvector", "token_embd", "'token_embd'"),
        ("controlvector", "direction.-1", "'direction.-1'"),
    ):
        writer = gguf.GGUFWriter(tmp_path / "v.gguf", kind)
        writer.add_tensor(name, np.zeros(D, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ValueError, match=word):
            read_vectors(tmp_path / "v.gguf")
    (tmp_path / "v.gguf").write_bytes(b"GGUF" + bytes(20))
    with pytest.raises(ValueError, match=r"is no \.gguf file of control vectors: it is of"):
        read_vectors(tmp_path / "v.gguf")


def test_block_0_has_no_place_in_gguf(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no direction for block 0"):
        write_vectors(Vectors({0: torch.ones(D)}), tmp_path / "v.gguf")
    assert list(tmp_path.iterdir()) == []


def test_lm_evals_file_is_written_and_a_pickle_is_never_read(
    vectors: Vectors, tmp_path: Path
) -> None:
    path = write_vectors(vectors, tmp_path / "v.pt")
    hooks = torch.load(path, weights_only=True)
    assert list(hooks) == ["layers.1", "layers.3", "layers.5"]
    assert torch.equal(hooks["layers.3"]["steering_vector"][0], vectors.directions[3])
    assert hooks["layers.3"]["action"] == "add"
    with pytest.raises(ValueError, match="pickle"):
        read_vectors(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"directions": {}}',
        '{"directions": {"x": [1]}}',
        '{"directions": {"1": ["a"]}}',
        '{"directions": {"1": [NaN]}}',
        '{"directions": {"1": [1], "2": [1, 2]}}',
        '{"directions": {"-1": [1]}}',
        '{"directions": {"1": [[1, 2], [3, 4]]}}',
    ],
)
def test_damaged_svec_files_are_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "v.svec").write_text(text)
    with pytest.raises(ValueError, match=r"v\.svec.* is no \.svec file") as caught:
        read_vectors(tmp_path / "v.svec")
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_of_file_names_those_there_are(vectors: Vectors, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Available: \.gguf"):
        write_vectors(vectors, tmp_path / "v.bin")
    with pytest.raises(ValueError, match="kind of control vector"):
        read_vectors(tmp_path / "v.bin")
    with pytest.raises(FileNotFoundError):
        read_vectors(tmp_path / "v.gguf")
    assert list(FORMATS) == [".gguf", ".svec", ".safetensors", ".pt"]


def test_vectors_are_a_steering_that_adds_them(vectors: Vectors) -> None:
    steering = vectors.steering(0.5)
    a = torch.randn(4, D)
    for part in steering.parts:
        torch.testing.assert_close(part(a), a + 0.5 * vectors.directions[part.layer])
    one = Vectors({2: torch.ones(D)}).steering(-1.0)
    torch.testing.assert_close(one(a), a - 1.0)


def test_a_constant_field_is_its_vector_exactly() -> None:
    direction = torch.linspace(-1, 1, D)
    steering = ods.Steering(ConstantField(direction), strength=-1.5, layer=3)
    vectors, fidelity = flattened(steering)
    assert torch.equal(vectors.directions[3], -1.5 * direction)
    assert fidelity[3].cosine == 1.0
    assert vectors.notes["odesteer.dose"] == "strength -1.5"


def test_a_field_is_flattened_to_its_mean_displacement_and_says_how_well() -> None:
    positive, negative = two_gaussians(200, 200, D)
    flow = ods.ODESteer().fit(positive[:100], negative[:100], layer=2, strength=1.0)
    held_out = negative[100:]
    vectors, fidelity = flattened(flow, {2: held_out})
    step = flow(held_out) - held_out
    torch.testing.assert_close(vectors.directions[2], step.mean(dim=0))
    cosines = torch.nn.functional.cosine_similarity(step, step.mean(dim=0), dim=-1)
    assert fidelity[2].cosine == pytest.approx(float(cosines.mean()), rel=1e-5)
    assert 0.9 < fidelity[2].cosine < 1.0 and 0.5 < fidelity[2].explained < 1.0
    assert "cosine" in vectors.notes["odesteer.fidelity"]


def test_stopping_is_lost_and_the_share_that_moves_says_so() -> None:
    positive, negative = two_gaussians(200, 200, D)
    flow = ods.ODESteer().fit(positive[:100], negative[:100], layer=2)
    rows = torch.cat([positive[100:], negative[100:]])
    aimed = flow.with_strength(Target(0.5, 5.0))
    _, fidelity = flattened(aimed, {2: rows}, force=True)
    assert fidelity[2].moved == pytest.approx(
        float((flow.probability(rows) < 0.5).float().mean()), abs=0.02
    )
    assert fidelity[2].explained < 0.7


def test_a_field_that_no_vector_stands_for_is_refused_unless_forced() -> None:
    """Half of the rows go one way, and half the other."""
    positive, negative = two_gaussians(200, 200, D)
    flow = ods.ODESteer().fit(positive[:100], negative[:100], layer=2, strength=1.0)
    a = negative[100:]
    both = ods.Steering(Turned(torch.linspace(-1, 1, D)), layer=2)
    with pytest.raises(ValueError, match="does not stand for this steering at layer 2: cosine"):
        flattened(both, {2: a})
    vectors, _ = flattened(both, {2: a}, force=True)
    assert 2 in vectors.directions
    with pytest.raises(ValueError, match="give held-out ones"):
        flattened(flow)
    with pytest.raises(ValueError, match="moves none"):
        flattened(flow.with_strength(Target(0.01, 1.0)), {2: positive})


class Turned(ConstantField):
    """Along `direction` or against it, by the sign of the first coordinate."""

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        away = a[..., :1] - a[..., :1].median() < 0.3
        return torch.where(away, self.direction, -self.direction)

    def closed_form(self, a: torch.Tensor, time: float) -> None:
        return None


def test_heads_and_layers_from_the_end_have_no_place() -> None:
    for changes in ({"site": "heads", "layer": 1}, {"layer": -1}, {"layer": None}):
        with pytest.raises(ValueError, match="counted from 0"):
            flattened(ods.Steering(ConstantField(torch.ones(D)), **changes))


def test_the_command_writes_and_reads(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from odesteer.cli.app import app

    one = ods.Steering(ConstantField(torch.linspace(-1, 1, D)), strength=2.0, layer=3)
    folder = one.save_pretrained(tmp_path / "one")
    file = tmp_path / "one.gguf"
    written = CliRunner().invoke(app, ["export", str(folder), str(file), "--json"])
    assert written.exit_code == 0, written.output
    assert json.loads(written.stdout)["fidelity"]["3"]["cosine"] == 1.0
    read = CliRunner().invoke(app, ["import", str(file), "--out", str(tmp_path / "back")])
    assert read.exit_code == 0
    assert "1 vectors of width 12 at layer 3" in " ".join(read.output.split())
    a = torch.randn(3, D)
    torch.testing.assert_close(ods.load(tmp_path / "back")(a), one(a))
    earlier = [*("import", str(file), "--out", str(tmp_path / "earlier")), "--as-extracted"]
    assert CliRunner().invoke(app, earlier).exit_code == 0
    assert ods.load(tmp_path / "earlier").layer == 2
    wrong = CliRunner().invoke(app, ["export", str(folder), str(tmp_path / "x.bin")])
    assert wrong.exit_code == 2 and not (tmp_path / "x.bin").exists()
