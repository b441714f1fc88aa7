"""`odesteer fit`: texts to a steering on disk."""

from typing import Annotated

import typer

import odesteer as ods
from odesteer.cli import library, options, verdict
from odesteer.cli.console import out, parse_dose, parse_kl, progress, reading, say, teaching_errors
from odesteer.cli.load_steering import (
    as_layers,
    check_solver,
    read_chosen,
    with_dose,
    with_solver,
)
from odesteer.common import catalogue


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
        steering, assessment = verdict.assessed(
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
        verdict.require(assessment, require_effect)
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
        verdict.show(assessment)
    verdict.require(assessment, require_effect)
