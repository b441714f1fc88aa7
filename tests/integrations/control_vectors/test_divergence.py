"""A vector's KL from the flow equals that of the next-token distributions."""

import json
from pathlib import Path

import pytest
import torch
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.integrations.control_vectors import (
    Divergence,
    Vectors,
    divergence,
    flattened,
    read_vectors,
)

TEXTS = ("the cat sat on the mat", "a dog ran", "the bird flew under the moon", "is")


@pytest.fixture
def contrast() -> ods.Contrast:
    return ods.Contrast.from_pairs(["the cat is good", "a dog is good"], TEXTS)


def by_hand(model, tokenizer, steering: ods.Steering, vectors: Vectors) -> Divergence:
    """One text at a time, all tokens at once: the last of the first half and what follows."""
    near, far = [], []
    for text in TEXTS[:3]:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        start = (ids.shape[1] + 1) // 2
        mask = torch.arange(ids.shape[1])[None] >= start - 1
        with torch.no_grad():
            p = q = None
            with steering.attach(model, positions=mask):
                p = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
            with vectors.steering().attach(model, positions=mask):
                q = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
            plain = model(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        near.append((p.exp() * (p - q)).sum(-1))
        far.append((p.exp() * (p - plain)).sum(-1))
    return Divergence(
        float(torch.cat(near).mean()), float(torch.cat(far).mean()), len(torch.cat(near))
    )


def test_it_is_what_one_text_at_a_time_gives(contrast: ods.Contrast) -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer(bos=False)
    steering = tiny.quadratic()
    rows = ods.activations(model, tokenizer, contrast, 1)[1]
    vectors, _ = flattened(steering, {1: rows}, force=True)
    seen = []
    found = divergence(
        model, tokenizer, steering, vectors, contrast.negative, progress=lambda *at: seen.append(at)
    )
    expected = by_hand(model, tokenizer, steering, vectors)
    assert found.tokens == expected.tokens
    assert found.vector == pytest.approx(expected.vector, rel=1e-3)
    assert found.unsteered == pytest.approx(expected.unsteered, rel=1e-3)
    assert 0.0 < found.vector != found.unsteered
    assert seen[-1] == (3, 3)  # a text of one token has no next one to compare


def test_a_constant_field_says_what_its_vector_says(contrast: ods.Contrast) -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer()
    steering = tiny.constant(strength=3.0)
    vectors, _ = flattened(steering)
    found = divergence(model, tokenizer, steering, vectors, contrast.negative)
    assert found.vector < 1e-6 and found.unsteered > 1e-3


def test_texts_without_a_next_token_are_refused(contrast: ods.Contrast) -> None:
    model, tokenizer = tiny.model("llama"), tiny.tokenizer(bos=False)
    steering = tiny.constant()
    with pytest.raises(ValueError, match="of 1 texts, none has two"):
        divergence(model, tokenizer, steering, flattened(steering)[0], contrast.negative[3:])


def test_the_command_says_it_and_keeps_it(
    contrast: ods.Contrast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from odesteer.cli.app import app

    loaded = tiny.model("llama"), tiny.tokenizer()
    monkeypatch.setattr("odesteer.models.loading.load_model", lambda *_, **__: loaded)
    folder = tiny.quadratic().save_pretrained(tmp_path / "one")
    rows = [{"positive": "the cat is good", "negative": text} for text in TEXTS]
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "one.safetensors"
    asked = ["export", str(folder), str(file), "--model", "tiny", "-c", str(data), "--force"]
    written = CliRunner().invoke(app, [*asked, "--json"])
    assert written.exit_code == 0, written.output
    kl = Divergence(**json.loads(written.stdout)["kl"])
    assert 0.0 < kl.vector and 0.0 < kl.unsteered
    assert read_vectors(file).notes["odesteer.kl"] == str(kl)
    shown = CliRunner().invoke(app, asked)
    assert f"Next token: {kl}" in " ".join(shown.output.split())
