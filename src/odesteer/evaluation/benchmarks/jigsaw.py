"""Jigsaw: toxic and benign comments, to fit detoxification on.

The paper's protocol takes 5,000 toxic and 5,000 benign comments of "Jigsaw Unintended Bias",
spread evenly over bins of the share of raters who said toxic. The Hub has them as
google/civil_comments. The local file is the test set of the older toxic-comment challenge and
has binary labels only, so there is nothing to spread over; the notes say so.

Source: Borkan et al., "Nuanced Metrics for Measuring Unintended Bias with Real Data for Text
Classification", WWW 2019 Companion, https://arxiv.org/abs/1903.04561
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from odesteer.data import Contrast, Example
from odesteer.evaluation.benchmarks.base import BINS, evenly
from odesteer.evaluation.benchmarks.files import csv_rows, digest, hub_rows, locate

HUB_NAME = "google/civil_comments"
TOXIC = 0.5  # from here on a comment counts as toxic
# Of 1.8 million comments, so many of each bin are enough to draw from, and fit in memory.
POOL_PER_BIN = 6_000


@dataclass(frozen=True)
class Jigsaw:
    """Comments with their toxicity from 0 to 1.

    Attributes:
        ids, texts, toxicity: one a comment, in file order.
        graded: whether toxicity is a share of raters; False: it is 0 or 1.
        files: SHA-256 of what was read.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    toxicity: tuple[float, ...]
    graded: bool
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, data: str | os.PathLike[str] | None = None, verify: bool = True) -> "Jigsaw":
        """Load jigsaw/comments.csv.gz: text and label, without a header."""
        path, files = locate("jigsaw/comments.csv.gz", data, verify)
        rows = list(csv_rows(path))
        ids = tuple(f"comment-{i}" for i in range(len(rows)))
        toxicity = tuple(float(label) for _, label in rows)
        return cls(ids, tuple(text for text, _ in rows), toxicity, False, files)

    @classmethod
    def from_hub(cls, name: str = HUB_NAME, *, revision: str | None = None) -> "Jigsaw":
        """Load the first comments of every bin of toxicity of the training split."""
        split = hub_rows(name, None, "train", ["text", "toxicity"], revision)
        scores = np.asarray(split["toxicity"], dtype=float)
        bins = np.minimum((scores * BINS).astype(int), BINS - 1)
        indices = np.sort(
            np.concatenate([np.where(bins == b)[0][:POOL_PER_BIN] for b in set(bins)])
        )
        rows = list(split.select(indices))
        return cls(
            tuple(f"comment-{i}" for i in indices),
            tuple(row["text"] for row in rows),
            tuple(float(row["toxicity"]) for row in rows),
            True,
            {f"{name}:train, {len(rows)} rows": digest(rows)},
        )

    @property
    def notes(self) -> tuple[str, ...]:
        if self.graded:
            return ()
        return (
            "Fitted on comments with binary labels: not spread over score bins, as the protocol "
            "has it.",
        )

    def draw(self, sizes: Sequence[int], seed: int) -> list[tuple[str, ...]]:
        """Draw disjoint sets of ids, each with `size` toxic and `size` benign ones.

        Where there are too few comments all sets shrink alike. Graded toxicity is spread evenly
        over its bins.
        """
        scores = np.array(self.toxicity)
        drawn: list[list[int]] = [[] for _ in sizes]
        for left in (np.where(scores >= TOXIC)[0], np.where(scores < TOXIC)[0]):
            share = min(1.0, len(left) / sum(sizes))
            for sample, size in zip(drawn, sizes, strict=True):
                chosen = left[evenly(scores[left], round(share * size), seed)]
                sample += chosen.tolist()
                left = np.setdiff1d(left, chosen)
        return [tuple(self.ids[i] for i in sorted(sample)) for sample in drawn]

    def contrast(self, ids: frozenset[str]) -> Contrast:
        """Return benign comments against toxic ones; each is its own group."""
        rows = zip(self.ids, self.texts, self.toxicity, strict=True)
        classes: dict[bool, list[Example]] = {False: [], True: []}
        for id_, text, toxicity in rows:
            if id_ in ids:
                classes[toxicity >= TOXIC].append(Example(None, text, id_))
        return Contrast(tuple(classes[False]), tuple(classes[True]))
