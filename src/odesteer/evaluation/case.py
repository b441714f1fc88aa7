"""Test cases: a prompt with its group, references and choices.

A benchmark makes cases, a model answers them, a judge reads both. (The examples of a contrast
are texts that are already written.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from odesteer.models.chat_template import Messages


@dataclass(frozen=True)
class Case:
    """One prompt to be answered. Everything in it is plain data that fits into JSON.

    Attributes:
        prompt: a text or chat messages.
        id: names the case within its benchmark.
        group: cases of one group are not independent and never split; "": a group of its own.
        references: good answers, for judges that compare.
        distractors: bad answers, likewise.
        choices: by multiple-choice task, every answer and whether it is right; see
            `odesteer.evaluation.metrics`.
        metadata: what else is known of the prompt, such as its toxicity.
    """

    prompt: str | Messages
    id: str = ""
    group: str = ""
    references: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    choices: Mapping[str, tuple[tuple[str, bool], ...]] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The prompt as a text: of chat messages, the last one's."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[-1]["content"]
