"""Verdict of `odesteer fit` and `odesteer tune`: answers before and after, and what they say."""

from typing import TYPE_CHECKING, Any

import typer

from odesteer.cli import library
from odesteer.cli.console import out, progress, reading, show_answers, warn

if TYPE_CHECKING:
    from odesteer.evaluation.assessment import Assessment
    from odesteer.steering import Steering

# What to try next, by verdict.
NEXT = {
    "weak": "Try a larger dose (--kl 1), another --layer, or more pairs.",
    "nothing happens": "Try a larger dose (--kl 1), another --layer, or "
    "pairs that show the behaviour more plainly.",
    "moves the other way": "What separates these texts is not what makes the model write them: let "
    "it choose the direction (--method natural-gradient), or negate the dose.",
    "breaks the text": "Try a weaker dose (--kl light) or another --layer.",
}


def assessed(
    model: Any,
    tokenizer: Any,
    steering: "Steering",
    contrast: Any,
    *,
    seed: int,
    cache: bool,
    free: bool = False,
) -> "tuple[Steering, Assessment]":
    """Assess a steering, and return it with the assessment in its receipts.

    Args:
        model, tokenizer, steering, contrast, seed, cache: see `odesteer.assess`.
        free: whether the dose may be changed, see `Assessor.with_fluent_dose`.
    """
    assessor = library.assessment.Assessor(model, tokenizer, contrast, seed=seed, cache=cache)
    with reading(cache), progress("Writing before and after") as callback:
        if free:
            steering, assessment = assessor.with_fluent_dose(steering, callback)
        else:
            assessment = assessor.assess(steering, callback)
    return assessment.recorded(steering), assessment


def show(assessment: "Assessment") -> None:
    """Print warnings, the first answer before and after, and the verdict."""
    for warning in assessment.warnings:
        warn(warning)
    prompt, unsteered, steered = assessment.answers[0]
    show_answers(prompt, {"unsteered": unsteered, "steered": steered})
    out.print()
    out.print(str(assessment), soft_wrap=True)
    if assessment.verdict in NEXT:
        out.print(NEXT[assessment.verdict], soft_wrap=True)


def require(assessment: "Assessment | None", wanted: bool) -> None:
    """Exit with 1 unless it works, where that is wanted."""
    if wanted and (assessment is None or assessment.verdict != library.assessment.WORKS):
        raise typer.Exit(1)
