"""Prometheus text format of steering counters.

Text of its exposition format 0.0.4, with the names that `odesteer serve` uses where it counts the
same, https://prometheus.io/docs/instrumenting/exposition_formats
"""

from collections.abc import Sequence
from typing import NamedTuple


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
)  # fmt: skip


def exposition(counts: Sequence[Counts]) -> str:
    """Every metric that was measured, of every steering and layer.

    Two entries of one steering and layer, such as two models in a process, are added up: a
    metric may have a set of labels once.
    """
    merged = _merged(counts)
    lines: list[str] = []
    for name, kind, words, key in _FAMILIES:
        samples: list[str] = []
        for one in merged:
            labels = f'{{steering="{_escaped(one.steering)}",layer="{one.layer}"}}'
            if name == "tokens":
                samples.append(f"odesteer_tokens_total{labels} {one.seen}")
            elif name == "steered_tokens":
                samples.append(f"odesteer_steered_tokens_total{labels} {one.steered}")
            elif key in one.sums and kind == "counter":
                samples.append(f"odesteer_{name}_total{labels} {one.sums[key]!r}")
            elif key in one.sums:
                samples.append(f"odesteer_{name}_sum{labels} {one.sums[key]!r}")
                samples.append(f"odesteer_{name}_count{labels} {one.steered}")
        if samples:
            full = f"odesteer_{name}" + ("_total" if kind == "counter" else "")
            lines += [f"# HELP {full} {words}", f"# TYPE {full} {kind}", *samples]
    return "\n".join(lines) + "\n" if lines else ""


def _merged(counts: Sequence[Counts]) -> list[Counts]:
    found: dict[tuple[str, int | None], Counts] = {}
    for one in counts:
        key = (one.steering, one.layer)
        if key not in found:
            found[key] = one
            continue
        other = found[key]
        sums = {
            name: other.sums.get(name, 0.0) + one.sums.get(name, 0.0)
            for name in dict.fromkeys([*other.sums, *one.sums])
        }
        found[key] = Counts(*key, other.seen + one.seen, other.steered + one.steered, sums)
    return list(found.values())


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
