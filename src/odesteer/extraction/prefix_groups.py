"""Groups of texts that share a token prefix.

Of k texts that begin with the same p tokens, (k - 1) p tokens need not be computed. All texts may
share an instruction and some of them a question after it; each text goes on from one beginning
only, and the choice made here saves the most tokens. Sorted, texts that begin alike lie side by
side, and those that share their first p tokens are the nodes of a tree (an LCP-interval tree:
Abouelhoda et al., "Replacing suffix trees with enhanced suffix arrays", J. Discrete Algorithms
2004, https://doi.org/10.1016/S1570-8667(03)00065-0). The best choice below a node is the node
itself or the best choices below its children.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

# A shorter beginning is not worth a pass of its own, nor is one that saves a small part of the
# tokens: texts that go on from beginnings of one length are batched together, by themselves.
LEAST_TOKENS = 8
LEAST_PART = 0.1


class Group(NamedTuple):
    """Texts that begin alike.

    Attributes:
        length: how many tokens they share.
        members: which texts.
    """

    length: int
    members: list[int]


@dataclass
class _Node:
    """Texts `first` to `end` of the sorted ones share `length` tokens."""

    length: int
    first: int
    saved: int = 0
    chosen: list[tuple[int, int, int]] = field(default_factory=list)  # length, first, end

    def take(self, child: "_Node") -> None:
        self.saved += child.saved
        self.chosen += child.chosen

    def close(self, end: int, sizes: Sequence[int]) -> None:
        """Choose between the node itself and what was chosen below it."""
        saved = (end - self.first - 1) * self.length
        total = sizes[end] - sizes[self.first]
        worth = self.length >= LEAST_TOKENS and saved >= LEAST_PART * total
        if worth and saved > self.saved:
            self.saved, self.chosen = saved, [(self.length, self.first, end)]


def shared_beginnings(
    rows: Sequence[Sequence[int]], ends: Sequence[int] | None = None
) -> list[Group]:
    """The groups of texts that save the most; texts in none of them have nothing to share.

    Args:
        rows: the texts' token ids.
        ends: how many of its tokens each text may share at most; None: all but its last.
    """
    bounds = [len(row) - 1 for row in rows] if ends is None else ends
    parts = [list(row[:end]) for row, end in zip(rows, bounds, strict=True)]
    order = sorted(range(len(rows)), key=lambda i: parts[i])
    sizes = [0]  # tokens of all texts before one
    for i in order:
        sizes.append(sizes[-1] + len(rows[i]))
    open_nodes = [_Node(0, 0)]  # each inside of the one before it
    common = [_common(parts[a], parts[b]) for a, b in pairwise(order)]
    for end, length in enumerate([*common, 0], start=1):
        first, child = end - 1, None
        while open_nodes[-1].length > length:
            child = open_nodes.pop()
            child.close(end, sizes)
            first = child.first
            if open_nodes[-1].length >= length:
                open_nodes[-1].take(child)
                child = None
        if open_nodes[-1].length < length:
            open_nodes.append(_Node(length, first))
            if child is not None:
                open_nodes[-1].take(child)
    return [Group(length, sorted(order[first:end])) for length, first, end in open_nodes[0].chosen]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)
