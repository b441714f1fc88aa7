"""`odesteer generate`: text from a steered model."""

from typing import Annotated, Any

import typer

from odesteer.cli import options
from odesteer.cli.console import (
    out,
    parse_dose,
    parse_kl,
    progress,
    show_answers,
    teaching_errors,
)
from odesteer.cli.load_steering import load_or_fit


@teaching_errors
def generate(
    model: options.Model,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One or more prompts.")],
    steering: options.SteeringPath = None,
    method: options.MethodNow = None,
    contrast: options.ContrastNow = None,
    columns: options.Columns = None,
    layer: options.Layer = "auto",
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    coverage: options.Coverage = None,
    kl: options.KL = None,
    spread: options.Spread = False,
    solver: options.Solver = None,
    steps: options.Steps = None,
    positions: options.Positions = None,
    max_new_tokens: options.MaxNewTokens = 64,
    temperature: options.Temperature = 0.0,
    compare: Annotated[bool, typer.Option(help="Also print the unsteered text.")] = False,
    cache: options.Cache = True,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Generate with a steering, saved or fitted now.

    Example: odesteer generate smollm2 "How was the trip?" -s cheerful --angle -0.2 --compare

    Example: odesteer generate smollm2 "How was the trip?" --method mimic --layer 14
    """
    dose = parse_dose(strength, angle, target, coverage)
    budget = parse_kl(kl, dose)
    language_model, tokenizer, loaded = load_or_fit(
        model,
        steering,
        method,
        contrast,
        layer,
        dose,
        spread,
        positions,
        seed,
        cache,
        columns,
        solver,
        steps,
        budget=budget,
    )
    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    if not compare:
        with progress("Generating") as callback:
            texts = loaded.generate(
                language_model,
                tokenizer,
                prompts,
                positions=positions,
                progress=callback,
                **sampling,
            )
        if as_json:
            pairs = zip(prompts, texts, strict=True)
            out.print_json(data=[{"prompt": p, "generation": text} for p, text in pairs])
        else:
            for text in texts:
                typer.echo(text)
        return
    with progress("Generating") as callback:
        both = loaded.compare(
            language_model, tokenizer, prompts, positions=positions, progress=callback, **sampling
        )
    if as_json:
        rows = zip(prompts, both.steered, both.unsteered, strict=True)
        out.print_json(data=[{"prompt": p, "generation": s, "unsteered": u} for p, s, u in rows])
        return
    for prompt, answers in both.rows():
        show_answers(prompt, answers)
