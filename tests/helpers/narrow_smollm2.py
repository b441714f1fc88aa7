"""A far narrower model behind the name `smollm2`, for tests of what is done with one."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from odesteer.models.loading import local_copy

WIDTH = 64


@cache
def language_model() -> tuple[Any, Any]:
    """20 random blocks on a part of SmolLM2's embeddings, which tell words of two kinds apart."""
    folder = Path(local_copy())
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=20,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    with safe_open(folder / "model.safetensors", framework="pt") as file, torch.no_grad():
        embeddings = file.get_slice("model.embed_tokens.weight")[:, :WIDTH]
        model.get_input_embeddings().weight.copy_(embeddings)
        model.model.norm.weight.mul_(10.0)  # as sensitive to a dose as a trained model
    return model, tokenizer


def replace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it be what is loaded by that name."""

    def load(name: str, *_: Any, **__: Any) -> tuple[Any, Any]:
        assert name == "smollm2"
        return language_model()

    monkeypatch.setattr("odesteer.models.loading.load_model", load)
