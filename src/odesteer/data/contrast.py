"""Contrast: texts that show a wanted behaviour, and texts that show its opposite."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from odesteer.data.parse_rows import NUMBERS, Columns, Example, example, examples
from odesteer.data.read_files import rows as file_rows
from odesteer.models.chat_template import encode_parts

__all__ = ["Contrast", "Example"]


@dataclass(frozen=True)
class Contrast:
    """Positive and negative examples, and how a prompt and a response become one text.

    Attributes:
        positive: what to steer towards.
        negative: what to steer away from.
        template: see `odesteer.models.chat_template`.

    Raises:
        ValueError: if a class is empty.
    """

    positive: tuple[Example, ...]
    negative: tuple[Example, ...]
    template: str = "auto"

    def __post_init__(self) -> None:
        for name, members in (("positive", self.positive), ("negative", self.negative)):
            if not members:
                raise ValueError(
                    f"A contrast needs examples of both classes; the {name} class is empty."
                )

    @classmethod
    def from_pairs(
        cls,
        positive: Sequence[Any],
        negative: Sequence[Any],
        groups: Sequence[Any] | None = None,
        template: str = "auto",
    ) -> "Contrast":
        """Make a contrast from texts, chat messages or (prompt, response) rows.

        Row i of both classes belongs together. The classes may differ in length; then every row
        is a group of its own unless `groups` (one a row, positives first) says otherwise.

        Raises:
            ValueError: for a row of another form, or groups of another length.
        """
        n, m = len(positive), len(negative)
        if groups is None:
            groups = [*range(n), *range(m)] if n == m else list(range(n + m))
        if len(groups) != n + m:
            raise ValueError(
                f"A contrast needs one group a row, positives first: {n} + {m}; got {len(groups)}."
            )
        names = [str(group) for group in groups]
        return cls(
            tuple(example(r, g) for r, g in zip(positive, names[:n], strict=True)),
            tuple(example(r, g) for r, g in zip(negative, names[n:], strict=True)),
            template,
        )

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        template: str = "auto",
        columns: Columns | None = None,
    ) -> "Contrast":
        """Make a contrast from dictionaries, such as the rows of a dataset.

        Each row is either

        - a pair: `positive`, `negative`, and optionally `prompt`, or
        - one labelled text: `text` (or `prompt` and `response`) and `label` (1 or 0),

        and optionally has a `group` or `topic`; without one, rows with the same prompt belong
        together, and a row without a prompt belongs to itself. Graded labels are a labelled
        text's `reward`, or a pair's `positive_reward` and `negative_reward`.

        A positive or negative may also be chat messages that end with the assistant's: the
        whole conversation, or the assistant's turn alone where there is a prompt.

        Args:
            rows: the dictionaries.
            template: how prompt and response become one text.
            columns: what the rows call these keys, where they call them otherwise, such as
                {"prompt": "question", "positive": "chosen", "negative": "rejected"}.

        Raises:
            ValueError: naming the row that is of neither form.
        """
        located = ((f"Row {number}", row) for number, row in enumerate(rows, start=1))
        return cls(*examples(located, columns), template)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        template: str = "auto",
        columns: Columns | None = None,
    ) -> "Contrast":
        """Read a JSONL, JSON, CSV, TSV or Parquet file by its name; see `from_rows`.

        Raises:
            FileNotFoundError: if the file is not there.
            ImportError: for Parquet without pyarrow.
            ValueError: naming the line that cannot be read, or is of another form.
        """
        return cls._from_file(path, None, template, columns)

    @classmethod
    def from_jsonl(
        cls,
        path: str | os.PathLike[str],
        template: str = "auto",
        columns: Columns | None = None,
    ) -> "Contrast":
        """Read a file of any name with one JSON object a line; see `from_rows`.

        Raises:
            FileNotFoundError: if the file is not there.
            ValueError: naming the line that is not a JSON object of that form.
        """
        return cls._from_file(path, ".jsonl", template, columns)

    @classmethod
    def _from_file(
        cls,
        path: str | os.PathLike[str],
        suffix: str | None,
        template: str,
        columns: Columns | None,
    ) -> "Contrast":
        located = file_rows(path, suffix, [(columns or {}).get(key, key) for key in NUMBERS])
        return cls(*examples(located, columns), template)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the texts, groups, rewards, their order and the template."""
        classes = [[asdict(e) for e in members] for members in (self.positive, self.negative)]
        text = json.dumps([self.template, *classes], sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def groups(self) -> tuple[list[str], list[str]]:
        """Group of every positive and of every negative example."""
        return [e.group for e in self.positive], [e.group for e in self.negative]

    @property
    def rewards(self) -> tuple[list[float], list[float]] | None:
        """Graded label of every positive and negative example; None if one has none."""
        above = [e.reward for e in self.positive if e.reward is not None]
        below = [e.reward for e in self.negative if e.reward is not None]
        complete = len(above) == len(self.positive) and len(below) == len(self.negative)
        return (above, below) if complete else None

    def tokens(self, tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Return the token ids of every positive and of every negative example."""
        positive, negative = self.token_parts(tokenizer)
        return [a + b for a, b in positive], [a + b for a, b in negative]

    def token_parts(
        self, tokenizer: Any
    ) -> tuple[list[tuple[list[int], list[int]]], list[tuple[list[int], list[int]]]]:
        """Return the token ids of prompt and response of every example, by class."""

        def parts(members: tuple[Example, ...]) -> list[tuple[list[int], list[int]]]:
            return [encode_parts(tokenizer, e.prompt, e.response, self.template) for e in members]

        return parts(self.positive), parts(self.negative)

    @property
    def is_paired(self) -> bool:
        """Whether row i of both classes is of one group, for every row."""
        return self.groups[0] == self.groups[1]

    def paired(self) -> "Contrast":
        """Pair each group's i-th positive with its i-th negative; drop the rest.

        Raises:
            ValueError: if no group has examples of both classes.
        """
        positive: list[Example] = []
        negative: list[Example] = []
        for name in dict.fromkeys(self.groups[0]):
            ups = [e for e in self.positive if e.group == name]
            downs = [e for e in self.negative if e.group == name]
            count = min(len(ups), len(downs))
            positive += ups[:count]
            negative += downs[:count]
        if not positive:
            raise ValueError(
                "No positive and negative example share a group, so nothing can be paired: give "
                "both the same prompt or group, or use a method that needs no pairs."
            )
        return Contrast(tuple(positive), tuple(negative), self.template)

    def split(self, share: float = 0.5, seed: int = 0) -> tuple["Contrast", "Contrast"]:
        """Split into two contrasts by group; the first has `share` of the groups.

        Raises:
            ValueError: if there are too few groups for both to have some of each class.
        """
        names = sorted({*self.groups[0], *self.groups[1]})
        if len(names) < 2:
            raise ValueError(f"Only groups can be split, and this contrast has {len(names)}.")
        order = np.random.default_rng(seed).permutation(len(names))
        chosen = {names[i] for i in order[: round(share * len(names))]}
        return self.subset(chosen), self.subset(set(names) - chosen)

    def subset(self, groups: set[str]) -> "Contrast":
        """Return the examples of the given groups."""
        return Contrast(
            tuple(e for e in self.positive if e.group in groups),
            tuple(e for e in self.negative if e.group in groups),
            self.template,
        )
