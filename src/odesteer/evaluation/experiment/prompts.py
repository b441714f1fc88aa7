"""Prompts of an experiment, plain or with the wanted behaviour asked for.

The instruction is a chat's system message where the model is chatted with, and stands before the
text otherwise: the prompt-only baseline.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from odesteer.evaluation.benchmarks import Benchmark
from odesteer.evaluation.benchmarks.multiple_choice import answers
from odesteer.evaluation.case import Case
from odesteer.evaluation.scoring.packing import PromptWithAnswers
from odesteer.models.chat_template import Messages, encode, encode_parts


class Prompt(NamedTuple):
    """A prompt, and the template that makes it text."""

    prompt: str | Messages
    template: str


def plain(benchmark: Benchmark, case: Case) -> Prompt:
    """As steered and unsteered models see it."""
    return Prompt(case.prompt, benchmark.template)


def instructed(tokenizer: Any, benchmark: Benchmark, case: Case) -> Prompt:
    """With the benchmark's instruction."""
    prompt, template, words = case.prompt, benchmark.template, benchmark.instruction
    chatted = template in ("auto", "chat") and tokenizer.chat_template is not None
    if isinstance(prompt, str) and not chatted:
        if template in ("auto", "plain"):
            return Prompt(f"{words}\n\n{prompt}", template)
        return Prompt(prompt, f"{words}\n\n{template}")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    if turns[0]["role"] == "system":
        first = {"role": "system", "content": f"{turns[0]['content']} {words}"}
        return Prompt([first, *turns[1:]], template)
    asked = Prompt([{"role": "system", "content": words}, *turns], template)
    try:
        encode(tokenizer, *asked[:1], template=template)
    except ValueError:
        # The model's template knows no system message.
        first = {"role": turns[0]["role"], "content": f"{words}\n\n{turns[0]['content']}"}
        return Prompt([first, *turns[1:]], template)
    return asked


def prompt_of(tokenizer: Any, benchmark: Benchmark, case: Case, words: bool) -> Prompt:
    """With the instruction where `words` asks for it."""
    return instructed(tokenizer, benchmark, case) if words else plain(benchmark, case)


def with_choices(
    tokenizer: Any, benchmark: Benchmark, case: Case, words: bool = False
) -> PromptWithAnswers:
    """A case's prompt and every answer that its scores need, as tokens."""
    return with_answers(tokenizer, prompt_of(tokenizer, benchmark, case, words), answers(case))


def with_answers(tokenizer: Any, asked: Prompt, said: Sequence[str]) -> PromptWithAnswers:
    """A prompt and answers as tokens, as the template writes them."""
    parts = [encode_parts(tokenizer, asked.prompt, text, asked.template) for text in said]
    return PromptWithAnswers(list(parts[0][0]), [list(answer) for _, answer in parts])
