"""Statistics of a steering: one forward pass, and running totals."""

import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.models.hooks.steers import Steers


class StepStats(NamedTuple):
    """What a steering did in one forward pass; one entry a token that it acted on, on the CPU.

    Attributes:
        layer: the block.
        tokens: how many tokens the block has seen in this pass, padding included.
        rows: [n], which row of the batch each token is of.
        displacement: [n], ||a(T) - a||; 0 where the token was left alone.
        relative_displacement: [n], displacement over ||a||.
        log_odds_before: [n], the calibrated barrier at a; None where the method has no barrier.
        log_odds_after: [n], at a(T).
    """

    layer: int | None
    tokens: int
    rows: Tensor
    displacement: Tensor
    relative_displacement: Tensor
    log_odds_before: Tensor | None
    log_odds_after: Tensor | None


Callback = Callable[[StepStats], None]


def measure(
    steering: Steers, tokens: int, rows: Tensor, before: Tensor, after: Tensor
) -> StepStats:
    """What happened to tokens `before` [n, d] that are `after` [n, d] now."""
    displacement = (after.float() - before.float()).norm(dim=-1)
    norm = before.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    odds = None
    if steering.field.barrier is not None:
        odds = (steering.log_odds(before).cpu(), steering.log_odds(after).cpu())
    return StepStats(
        steering.layer,
        tokens,
        rows.cpu(),
        displacement.cpu(),
        (displacement / norm).cpu(),
        *(odds or (None, None)),
    )


class RunningStats:
    """Sums over all passes. Threads may add to it at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = 0
        self._steered = 0
        self._sums: dict[str, float] = {}

    def count(self, seen: int, steered: int) -> None:
        """Tokens that the block has seen, and those that the steering acted on."""
        with self._lock:
            self._seen += seen
            self._steered += steered

    def add(self, one: StepStats) -> None:
        """What was measured of a pass."""
        sums = {
            "moved": float((one.displacement > 0).sum()),
            "displacement": float(one.displacement.double().sum()),
            "relative_displacement": float(one.relative_displacement.double().sum()),
        }
        if one.log_odds_before is not None and one.log_odds_after is not None:
            sums["log_odds_before"] = float(one.log_odds_before.double().sum())
            sums["log_odds_after"] = float(one.log_odds_after.double().sum())
        with self._lock:
            for name, value in sums.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def totals(self) -> tuple[int, int, dict[str, float]]:
        """Tokens seen, tokens steered, and sums over the steered ones, of one moment."""
        with self._lock:
            return self._seen, self._steered, dict(self._sums)
