"""Batches of texts of similar length.

Long ones with long ones, so that a pass has little padding; and, where the model can go on from
the beginning of a text, those whose beginnings have one length, so that the keys and values of
beginnings have no padding at all: positions and masks are then those of whole texts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from odesteer.extraction.prefix_groups import shared_beginnings


@dataclass(frozen=True)
class TextBatch:
    """Texts that are computed together, and kept on disk together.

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


def whole_texts(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[TextBatch]:
    """Batches of one run each, the longest texts first, so that memory peaks early.

    Args:
        rows: the texts' token ids.
        batch_tokens: at most so many tokens a run, padding included, unless one text has more.
    """
    return [TextBatch((run,)) for run in _runs(range(len(rows)), rows, batch_tokens)]


def from_shared_beginnings(
    rows: Sequence[Sequence[int]], batch_tokens: int, ends: Sequence[int] | None = None
) -> list[TextBatch]:
    """Batches in which what several texts begin with is run once; see `shared_beginnings`.

    A run's tokens count with those that they go on from, and the beginnings of a batch, whose
    keys and values stay in memory during its runs, have at most half of `batch_tokens`.
    """
    groups = shared_beginnings(rows, ends)
    # With similar ones, long answers first.
    groups.sort(key=lambda group: (-group.length, -max(len(rows[i]) for i in group.members)))
    batches: list[TextBatch] = []
    alone = set(range(len(rows)))
    members: list[int] = []
    beginnings = 0
    for place, (length, some) in enumerate(groups):
        members += some
        beginnings += length
        alone.difference_update(some)
        after = groups[place + 1].length if place + 1 < len(groups) else 0
        if after != length or beginnings + length > batch_tokens // 2:
            batches.append(TextBatch(tuple(_runs(members, rows, batch_tokens)), length))
            members, beginnings = [], 0
    runs = _runs(sorted(alone), rows, batch_tokens)
    return batches + [TextBatch((run,)) for run in runs]


def _runs(
    texts: Sequence[int], rows: Sequence[Sequence[int]], batch_tokens: int
) -> Iterator[tuple[int, ...]]:
    """The texts longest first, cut where a run would have too many tokens."""
    run: list[int] = []
    width = 0
    for i in sorted(texts, key=lambda i: -len(rows[i])):
        if run and width * (len(run) + 1) > batch_tokens:
            yield tuple(run)
            run = []
        width = width if run else len(rows[i])
        run.append(i)
    if run:
        yield tuple(run)
