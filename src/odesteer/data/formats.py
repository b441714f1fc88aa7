"""Formats: what others call the columns of a contrast, recognised by these columns.

| format | columns | becomes |
|---|---|---|
| `pairs` | positive, negative (and prompt) | itself |
| `labelled` | text (or prompt, response), label 1 or 0 | itself |
| `preference` | chosen, rejected (and prompt); texts or chat messages | positive, negative |
| `unpaired-preference` | prompt, completion, label | response, label |
| `bipo` | question, matching, not_matching | prompt, positive, negative |
| `model-written-evals` | question, answer_matching_behavior, answer_not_matching_... | as above |
| `model-written-statements` | statement, answer_matching_behavior " Yes" or " No" | text, label |
| `axbench` | input, output, output_concept, category, concept_id | prompt, response, label |
| `steering-vectors` | positive_str, negative_str | positive, negative |

A list (positive, negative) in place of a row is a row of `pairs`. Files of a format may be JSONL,
JSON, CSV or Parquet alike.

Sources. preference, unpaired-preference: TRL, https://huggingface.co/docs/trl/dataset_formats.
bipo: Cao et al., "Personalized Steering of LLMs", NeurIPS 2024, https://arxiv.org/abs/2406.00045,
data/*/train.csv and train.py of https://github.com/CaoYuanpu/BiPO. model-written-evals: Perez et
al., 2022, https://arxiv.org/abs/2212.09251, persona/README.md of
https://github.com/anthropics/evals. axbench: Wu et al., 2025, https://arxiv.org/abs/2501.17148,
the files train_data.parquet and latent_eval_data.parquet below axbench/concept10 of
https://github.com/stanfordnlp/axbench. steering-vectors: SteeringVectorTrainingSample in
steering_vectors/train_steering_vector.py of https://github.com/steering-vectors/steering-vectors,
which takes (positive, negative) tuples, too; repeng's DatasetEntry(positive, negative) is `pairs`
(repeng/extract.py of https://github.com/vgel/repeng).
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

from odesteer.common.limits import brief
from odesteer.common.registry import lookup

Row = Mapping[str, Any]
Rows = Iterator[tuple[str, Row]]


class Format(NamedTuple):
    """A format.

    Attributes:
        columns: that every row has, by which the format is recognised.
        convert: rows to ours; called with what follows the format's name, such as a concept.
        recognised: whether it is taken unasked.
    """

    columns: tuple[str, ...]
    convert: Callable[[Rows, str], Rows]
    recognised: bool = True

    def fits(self, columns: set[str]) -> bool:
        """Whether a row with these columns is taken for one of the format."""
        return self.recognised and columns.issuperset(self.columns)


def as_rows(rows: Rows, name: str | None = None) -> Rows:
    """Yield the rows of a format as rows of `pairs` or `labelled`.

    Args:
        rows: each with the place it is from.
        name: a key of `FORMATS`, and for `axbench` a concept, as in "axbench:3"; None: the first
            format whose columns the first row has. Rows of no format are yielded as they are.

    Raises:
        ValueError: for an unknown name, or naming the row that lacks a column of the format.

    Example:
        >>> row = {"question": "Lead us?", "matching": "Gladly.", "not_matching": "Not me."}
        >>> next(as_rows(iter([("Row 1", row)])))[1]["positive"]
        'Gladly.'
    """
    known, _, choice = (name or "").partition(":")
    if name is not None:
        lookup(FORMATS, known, "format")
    if choice and known != "axbench":
        raise ValueError(f"Only the format axbench has concepts to choose from; got '{name}'.")
    first = next(rows, None)
    if first is None:
        return
    rows = chain([first], rows)
    if name is None:
        columns = set(first[1]) if isinstance(first[1], Mapping) else set()
        fitting = (key for key, each in FORMATS.items() if each.fits(columns))
        known = next(fitting, "pairs")
    chosen = FORMATS[known]
    # Rows of ours may be of either kind, and whoever makes examples of them says what they lack.
    if name is not None or chosen.convert is not _as_they_are:
        rows = _checked(rows, known)
    yield from chosen.convert(rows, choice)


def _checked(rows: Rows, name: str) -> Rows:
    """Refuse a row without the columns of its format."""
    columns = FORMATS[name].columns
    for location, row in rows:
        if not isinstance(row, Mapping) or not set(columns) <= set(row):
            keys = ", ".join(map(str, row)) if isinstance(row, Mapping) else repr(row)
            raise ValueError(
                f"{location}: has the keys {brief(keys, 200) or 'none'}; the format '{name}' has "
                f"{', '.join(columns)}."
            )
        yield location, row


def _as_they_are(rows: Rows, choice: str) -> Rows:
    return rows


def _renamed(**names: str) -> Callable[[Rows, str], Rows]:
    """Return a conversion that renames columns: ours=theirs."""

    def convert(rows: Rows, choice: str) -> Rows:
        for location, row in rows:
            # A published file may lack the question of a row.
            yield (
                location,
                {**row, **{key: row[name] for key, name in names.items() if name in row}},
            )

    return convert


def _evals(rows: Rows, choice: str) -> Rows:
    """Take the space off that answers begin with; a template decides what stands before them."""
    keys = {"positive": "answer_matching_behavior", "negative": "answer_not_matching_behavior"}
    for location, row in _renamed(prompt="question", **keys)(rows, choice):
        answers = {key: row[key].strip() for key in keys if isinstance(row.get(key), str)}
        yield location, {**row, **answers}


def _statements(rows: Rows, choice: str) -> Rows:
    labels = {"yes": 1, "no": 0}
    for location, row in rows:
        answer = str(row["answer_matching_behavior"]).strip()
        if answer.lower() not in labels:
            raise ValueError(
                f"{location}: a statement is matched by Yes or No; got {answer!r:.80}. Questions "
                f"with other answers are the format model-written-evals."
            )
        yield location, {"text": row["statement"], "label": labels[answer.lower()]}


def _axbench(rows: Rows, choice: str) -> Rows:
    """Take one concept: its texts, and those without a concept in its genres.

    Training texts without a concept (-1) are shared by all concepts, those of the evaluation have
    its number, as have the hard negatives, which have a concept that only seems to be this one.
    """
    located = list(rows)
    concepts: dict[str, str] = {}
    genres: dict[str, set[Any]] = {}
    for _, row in located:
        if row["category"] == "positive":
            number = str(row["concept_id"])
            concepts.setdefault(number, str(row["output_concept"]))
            genres.setdefault(number, set()).add(row.get("concept_genre"))
    chosen = [key for key, text in concepts.items() if not choice or choice in (key, text)]
    if len(chosen) != 1:
        listed = "; ".join(f"{key} {text}" for key, text in concepts.items())
        raise ValueError(
            f"AxBench data are for one concept at a time: name it by its number, such as the "
            f"format axbench:{next(iter(concepts), 0)}. There are: {brief(listed, 400) or 'none'}"
        )
    (concept,) = chosen
    for location, row in located:
        number = str(row["concept_id"])
        shared = number == "-1" and row.get("concept_genre") in genres[concept]
        if number == concept or shared:
            label = int(row["category"] == "positive")
            yield location, {"prompt": row["input"], "response": row["output"], "label": label}


_EVALS = ("answer_matching_behavior", "answer_not_matching_behavior")
FORMATS: dict[str, Format] = {
    "pairs": Format(("positive", "negative"), _as_they_are),
    "labelled": Format(("label",), _as_they_are, recognised=False),
    "preference": Format(("chosen", "rejected"), _renamed(positive="chosen", negative="rejected")),
    "unpaired-preference": Format(("completion", "label"), _renamed(response="completion")),
    "bipo": Format(
        ("matching", "not_matching"),
        _renamed(prompt="question", positive="matching", negative="not_matching"),
    ),
    "model-written-evals": Format(("question", *_EVALS), _evals),
    "model-written-statements": Format(("statement", *_EVALS), _statements, recognised=False),
    "axbench": Format(("input", "output", "output_concept", "category", "concept_id"), _axbench),
    "steering-vectors": Format(
        ("positive_str", "negative_str"), _renamed(positive="positive_str", negative="negative_str")
    ),
}
