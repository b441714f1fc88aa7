"""Rows of data as examples of a contrast."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from odesteer.common.limits import brief
from odesteer.common.registry import lookup
from odesteer.models.chat_template import Messages

REWARDS = ("reward", "positive_reward", "negative_reward")
NUMBERS = ("label", *REWARDS)
KEYS = ("prompt", "positive", "negative", "text", "response", "group", "topic", *NUMBERS)
Columns = Mapping[str, str]


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


def examples(
    rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns | None
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split rows into positive and negative examples; see `Contrast.from_rows`.

    Args:
        rows: each with the place it is from, for errors that name it.
        columns: what the rows call our keys, where they call them otherwise.

    Raises:
        ValueError: for a key that is none of ours, or naming the row of another form.
    """
    positive: list[Example] = []
    negative: list[Example] = []
    for each, label in labelled(rows, columns):
        (positive if label else negative).append(each)
    return tuple(positive), tuple(negative)


def labelled(
    rows: Iterable[tuple[str, Mapping[str, Any]]], columns: Columns | None, required: bool = True
) -> Iterator[tuple[Example, int | None]]:
    """Yield each example with its label, 1 or 0; a pair gives its positive first.

    Args:
        rows, columns: as of `examples`.
        required: whether a row without a label is refused; otherwise its label is None.

    Raises:
        ValueError: as of `examples`.
    """
    for key in columns or ():
        lookup(dict.fromkeys(KEYS), key, "key of a contrast")
    for location, original in rows:
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
                    f'name other columns with columns={{"positive": ...}}.'
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


def _are_messages(value: Any) -> bool:
    parts = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return len(parts) > 0 and all(isinstance(part, Mapping) for part in parts)
