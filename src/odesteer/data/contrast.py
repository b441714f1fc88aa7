"""Contrast: texts that show a wanted behaviour, and texts that show its opposite.

Also the rows of data that its examples are made of, of files, data sets and lists.
"""

import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from functools import cached_property
from html import escape
from typing import Any

import numpy as np

from odesteer.common.limits import brief
from odesteer.common.registry import lookup
from odesteer.data.formats import FORMATS, as_rows
from odesteer.data.read_files import rows as file_rows
from odesteer.models.chat_template import Messages, encode_parts, question

REWARDS = ("reward", "positive_reward", "negative_reward")
NUMBERS = ("label", *REWARDS)
KEYS = ("prompt", "positive", "negative", "text", "response", "group", "topic", *NUMBERS)
Columns = Mapping[str, str]
SHOWN = 3  # examples of a class in a notebook


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
            if not all(isinstance(each, Example) for each in members):
                raise ValueError(
                    "A Contrast holds examples: of two lists of texts make one by "
                    "Contrast.from_pairs(positives, negatives)."
                )

    def __repr__(self) -> str:
        groups = len({*self.groups[0], *self.groups[1]})
        return (
            f"Contrast({len(self.positive)} positive, {len(self.negative)} negative, "
            f"{groups} group{'' if groups == 1 else 's'})"
        )

    def _repr_html_(self) -> str:
        """Return the first examples of both classes as a table, for notebooks."""
        pairs = zip(self.positive[:SHOWN], self.negative[:SHOWN], strict=False)
        rows = "".join(
            f"<tr><td>{_cell(wanted)}</td><td>{_cell(unwanted)}</td></tr>"
            for wanted, unwanted in pairs
        )
        heading = "<tr><th>positive</th><th>negative</th></tr>"
        return f"<p>{escape(repr(self))}</p><table>{heading}{rows}</table>"

    @classmethod
    def of(cls, data: Any) -> "Contrast":
        """Return a contrast as it is, or make one of what is mostly meant by a contrast.

        Args:
            data: a contrast; the path of a file, see `from_file`; a dictionary with the lists
                `positive` and `negative`, or a tuple of the two; a list of (positive, negative)
                pairs, or of the dataclasses of repeng and steering-vectors; or rows, such as a list
                of dictionaries or a data set, see `from_rows`.

        Raises:
            ValueError: for anything else, saying what to call; and as `from_file` and the others.

        Example:
            >>> len(Contrast.of([{"positive": "A good day.", "negative": "A bad day."}]).positive)
            1
        """
        if isinstance(data, cls):
            return data
        if isinstance(data, str | os.PathLike):
            return cls.from_file(data)
        if isinstance(data, Mapping) and {"positive", "negative"} <= set(data):
            return cls.from_pairs(list(data["positive"]), list(data["negative"]))
        if isinstance(data, Sequence) and data and isinstance(data[0], Mapping):
            return cls.from_rows(data)
        if isinstance(data, Sequence) and data and is_dataclass(data[0]):
            return cls.from_rows(vars(row) for row in data)
        if hasattr(data, "column_names"):  # a data set of `datasets`
            return cls.from_dataset(data)
        if isinstance(data, tuple) and len(data) == 2 and all(isinstance(d, list) for d in data):
            return cls.from_pairs(*data)
        if isinstance(data, Sequence) and data and all(map(_is_pair, data)):
            return cls.from_pairs(data)
        raise ValueError(
            f"A contrast is made of a path, of rows with the keys 'positive' and 'negative', or of "
            f"two lists by Contrast.from_pairs(positives, negatives); got {type(data).__name__}."
        )

    @classmethod
    def from_pairs(
        cls,
        positive: Sequence[Any],
        negative: Sequence[Any] | None = None,
        groups: Sequence[Any] | None = None,
        template: str = "auto",
    ) -> "Contrast":
        """Make a contrast from texts, chat messages or (prompt, response) rows.

        Row i of both classes belongs together. Where the classes differ in length, a warning says
        so, and every row is a group of its own unless `groups` says otherwise.

            >>> Contrast.from_pairs(["A good day."], ["A bad day."]).is_paired
            True
            >>> Contrast.from_pairs([("A good day.", "A bad day.")])
            Contrast(1 positive, 1 negative, 1 group)

        Args:
            positive: n rows to steer towards; or, without `negative`, (positive, negative) pairs.
            negative: m rows to steer away from.
            groups: n + m labels, positives first; rows of one group belong together.
            template: how prompt and response become one text.

        Raises:
            ValueError: for a row of another form, or groups of another length.
        """
        if negative is None:
            if not positive or not all(map(_is_pair, positive)):
                raise ValueError(
                    "Contrast.from_pairs takes two lists, of positive and of negative texts, or "
                    "one list of (positive, negative) pairs."
                )
            positive, negative = [list(side) for side in zip(*positive, strict=True)]
        for side in (positive, negative):
            if isinstance(side, str):
                raise ValueError(f"A class is a list of texts; got the text {side!r:.80}.")
        n, m = len(positive), len(negative)
        if groups is None:
            groups = [*range(n), *range(m)] if n == m else list(range(n + m))
            if n != m and n and m:
                warnings.warn(
                    f"{n} positive and {m} negative texts do not pair up line by line, so each "
                    f"counts by itself; drop some to pair them, or give groups.",
                    stacklevel=2,
                )
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
        format: str | None = None,
    ) -> "Contrast":
        """Make a contrast from dictionaries, such as a dataset; also called `from_dataset`.

        Each row is either

        - a pair: `positive`, `negative`, and optionally `prompt`, or
        - one labelled text: `text` (or `prompt` and `response`) and `label` (1 or 0),

        and optionally has a `group` or `topic`; without one, rows with the same prompt belong
        together, and a row without a prompt belongs to itself. Graded labels are a labelled
        text's `reward`, or a pair's `positive_reward` and `negative_reward`.

        A positive or negative may also be chat messages that end with the assistant's: the
        whole conversation, or the assistant's turn alone where there is a prompt.

            >>> rows = [{"text": "A good day.", "label": 1}, {"text": "A bad day.", "label": 0}]
            >>> Contrast.from_rows(rows)
            Contrast(1 positive, 1 negative, 2 groups)

        Rows of preference data sets, BiPO, model-written evals, AxBench and others are recognised
        by their columns, see `odesteer.data.formats`.

        Args:
            rows: the dictionaries.
            template: how prompt and response become one text.
            columns: what the rows call these keys, where they call them otherwise, such as
                {"prompt": "question", "positive": "chosen", "negative": "rejected"}.
            format: one of `odesteer.data.formats.FORMATS`; None: by the columns of the first row.

        Raises:
            ValueError: naming the row that is of neither form.
        """
        located = ((f"Row {number}", row) for number, row in enumerate(rows, start=1))
        return cls._of(located, template, columns, format)

    # A data set of `datasets` is its rows.
    from_dataset = from_rows

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        template: str = "auto",
        columns: Columns | None = None,
        format: str | None = None,
    ) -> "Contrast":
        """Read a JSONL, JSON, CSV, TSV or Parquet file by its name; see `from_rows`.

        Raises:
            FileNotFoundError: if the file is not there.
            ImportError: for Parquet without pyarrow.
            ValueError: naming the line that cannot be read, or is of another form, or the file
                that has no rows, or texts of one class alone.
        """
        numbers = [(columns or {}).get(key, key) for key in NUMBERS]
        rows = file_rows(path, None, numbers)
        return cls._of(rows, template, columns, format, f"'{os.fspath(path)}'")

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
        rows = file_rows(path, ".jsonl")
        return cls._of(rows, template, columns, None, f"'{os.fspath(path)}'")

    @classmethod
    def _of(
        cls,
        rows: Iterable[tuple[str, Mapping[str, Any]]],
        template: str,
        columns: Columns | None,
        format: str | None = None,
        name: str | None = None,
    ) -> "Contrast":
        members: dict[int | None, list[Example]] = {1: [], 0: []}
        for each, label in labelled(rows, columns, format=format):
            members[label].append(each)
        counts = {"positive": len(members[1]), "negative": len(members[0])}
        if name is not None and not any(counts.values()):
            raise ValueError(f"{name} has no rows; a contrast needs examples of both classes.")
        for key, other in (("positive", "negative"), ("negative", "positive")):
            if name is not None and not counts[key]:
                raise ValueError(
                    f"{name} has {counts[other]} {other} texts and no {key} one; a contrast needs "
                    f"examples of both classes."
                )
        return cls(tuple(members[1]), tuple(members[0]), template)

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

    def shuffled(self, seed: int = 0) -> "Contrast":
        """Return the contrast with permuted labels, as a control.

        Half of the pairs of a paired contrast are turned round; otherwise the labels are dealt
        anew, as many of each.
        """
        both = self.positive + self.negative
        above, below = self.shuffled_rows(seed)
        return Contrast(tuple(both[i] for i in above), tuple(both[i] for i in below), self.template)

    def shuffled_rows(self, seed: int = 0) -> tuple[list[int], list[int]]:
        """Return which rows, positives first, are positive and negative in `shuffled`."""
        n, m = len(self.positive), len(self.negative)
        generator = np.random.default_rng(seed)
        if self.is_paired:
            turned = generator.permutation(n) < n // 2
            above = np.where(turned, np.arange(n) + n, np.arange(n))
            below = np.where(turned, np.arange(n), np.arange(n) + n)
        else:
            order = generator.permutation(n + m)
            above, below = order[:n], order[n:]
        return above.tolist(), below.tolist()

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


def labelled(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    columns: Columns | None,
    required: bool = True,
    format: str | None = None,
) -> Iterator[tuple[Example, int | None]]:
    """Yield each example with its label, 1 or 0; a pair gives its positive first.

    Args:
        rows: each with the place it is from, for errors that name it.
        columns: what the rows call our keys, where they call them otherwise.
        required: whether a row without a label is refused; otherwise its label is None.
        format: of the rows, see `odesteer.data.formats`; None: by their columns.

    Raises:
        ValueError: for a key that is none of ours, or naming the row of another form.
    """
    if columns and format:
        raise ValueError("A format says what the columns are called; give it or columns.")
    for key in columns or ():
        lookup(dict.fromkeys(KEYS), key, "key of a contrast")
    for location, original in iter(rows) if columns else as_rows(iter(rows), format):
        row = _renamed(original, columns or {}, location)
        prompt = row.get("prompt")
        group = row.get("group", row.get("topic", prompt))
        # A row of its own: no group that a user gives looks like that.
        name = group if isinstance(group, str) else json.dumps(group)
        if not group:
            name = f"({location})"
        key = "text" if "text" in row else "response"
        label = row.get("label")
        try:
            if "positive" in row and "negative" in row:
                yield _response(prompt, row, "positive", name), 1
                yield _response(prompt, row, "negative", name), 0
            elif key in row and (label in (0, 1) or (label is None and not required)):
                yield _response(prompt, row, key, name), None if label is None else int(label)
            else:
                keys = brief(", ".join(map(str, row)), 200)
                raise ValueError(
                    f"has the keys {keys or 'none'}; a contrast needs "
                    f"'positive' and 'negative' (and 'prompt'), or 'text' and 'label' 0 or 1; "
                    f'name other columns with columns={{"positive": ...}}. Known by their columns '
                    f"are the formats {', '.join(FORMATS)}."
                )
        except ValueError as error:
            raise ValueError(f"{location}: {error}") from None


def example(row: Any, group: str) -> Example:
    """Make an example from a text, a (prompt, response) pair or chat messages.

    Raises:
        ValueError: for a row of another form.
    """
    if isinstance(row, str):
        return Example(None, row, group)
    if isinstance(row, Sequence) and len(row) == 2 and isinstance(row[1], str):
        if not (row[0] is None or isinstance(row[0], str) or _are_messages(row[0])):
            raise ValueError(f"A prompt is a text or chat messages; got {row[0]!r:.80}.")
        return Example(row[0], row[1], group)
    if _are_messages(row):
        *before, last = row
        if last.get("role") != "assistant" or not before:
            raise ValueError(
                f"Chat messages of a contrast end with the assistant's turn, after at least one "
                f"other; got roles {[part.get('role') for part in row]}."
            )
        if not isinstance(last.get("content"), str):
            raise ValueError(
                f"The content of an assistant's turn is a text; got {last.get('content')!r:.80}."
            )
        return Example(tuple(before), last["content"], group)
    raise ValueError(
        f"A row of a contrast is a text, a (prompt, response) pair of texts, or chat messages; "
        f"got {row!r:.80}."
    )


def _response(prompt: Any, row: Mapping[str, Any], key: str, group: str) -> Example:
    """Make an example from one column of a row, with its prompt and its reward."""
    response = row[key]
    if prompt and _are_messages(response) and response[0].get("role") == "assistant":
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        response = [*turns, *response]
    result = example(response if _are_messages(response) else (prompt, response), group)
    name = f"{key}_reward" if key in ("positive", "negative") else "reward"
    reward = row.get(name)
    if reward is None:
        return result
    if not isinstance(reward, int | float) or not math.isfinite(reward):
        raise ValueError(f"has the {name} {reward!r}; a graded label is a finite number.")
    return replace(result, reward=float(reward))


def _renamed(row: Any, columns: Columns, location: str) -> Mapping[str, Any]:
    """Rename the columns of a row to our keys."""
    if not isinstance(row, Mapping):
        raise ValueError(
            f"{location} is not a mapping of names to values: {row!r:.80}. Of a DatasetDict give "
            f'one split, such as dataset["train"]; of a DataFrame, frame.to_dict("records").'
        )
    # A row may lack some of them: an empty cell of a CSV file is none.
    return {**row, **{key: row[name] for key, name in columns.items() if name in row}}


def _is_pair(row: Any) -> bool:
    """Whether it is a positive and a negative, each a text, messages or (prompt, response)."""
    return isinstance(row, list | tuple) and len(row) == 2 and not _are_messages(row)


def _cell(each: Example) -> str:
    """Render prompt and response for a notebook."""
    asked = f"<i>{escape(brief(question(each.prompt), 200))}</i><br>" if each.prompt else ""
    return asked + escape(brief(each.response, 200))


def _are_messages(value: Any) -> bool:
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return len(parts) > 0 and all(isinstance(part, Mapping) for part in parts)
