"""What do we learn from?

A contrast: texts that show the wanted behaviour and texts that show its opposite.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from odesteer.templates import Messages, encode


@dataclass(frozen=True)
class Example:
    """One text of a contrast.

    Attributes:
        prompt: what was asked (text or chat messages), or None for a bare text.
        response: what was answered, or the bare text.
        group: examples of one group are never split between fitting and testing.
        reward: a graded label, for methods that read one.
    """

    prompt: str | Messages | None
    response: str
    group: str
    reward: float | None = None


@dataclass(frozen=True)
class Contrast:
    """Positive and negative examples, and how a prompt and a response become one text.

    Attributes:
        positive: what to steer towards.
        negative: what to steer away from.
        template: see `odesteer.templates`.

    Raises:
        ValueError: if a class is empty.
    """

    positive: tuple[Example, ...]
    negative: tuple[Example, ...]
    template: str = "auto"

    def __post_init__(self) -> None:
        for name, examples in (("positive", self.positive), ("negative", self.negative)):
            if not examples:
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
        """From texts, chat messages, or (prompt, response) rows; row i of both belong together.

        The two may differ in length; then every row is a group of its own unless `groups`
        (one a row, positives first) says otherwise.

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
            tuple(_example(r, g) for r, g in zip(positive, names[:n], strict=True)),
            tuple(_example(r, g) for r, g in zip(negative, names[n:], strict=True)),
            template,
        )

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping[str, Any]], template: str = "auto") -> "Contrast":
        """From dictionaries, such as the rows of a Hugging Face dataset, each either

        - a pair: `positive`, `negative`, and optionally `prompt`, or
        - one labelled text: `text` (or `prompt` and `response`) and `label` (1 or 0),

        and optionally `group` or `topic`; without one, rows with the same prompt belong
        together, and a row without a prompt belongs to itself. Graded labels are a labelled
        text's `reward`, or a pair's `positive_reward` and `negative_reward`.

        Raises:
            ValueError: naming the row that is of neither form.
        """
        return cls._from_places(
            ((f"Row {number}", row) for number, row in enumerate(rows, start=1)), template
        )

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str], template: str = "auto") -> "Contrast":
        """From a file with one JSON object a line; see `from_rows` for their keys.

        Raises:
            FileNotFoundError: if the file is not there.
            ValueError: naming the line that is not a JSON object of that form.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"No contrast file at '{file}'. It is a JSONL file with 'positive' and 'negative' "
                f"(and 'prompt') on each line."
            )
        return cls._from_places(_json_lines(file), template)

    @classmethod
    def _from_places(
        cls, rows: Iterable[tuple[str, Mapping[str, Any]]], template: str
    ) -> "Contrast":
        """From rows that know where they come from, for errors that say so."""
        positive: list[Example] = []
        negative: list[Example] = []
        for place, row in rows:
            prompt = row.get("prompt")
            group = row.get("group", row.get("topic", prompt))
            # A row of its own: no group that a user gives looks like that.
            name = group if isinstance(group, str) else json.dumps(group)
            if not group:
                name = f"({place})"
            try:
                if "positive" in row and "negative" in row:
                    positive.append(_response(prompt, row, "positive", name))
                    negative.append(_response(prompt, row, "negative", name))
                elif row.get("label") in (0, 1) and ("text" in row or "response" in row):
                    key = "text" if "text" in row else "response"
                    example = _response(prompt, row, key, name)
                    (positive if row["label"] else negative).append(example)
                else:
                    raise ValueError(
                        f"has the keys {', '.join(row) or 'none'}; a contrast needs 'positive' "
                        f"and 'negative' (and 'prompt'), or 'text' and 'label' 0 or 1."
                    )
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
        return cls(tuple(positive), tuple(negative), template)

    @property
    def groups(self) -> tuple[list[str], list[str]]:
        """The group of every positive and of every negative example."""
        return [e.group for e in self.positive], [e.group for e in self.negative]

    @property
    def rewards(self) -> tuple[list[float], list[float]] | None:
        """The graded label of every positive and negative example; None if one has none."""
        above = [e.reward for e in self.positive if e.reward is not None]
        below = [e.reward for e in self.negative if e.reward is not None]
        complete = len(above) == len(self.positive) and len(below) == len(self.negative)
        return (above, below) if complete else None

    def tokens(self, tokenizer: Any) -> tuple[list[list[int]], list[list[int]]]:
        """Token ids of every positive and of every negative example."""

        def ids(examples: tuple[Example, ...]) -> list[list[int]]:
            return [encode(tokenizer, e.prompt, e.response, self.template) for e in examples]

        return ids(self.positive), ids(self.negative)

    def prompt_lengths(self, tokenizer: Any) -> tuple[list[int], list[int]]:
        """How many of `tokens` are the prompt's, for every positive and negative example."""

        def lengths(examples: tuple[Example, ...]) -> list[int]:
            return [
                0 if e.prompt is None else len(encode(tokenizer, e.prompt, None, self.template))
                for e in examples
            ]

        return lengths(self.positive), lengths(self.negative)

    @property
    def is_paired(self) -> bool:
        """Whether row i of both classes is of one group, for every row."""
        return self.groups[0] == self.groups[1]

    def paired(self) -> "Contrast":
        """Each group's i-th positive beside its i-th negative; what has no partner is left out.

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
        """Two contrasts without a group in common; the first has `share` of the groups.

        Raises:
            ValueError: if there are too few groups for both to have some of each class.
        """
        names = sorted({*self.groups[0], *self.groups[1]})
        if len(names) < 2:
            raise ValueError(f"Only groups can be split, and this contrast has {len(names)}.")
        order = np.random.default_rng(seed).permutation(len(names))
        chosen = {names[i] for i in order[: round(share * len(names))]}
        return self.where(chosen), self.where(set(names) - chosen)

    def where(self, groups: set[str]) -> "Contrast":
        """The examples of those groups."""
        return Contrast(
            tuple(e for e in self.positive if e.group in groups),
            tuple(e for e in self.negative if e.group in groups),
            self.template,
        )


def _example(row: Any, group: str) -> Example:
    if isinstance(row, str):
        return Example(None, row, group)
    if isinstance(row, Sequence) and len(row) == 2 and isinstance(row[1], str):
        return Example(row[0], row[1], group)
    if isinstance(row, Sequence) and row and all(isinstance(part, Mapping) for part in row):
        *before, last = row
        if last.get("role") == "assistant" and before:
            return Example(tuple(before), last["content"], group)
        raise ValueError(
            f"Chat messages of a contrast end with the assistant's turn, after at least one "
            f"other; got roles {[part.get('role') for part in row]}."
        )
    raise ValueError(
        f"A row of a contrast is a text, a (prompt, response) pair of texts, or chat messages; "
        f"got {row!r:.80}."
    )


def _response(prompt: Any, row: Mapping[str, Any], key: str, group: str) -> Example:
    """An example of a row: a prompt and a response, a bare text, or whole chat messages."""
    response = row[key]
    example = _example(response if isinstance(response, list) else (prompt, response), group)
    name = f"{key}_reward" if key in ("positive", "negative") else "reward"
    reward = row.get(name)
    if reward is None:
        return example
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise ValueError(f"has the {name} {reward!r}; a graded label is a finite number.")
    return replace(example, reward=float(reward))


def _json_lines(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            place = f"Line {number} of '{file}'"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{place} is not JSON: {error}.") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place} is not a JSON object: {line!r:.80}.")
            yield place, row
