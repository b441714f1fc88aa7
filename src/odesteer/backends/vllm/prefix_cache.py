"""Prefix-cache keys that keep differently steered blocks apart.

Keys and values above a steered layer differ from a block on that holds a steered token; blocks that
end before it are those of the unsteered model. So what is asked for joins the hash of exactly the
blocks that end past its start: unsteered beginnings stay shared by all requests.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.runner_hooks import asks_of


def keys(request: Any, end: int, catalogue: SteeringRegistry) -> tuple[tuple[str, str], ...]:
    """What tells a request's block that ends before position `end` from an unsteered one."""
    return tuple(
        ("odesteer", catalogue.key(ask))
        for ask in asks_of(request.sampling_params)
        if end > ask.begins(request.num_prompt_tokens)
    )


def hashes(original: Callable[..., Any], catalogue: SteeringRegistry) -> Callable[..., Any]:
    """`generate_block_hash_extra_keys`, which tells steered blocks apart."""

    @wraps(original)
    def generate_block_hash_extra_keys(
        request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
    ) -> Any:
        extra, next_mm = original(request, start_token_idx, end_token_idx, start_mm_idx)
        ours = keys(request, end_token_idx, catalogue)
        return (((*(extra or ()), *ours) or None) if ours else extra), next_mm

    return generate_block_hash_extra_keys
