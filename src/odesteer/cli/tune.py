"""`odesteer tune`: layer and dose chosen on held-out data, to a steering on disk."""

import warnings
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

import odesteer as ods
from odesteer.cli import library, options, verdict
from odesteer.cli.console import out, progress, reading, say, teaching_errors
from odesteer.cli.load_steering import read_chosen

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
        steering, assessment = verdict.assessed(
            language_model, tokenizer, steering, data, seed=seed, cache=cache
        )
    path = steering.save_pretrained(output)
    tuned.plot(path / FIGURE)
    if as_json:
        facts = {} if assessment is None else {"assessment": assessment.facts}
        out.print_json(data={"path": str(path), **tuned.facts, **facts})
        verdict.require(assessment, require_effect)
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
        verdict.show(assessment)
    verdict.require(assessment, require_effect)


def _list(text: str, kind: Callable[[str], N], option: str, such_as: str) -> list[N]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} takes numbers such as {such_as}; got '{text}'.") from None
