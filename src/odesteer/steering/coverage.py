"""Levels of a barrier above which a stated share of rows is wanted.

Conformal: the level is chosen on held-out rows, with a correction for their number, and what it
promises needs no model of the rows (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random
World", 2005; Angelopoulos and Bates, https://arxiv.org/abs/2107.07511).
"""

import math
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

# Candidate levels: more would make files longer, and hardly lower a level.
MOST = 100


class Levels(NamedTuple):
    """Levels h, and the share of wanted rows that each promises at and above it.

    Attributes:
        h: ascending.
        share: ascending, at even priors.
        wanted, unwanted: how many held-out rows they were chosen on.
    """

    h: tuple[float, ...] = ()
    share: tuple[float, ...] = ()
    wanted: int = 0
    unwanted: int = 0

    def at(self, coverage: float) -> float:
        """Return the lowest level that promises `coverage`.

        Raises:
            ValueError: if no level does; says how many rows would be needed, or the highest share.
        """
        for h, share in zip(self.h, self.share, strict=True):
            if share >= coverage - 1e-9:
                return h
        needed = math.ceil(round(coverage / (1.0 - coverage), 6))
        if min(self.wanted, self.unwanted) < needed:
            raise ValueError(
                f"Coverage {coverage:g} takes at least {needed} held-out rows of each class; this "
                f"fit held out {self.wanted} wanted and {self.unwanted} unwanted ones."
            )
        raise ValueError(
            f"No level of this barrier has coverage {coverage:g} on its held-out rows; the highest "
            f"is {max(self.share, default=0.0):.3g}. More rows or another layer may help."
        )


class Coverage(NamedTuple):
    """Levels towards the positive class, and of -h towards the negative one."""

    toward: Levels = Levels()
    away: Levels = Levels()

    def reversed(self) -> "Coverage":
        """Return the levels of the steering away."""
        return Coverage(self.away, self.toward)

    @classmethod
    def of(cls, values: np.ndarray, labels: np.ndarray) -> "Coverage":
        """Choose the levels on held-out values of h [n] and labels [n], 1 or 0."""
        positive, negative = values[labels == 1], values[labels != 1]
        return cls(_levels(positive, negative), _levels(-negative, -positive))

    def to_json(self) -> list[dict[str, Any]]:
        """Convert to JSON values, towards first."""
        return [{**each._asdict(), "h": [*each.h], "share": [*each.share]} for each in self]

    @classmethod
    def from_json(cls, tree: Any) -> "Coverage":
        """Rebuild what `to_json` made.

        Raises:
            ValueError: if it is none.
        """
        if not isinstance(tree, list) or len(tree) != 2:
            raise ValueError(f"its coverage is levels towards and away; got {tree!r:.80}")
        return cls(*map(_checked, tree))


def _levels(wanted: np.ndarray, unwanted: np.ndarray) -> Levels:
    """Choose levels among wanted values by the counts of both classes above them.

    A level w has the share 1 / (1 + r), r = [(1 + #{unwanted >= w}) / (1 + #unwanted)] /
    [#{wanted >= w} / (1 + #wanted)]; see `docs/theory.md`, Proposition 9.
    """
    n, m = len(wanted), len(unwanted)
    if not n or not m:
        return Levels((), (), n, m)
    ordered = np.sort(wanted)
    # Ranks that depend on n alone: the candidates must not be chosen by the unwanted rows.
    candidates = np.unique(ordered[np.linspace(0, n - 1, min(n, MOST)).round().astype(int)])
    reached = n - np.searchsorted(ordered, candidates, side="left")
    passed = m - np.searchsorted(np.sort(unwanted), candidates, side="left")
    share = 1.0 / (1.0 + (1 + passed) / (1 + m) * (1 + n) / reached)
    # A level is of use if no lower one promises as much.
    best = np.maximum.accumulate(share)
    first = np.concatenate([[True], best[1:] > best[:-1]])
    return Levels(tuple(candidates[first].tolist()), tuple(share[first].tolist()), n, m)


def _checked(tree: Any) -> Levels:
    if not isinstance(tree, dict) or set(tree) != set(Levels._fields):
        raise ValueError(f"levels are {', '.join(Levels._fields)}; got {tree!r:.80}")
    columns = [tree["h"], tree["share"]]
    for column in columns:
        if not isinstance(column, list) or len(column) > MOST:
            raise ValueError(f"levels are lists of at most {MOST} numbers; got {column!r:.80}")
        if any(type(x) not in (int, float) or not math.isfinite(x) for x in column):
            raise ValueError(f"levels are finite numbers; got {column!r:.80}")
        if any(high <= low for low, high in pairwise(column)):
            raise ValueError("levels ascend")
    counts = [tree["wanted"], tree["unwanted"]]
    if len(columns[0]) != len(columns[1]) or any(type(n) is not int or n < 0 for n in counts):
        raise ValueError(f"levels have a share each, and two counts; got {tree!r:.80}")
    return Levels(tuple(columns[0]), tuple(columns[1]), *counts)
