"""`odesteer fit` and `odesteer tune`: texts to a steering on disk."""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import (
    out,
    parse_dose,
    parse_kl,
    progress,
    reading,
    say,
    show_answers,
    teaching_errors,
    warn,
)
from odesteer.cli.load_steering import (
    as_layers,
    check_solver,
    read_chosen,
    with_dose,
    with_solver,
)
from odesteer.common import catalogue

if TYPE_CHECKING:
    from odesteer.evaluation.assessment import Assessment
    from odesteer.steering import Steering


@teaching_errors
def fit(
    model: options.Model,
    contrast: options.ContrastOrBehaviour = None,
    *,
    output: options.Directory,
    behaviour: options.Behaviour = None,
    method: options.Method = "odesteer",
    layer: options.Layer = "auto",
    incremental: Annotated[
        bool | None,
        typer.Option(
            help="Fit later layers on activations moved by earlier ones; by default as in the "
            "method's source."
        ),
    ] = None,
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    coverage: options.Coverage = None,
    kl: options.KL = None,
    spread: options.Spread = False,
    solver: options.Solver = None,
    steps: options.Steps = None,
    columns: options.Columns = None,
    format: options.Format = None,
    template: options.Template = "auto",
    tokens: Annotated[
        str | None,
        typer.Option(
            help="What is read of each text: the last token, the mean, the mean of the response, "
            "or the end of the prompt (last, mean, response, prompt); by default as the method's "
            "source does.",
            autocompletion=options.among(catalogue.TOKENS),
        ),
    ] = None,
    max_tokens: options.MaxTokens = None,
    positions: options.FittedPositions = None,
    check: options.Check = True,
    require_effect: options.RequireEffect = False,
    cache: options.Cache = True,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Learn a steering from positive and negative texts.

    Example: odesteer fit smollm2 pairs.jsonl --method natural-gradient --kl medium --out cheerful
    """
    # Errors of input come before anything slow.
    dose = parse_dose(strength, angle, target, coverage)
    budget = parse_kl(kl, dose)
    blocks = as_layers(layer)
    check_solver(solver)
    learner = library.find_method(method)()
    chosen = None if tokens is None else library.check_tokens(tokens)
    if positions is not None:
        library.PositionRule.parse(positions)
    data = read_chosen(contrast, behaviour, template, columns, format)
    language_model, tokenizer = library.load_model(model, say)

    # Where no dose is named, what is written chooses it: from the method's own.
    checked = check or require_effect
    free = checked and budget is None and dose is None
    free = free and library.takes_kl(learner, data, tokenizer)
    with reading(cache), progress("Reading texts and fitting") as callback:
        steering = ods.fit(
            language_model,
            tokenizer,
            data,
            method=method,
            layer=blocks,
            strength=budget if dose is None else dose,
            seed=seed,
            incremental=incremental,
            progress=callback,
            tokens=chosen,
            max_tokens=max_tokens,
            positions=positions,
            cache=cache,
        )
    steering, assessment = with_solver(with_dose(steering, dose, spread), solver, steps), None
    if checked:
        steering, assessment = assessed(
            language_model, tokenizer, steering, data, seed=seed, cache=cache, free=free
        )
    path = steering.save_pretrained(output)
    parts = steering.parts
    measured = {part.layer: part.receipts.get("held_out", {}) for part in parts}
    if as_json:
        held_out = {"layers": measured} if len(parts) > 1 else measured[parts[0].layer]
        out.print_json(
            data={"path": str(path), "layer": steering.layer, "method": method, **held_out}
            | {"dose": str(steering.dose), "positions": steering.positions}
            | ({"kl": parts[0].receipts["kl"]} if "kl" in parts[0].receipts else {})
            | ({} if assessment is None else {"assessment": assessment.facts})
        )
        require_works(assessment, require_effect)
        return
    out.print(
        f"Wrote {path}: {method} at layer {steering.layer}, {steering.dose}, "
        f"positions {steering.positions}",
        soft_wrap=True,
    )
    cost = parts[0].receipts.get("kl")
    if cost:
        out.print(
            f"On {cost['texts']} held-out texts: KL {cost['measured']:.3f} nats a token from the "
            f"unsteered model, log p(wanted) - log p(unwanted) {cost['margin']:+.3f} nats a token",
            soft_wrap=True,
        )
    for index, held_out in measured.items():
        if not held_out:
            continue
        where = f" (layer {index})" if len(parts) > 1 else ""
        out.print(
            f"On held-out groups{where}: AUC {held_out['auc']:.3f}, "
            f"log-loss {held_out['log_loss']:.3f} (chance 0.693), "
            f"calibration error {held_out['ece']:.3f}, n = {held_out['n']}",
            soft_wrap=True,
        )
    if assessment is not None:
        show_verdict(assessment)
    require_works(assessment, require_effect)


FIGURE = "tune.png"
N = TypeVar("N", int, float)


@teaching_errors
def tune(
    model: options.Model,
    contrast: options.ContrastOrBehaviour = None,
    *,
    output: options.Directory,
    behaviour: options.Behaviour = None,
    method: options.Method = "odesteer",
    layers: Annotated[
        str,
        typer.Option(
            help="Candidates such as `10,13`, or `auto`: the best three by held-out loss."
        ),
    ] = "auto",
    angles: Annotated[
        str | None,
        typer.Option(help="Candidate doses such as `0.1,0.2`; six from 0.05 to 0.3 by default."),
    ] = None,
    target_probability: Annotated[
        float | None,
        typer.Option(help="Least damage that reaches this mean P(positive), 0 to 1."),
    ] = None,
    target_effect: Annotated[
        float | None,
        typer.Option(help="Least damage that reaches this effect, in standard deviations."),
    ] = None,
    max_kl: Annotated[
        float, typer.Option(help="Budget: 95th percentile of KL from the unsteered model, nats.")
    ] = 1.0,
    max_perplexity_ratio: Annotated[
        float, typer.Option(help="Budget: perplexity of unsteered text, steered over unsteered.")
    ] = 1.25,
    columns: options.Columns = None,
    format: options.Format = None,
    template: options.Template = "auto",
    check: options.Check = True,
    require_effect: options.RequireEffect = False,
    cache: options.Cache = True,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Choose layer and dose on held-out texts, under a damage budget.

    Without a target: the largest effect within the budget. Writes the steering, with all
    numbers in its receipts, and tune.png beside it.

    Example: odesteer tune smollm2 pairs.jsonl --target-probability 0.8 --out gloomy
    """
    # Errors of input come before anything slow.
    blocks = None if layers == "auto" else _list(layers, int, "--layers", "10,13, or auto")
    amounts = None if angles is None else _list(angles, float, "--angles", "0.1,0.2")
    library.find_method(method)
    library.Goal(max_kl, max_perplexity_ratio, target_probability, target_effect)
    data = read_chosen(contrast, behaviour, template, columns, format)
    language_model, tokenizer = library.load_model(model, say)
    with reading(cache), progress("Tuning", percent=True) as callback, warnings.catch_warnings():
        # The reason is printed below, met or not.
        warnings.filterwarnings("ignore", message="(?s).*within the budget")
        tuned = ods.tune(
            language_model,
            tokenizer,
            data,
            method=method,
            layers=blocks,
            doses=None if amounts is None else [ods.Angle(amount) for amount in amounts],
            target=target_probability,
            target_effect=target_effect,
            max_kl=max_kl,
            max_perplexity_ratio=max_perplexity_ratio,
            seed=seed,
            progress=callback,
            cache=cache,
        )
    steering, assessment = tuned.steering, None
    if check or require_effect:
        steering, assessment = assessed(
            language_model, tokenizer, steering, data, seed=seed, cache=cache
        )
    path = steering.save_pretrained(output)
    tuned.plot(path / FIGURE)
    if as_json:
        facts = {} if assessment is None else {"assessment": assessment.facts}
        out.print_json(data={"path": str(path), **tuned.facts, **facts})
        require_works(assessment, require_effect)
        return
    out.print(tuned.table(), soft_wrap=True, markup=False)
    say(
        f'">" chosen, "!" beyond the budget; effects and damage on held-out texts ({path / FIGURE})'
    )
    out.print(("" if tuned.met else "Not met. ") + tuned.reason, soft_wrap=True, markup=False)
    out.print(
        f"Wrote {path}: {method} at layer {tuned.steering.layer}, {tuned.steering.dose} "
        f"(tuned in {tuned.facts['seconds']:.0f} seconds)"
    )
    if assessment is not None:
        show_verdict(assessment)
    require_works(assessment, require_effect)


def _list(text: str, kind: Callable[[str], N], option: str, such_as: str) -> list[N]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers such as {such_as}; got '{text}'.") from None


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


def show_verdict(assessment: "Assessment") -> None:
    """Print warnings, the first answer before and after, and the verdict."""
    for warning in assessment.warnings:
        warn(warning)
    prompt, unsteered, steered = assessment.answers[0]
    show_answers(prompt, {"unsteered": unsteered, "steered": steered})
    out.print()
    out.print(str(assessment), soft_wrap=True)
    if assessment.verdict in NEXT:
        out.print(NEXT[assessment.verdict], soft_wrap=True)


def require_works(assessment: "Assessment | None", wanted: bool) -> None:
    """Exit with 1 unless it works, where that is wanted."""
    if wanted and (assessment is None or assessment.verdict != library.assessment.WORKS):
        raise typer.Exit(1)
