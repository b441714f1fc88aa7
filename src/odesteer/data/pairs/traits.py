"""Trait: pairs of opposite instructions, and the questions that are answered under them."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odesteer.common.catalogue import BEHAVIOURS
from odesteer.common.limits import read_json
from odesteer.data import behaviours

# Not "never ...": that names the behaviour, and small models write what is named.
PLAIN = "Answer plainly, as most people would."


def everyday_questions() -> tuple[str, ...]:
    """Return the prompts of the packaged behaviours, each once."""
    first = {file: name for name, (file, _, _) in reversed(BEHAVIOURS.items())}
    prompts = [e.prompt for name in first.values() for e in behaviours.load(name).positive]
    return tuple(dict.fromkeys(str(prompt) for prompt in prompts))


@dataclass(frozen=True)
class Trait:
    """Opposed instructions, and the questions that are answered under them.

    Attributes:
        instructions: (positive, negative) instructions; questions take them in turns.
        questions: what is answered under them; the prompts of the packaged behaviours by default.
        system: whether instructions are for the system's turn, or follow the question.

    Raises:
        ValueError: without an instruction or a question, or with an empty one.

    Example:
        >>> trait = Trait((("Answer as a pirate.", "Answer as a banker."),), ("How are you?",))
        >>> len(trait.questions)
        1
    """

    instructions: tuple[tuple[str, str], ...]
    questions: tuple[str, ...] = field(default_factory=everyday_questions)
    system: bool = False

    def __post_init__(self) -> None:
        for name, texts in (
            ("instructions", [text for pair in self.instructions for text in pair]),
            ("questions", list(self.questions)),
        ):
            if not texts or not all(text.strip() for text in texts):
                raise ValueError(f"A trait needs {name}, none of them empty.")
        for positive, negative in self.instructions:
            if positive.strip() == negative.strip():
                raise ValueError(f"Both instructions of a pair are {positive!r:.80}.")

    @classmethod
    def of(cls, description: str, opposite: str | None = None) -> "Trait":
        """Make a trait of a description such as "speaks like a sea captain".

        Args:
            description: what the positive answers do.
            opposite: what the negative ones do; None: they are plain answers, and are not told of
                the behaviour. Give it where plain answers have it, as for "is polite".

        Raises:
            ValueError: for an empty one, or two that are the same.
        """
        texts = [description, *([] if opposite is None else [opposite])]
        texts = [text.strip().rstrip(".!").strip() for text in texts]
        if not all(texts):
            raise ValueError("A description says how to answer, such as 'speaks like a captain'.")
        wanted, *unwanted = (f"Answer in this manner: {text}." for text in texts)
        return cls(((wanted, unwanted[0] if unwanted else PLAIN),))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> "Trait":
        """Read a trait file of persona vectors: `instruction` (with `pos` and `neg`), `questions`.

        Their five pairs of instructions, twenty questions and a prompt for a judge, which is not
        read, are what a language model wrote to draw a trait out.

        Source: Chen et al., "Persona Vectors", 2025, https://arxiv.org/abs/2507.21509, files
        data_generation/trait_data_extract/*.json of
        https://github.com/safety-research/persona_vectors

        Raises:
            OSError: if it cannot be read.
            ValueError: if it is no such file, or as `Trait` does.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"No trait file at '{file}'.")
        try:
            value = read_json(file)
        except ValueError as error:
            raise ValueError(f"'{file}' is not JSON that can be read: {error}.") from None
        pairs, questions = _lists(value)
        if pairs is None or questions is None:
            raise ValueError(
                f"'{file}' is no trait file: it needs 'instruction', a list of objects with 'pos' "
                f"and 'neg', and 'questions', a list of texts."
            )
        try:
            return cls(pairs, questions, system=True)
        except ValueError as error:
            raise ValueError(f"'{file}': {error}") from None


def _lists(value: Any) -> tuple[Any, Any]:
    """Return the instructions and questions of a trait file; None for those of another form."""
    try:
        pairs = tuple((row["pos"], row["neg"]) for row in value["instruction"])
        questions = tuple(value["questions"])
    except (KeyError, TypeError):
        return None, None
    texts = [text for pair in pairs for text in pair]
    return (
        pairs if all(isinstance(text, str) for text in texts) else None,
        questions if all(isinstance(text, str) for text in questions) else None,
    )
