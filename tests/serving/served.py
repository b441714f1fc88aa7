"""Helpers of the tests of a served model."""

import os
from contextlib import ExitStack
from functools import cache
from typing import Any

import torch

from odesteer.backends.vllm.request import parse
from odesteer.models.loading import load_model

# Before vLLM is imported, and for the processes that it starts.
os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
)
ENGINE = {
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 512,
    "block_size": 32,
    "generation_config": "vllm",
}
COMPOSED = {"both": "flow & ~aimed | flow"}


@cache
def language_model() -> tuple[Any, Any]:
    return load_model("smollm2")


def tokens(text: str) -> list[int]:
    found: list[int] = language_model()[1](text)["input_ids"]
    return found


def steered(model: Any, named: dict[str, Any], extra: Any, prompt: int, length: int) -> ExitStack:
    """The model, steered at the positions that a request asks for."""
    stack = ExitStack()
    asks = () if not extra else parse(extra["odesteer"])
    order = list(named)
    for ask in sorted(asks, key=lambda ask: order.index(ask.name)):
        one = named[ask.name]
        if ask.dose is not None or ask.probability is not None:
            one = one.with_strength(ask.dose_at(one.dose))
        positions = torch.zeros(length, dtype=torch.bool)
        for first, stop in ask.spans(prompt, one.positions):
            positions[first:stop] = True
        stack.enter_context(one.attach(model, positions=positions))
    return stack


def greedy(model: Any, named: dict[str, Any], prompt: list[int], extra: Any, new: int) -> list[int]:
    """What transformers writes after a prompt's tokens under what a request asks."""
    with steered(model, named, extra, len(prompt), len(prompt) + new):
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
    found: list[int] = output[0, len(prompt) :].tolist()
    return found
