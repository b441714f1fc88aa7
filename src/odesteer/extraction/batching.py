"""Batches of texts of similar length, and groups of texts that share a token prefix.

Long texts run with long ones, so that a pass has little padding. Where the model can continue a
cached prefix, texts whose prefixes have one length run together, so that the keys and values of
prefixes have no padding at all: positions and masks are then those of whole texts.

Of k texts that share p tokens, (k - 1) p tokens need not be computed. All texts may share an
instruction and some of them a question after it; each text continues one prefix only, and the
choice made here saves the most tokens. Among sorted texts, those that share their first p tokens
are the nodes of a tree (an LCP-interval tree: Abouelhoda et al., "Replacing suffix trees with
enhanced suffix arrays", J. Discrete Algorithms 2004,
https://doi.org/10.1016/S1570-8667(03)00065-0). The best choice below a node is the node itself or
the best choices below its children.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from odesteer.models.batching import batches

# A shorter prefix is not worth a pass of its own, nor is one that saves a smaller share of the
# tokens: texts with prefixes of one length form batches of their own.
MIN_PREFIX = 8
MIN_SAVED_SHARE = 0.1


class Group(NamedTuple):
    """Group of texts with a shared prefix.

    Attributes:
        length: how many tokens they share.
        members: which texts.
    """

    length: int
    members: list[int]


@dataclass
class _Node:
    """Node of the prefix tree: sorted texts from `first` share `length` tokens."""

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
        worth = self.length >= MIN_PREFIX and saved >= MIN_SAVED_SHARE * total
        if worth and saved > self.saved:
            self.saved, self.chosen = saved, [(self.length, self.first, end)]


def shared_prefixes(
    rows: Sequence[Sequence[int]], ends: Sequence[int] | None = None
) -> list[Group]:
    """Find the groups of shared prefixes that save the most tokens.

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
    """Return the length of the common prefix of two texts."""
    shorter = min(len(a), len(b))
    return next((i for i in range(shorter) if a[i] != b[i]), shorter)


@dataclass(frozen=True)
class TextBatch:
    """Batch of texts that are computed and stored together.

    Attributes:
        runs: the texts of each forward pass.
        shared: each text's first tokens that are computed once for all texts that begin with them,
            in a pass before the runs; 0 where whole texts are run.
    """

    runs: tuple[tuple[int, ...], ...]
    shared: int = 0

    @property
    def rows(self) -> list[int]:
        """The texts in the order of the runs."""
        return [i for run in self.runs for i in run]


def whole_text_batches(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[TextBatch]:
    """Make batches of one run each, longest texts first: memory peaks early.

    Args:
        rows: the texts' token ids.
        batch_tokens: at most so many tokens a run, padding included, unless one text has more.
    """
    return [TextBatch((run,)) for run in _runs(range(len(rows)), rows, batch_tokens)]


def shared_prefix_batches(
    rows: Sequence[Sequence[int]], batch_tokens: int, ends: Sequence[int] | None = None
) -> list[TextBatch]:
    """Make batches that run shared prefixes once; see `shared_prefixes`.

    The tokens of a run include its prefixes. The prefixes of a batch, whose keys and values stay
    in memory during its runs, have at most half of `batch_tokens`.
    """
    groups = shared_prefixes(rows, ends)
    # With similar ones, long answers first.
    groups.sort(key=lambda group: (-group.length, -max(len(rows[i]) for i in group.members)))
    batches: list[TextBatch] = []
    alone = set(range(len(rows)))
    members: list[int] = []
    prefixes = 0
    for i, (length, texts) in enumerate(groups):
        members += texts
        prefixes += length
        alone.difference_update(texts)
        after = groups[i + 1].length if i + 1 < len(groups) else 0
        if after != length or prefixes + length > batch_tokens // 2:
            batches.append(TextBatch(tuple(_runs(members, rows, batch_tokens)), length))
            members, prefixes = [], 0
    runs = _runs(sorted(alone), rows, batch_tokens)
    return batches + [TextBatch((run,)) for run in runs]


def _runs(
    texts: Sequence[int], rows: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[tuple[int, ...]]:
    """Cut the texts, longest first, into runs of at most `batch_tokens` tokens."""
    lengths = [len(rows[i]) for i in texts]
    for run in batches(lengths, tokens=batch_tokens, longest_first=True):
        yield tuple(texts[i] for i in run)
