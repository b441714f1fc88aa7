"""Statistics of a steering: one forward pass, running totals, Prometheus text.

The text is exposition format 0.0.4, with the names that `odesteer serve` uses where it counts the
same, https://prometheus.io/docs/instrumenting/exposition_formats
"""

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from odesteer.models.steers import Steers
from odesteer.ode import Dose, Result


class StepStats(NamedTuple):
    """Measurements of one forward pass: one entry a steered token, on the CPU.

    Attributes:
        layer: the block.
        tokens: how many tokens the block has seen in this pass, padding included.
        rows: [n], which row of the batch each token is of.
        displacement: [n], ||a(T) - a||; 0 where the token was left alone.
        relative_displacement: [n], displacement over ||a||.
        log_odds_before: [n], the calibrated barrier at a; None where the method has no barrier.
        log_odds_after: [n], at a(T).
        result: [n] uint8, how each token ended, an `odesteer.ode.Result`.
    """

    layer: int | None
    tokens: int
    rows: Tensor
    displacement: Tensor
    relative_displacement: Tensor
    log_odds_before: Tensor | None
    log_odds_after: Tensor | None
    result: Tensor


Callback = Callable[[StepStats], None]


def measure(
    steering: Steers,
    tokens: int,
    rows: Tensor,
    before: Tensor,
    after: Tensor,
    velocity: Tensor | None = None,
    dose: Dose | None = None,
) -> StepStats:
    """Measure what `steering(before, velocity, dose)` [..., d] did.

    How the tokens ended takes a second solution, with a report.
    """
    result = steering.solution(before, velocity, dose).result.flatten()
    before, after = before.reshape(-1, before.shape[-1]), after.reshape(-1, after.shape[-1])
    displacement = (after.float() - before.float()).norm(dim=-1)
    norm = before.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    has_barrier = steering.field.barrier is not None
    return StepStats(
        steering.layer,
        tokens,
        rows.cpu(),
        displacement.cpu(),
        (displacement / norm).cpu(),
        steering.log_odds(before).cpu() if has_barrier else None,
        steering.log_odds(after).cpu() if has_barrier else None,
        result.cpu(),
    )


class RunningStats:
    """Thread-safe sums over all passes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen = 0
        self._steered = 0
        self._sums: dict[str, float] = {}

    def count(self, seen: int, steered: int) -> None:
        """Count the tokens that the block has seen and those that were steered."""
        with self._lock:
            self._seen += seen
            self._steered += steered

    def add(self, stats: StepStats) -> None:
        """Add the measurements of a pass."""
        sums = {
            "moved": float((stats.displacement > 0).sum()),
            "displacement": float(stats.displacement.double().sum()),
            "relative_displacement": float(stats.relative_displacement.double().sum()),
        }
        if stats.log_odds_before is not None and stats.log_odds_after is not None:
            sums["log_odds_before"] = float(stats.log_odds_before.double().sum())
            sums["log_odds_after"] = float(stats.log_odds_after.double().sum())
        ended = torch.bincount(stats.result.long(), minlength=len(Result)).tolist()
        sums |= {each.name.lower(): float(ended[each]) for each in Result}
        with self._lock:
            for name, value in sums.items():
                self._sums[name] = self._sums.get(name, 0.0) + value

    def totals(self) -> tuple[int, int, dict[str, float]]:
        """Return tokens seen, tokens steered and sums over the steered ones."""
        with self._lock:
            return self._seen, self._steered, dict(self._sums)


class Counts(NamedTuple):
    """Totals of a steering at one layer; `sums` as in `RunningStats`."""

    steering: str
    layer: int | None
    seen: int
    steered: int
    sums: dict[str, float]


# name, type, help, and which number of the counts; a summary is a sum beside its count, for
# log-odds may be negative, which counters may not.
_FAMILIES = (
    ("tokens", "counter", "Tokens that the steered block has seen, padding included.", ""),
    ("steered_tokens", "counter", "Tokens that a steering acted on.", ""),
    ("moved_tokens", "counter", "Of those, tokens that it moved.", "moved"),
    ("displacement", "counter", "How far it moved them in all, in activation space.",
     "displacement"),
    ("relative_displacement", "counter", "The same, each over its activation's norm.",
     "relative_displacement"),
    ("log_odds_before", "summary", "Calibrated barrier of the tokens it acted on, before.",
     "log_odds_before"),
    ("log_odds_after", "summary", "Calibrated barrier of the tokens it acted on, after.",
     "log_odds_after"),
    ("ended_tokens", "counter", "Tokens that it acted on, by how they ended.", ""),
)  # fmt: skip


def exposition(counts: Sequence[Counts]) -> str:
    """Render every measured metric of every steering and layer.

    Two entries of one steering and layer, such as two models in a process, are added up: a
    metric may have a set of labels once.
    """
    merged = _merged(counts)
    lines: list[str] = []
    for name, kind, words, key in _FAMILIES:
        samples: list[str] = []
        for total in merged:
            labels = f'{{steering="{_escaped(total.steering)}",layer="{total.layer}"}}'
            if name == "tokens":
                samples.append(f"odesteer_tokens_total{labels} {total.seen}")
            elif name == "steered_tokens":
                samples.append(f"odesteer_steered_tokens_total{labels} {total.steered}")
            elif name == "ended_tokens":
                for result in (each.name.lower() for each in Result):
                    if result in total.sums:
                        labelled = f'{labels[:-1]},result="{result}"}}'
                        samples.append(f"odesteer_{name}_total{labelled} {total.sums[result]!r}")
            elif key in total.sums and kind == "counter":
                samples.append(f"odesteer_{name}_total{labels} {total.sums[key]!r}")
            elif key in total.sums:
                samples.append(f"odesteer_{name}_sum{labels} {total.sums[key]!r}")
                samples.append(f"odesteer_{name}_count{labels} {total.steered}")
        if samples:
            full = f"odesteer_{name}" + ("_total" if kind == "counter" else "")
            lines += [f"# HELP {full} {words}", f"# TYPE {full} {kind}", *samples]
    return "\n".join(lines) + "\n" if lines else ""


def _merged(counts: Sequence[Counts]) -> list[Counts]:
    merged: dict[tuple[str, int | None], Counts] = {}
    for each in counts:
        key = (each.steering, each.layer)
        if key not in merged:
            merged[key] = each
            continue
        other = merged[key]
        sums = {
            name: other.sums.get(name, 0.0) + each.sums.get(name, 0.0)
            for name in dict.fromkeys([*other.sums, *each.sums])
        }
        merged[key] = Counts(*key, other.seen + each.seen, other.steered + each.steered, sums)
    return list(merged.values())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
