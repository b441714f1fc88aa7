"""`odesteer generate` and `odesteer chat`: text from a steered model."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from odesteer.cli import options
from odesteer.cli.console import err, out, parse_dose, progress, teaching_errors
from odesteer.cli.source import obtain

if TYPE_CHECKING:
    from odesteer.backends.base import AnySteering


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
    spread: options.Spread = False,
    positions: options.Positions = "last+generated",
    max_new_tokens: options.MaxNewTokens = 48,
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
    dose = parse_dose(strength, angle, target)
    language_model, tokenizer, one = obtain(
        model, steering, method, contrast, layer, dose, spread, positions, seed, cache, columns
    )
    import odesteer as ods

    backend = ods.TransformersBackend(language_model, tokenizer, positions=positions)
    sampling = ods.Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    with progress("Generating") as callback:
        steered = backend.generate(prompts, one, sampling, callback)
        plain = (
            backend.generate(prompts, None, sampling, callback)
            if compare
            else [None] * len(prompts)
        )
    if as_json:
        rows = [
            {"prompt": p, "generation": s, **({"unsteered": u} if compare else {})}
            for p, s, u in zip(prompts, steered, plain, strict=True)
        ]
        typer.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    if not compare:
        for text in steered:
            typer.echo(text)
        return
    table = Table(show_lines=True)
    for heading in ("prompt", "unsteered", f"{one.method}, {one.dose}"):
        table.add_column(heading, overflow="fold")
    for row in zip(prompts, plain, steered, strict=True):
        table.add_row(*[str(cell) for cell in row])
    out.print(table)


HELP = "/strength 5   /angle 0.3   /target 0.9   /off   /on   /reset   /help   /quit"


@teaching_errors
def chat(
    model: options.Model,
    steering: options.SteeringPath = None,
    method: options.MethodNow = None,
    contrast: options.ContrastNow = None,
    columns: options.Columns = None,
    layer: options.Layer = "auto",
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    spread: options.Spread = False,
    positions: options.Positions = "last+generated",
    max_new_tokens: options.MaxNewTokens = 200,
    cache: options.Cache = True,
) -> None:
    """Chat with a steered model; the dose can be changed while talking.

    Example: odesteer chat smollm2 -s cheerful --angle 0.2
    """
    dose = parse_dose(strength, angle, target)
    language_model, tokenizer, one = obtain(
        model,
        steering,
        method,
        contrast,
        layer,
        dose,
        spread,
        positions,
        cache=cache,
        columns=columns,
    )
    from transformers import TextStreamer

    if tokenizer.chat_template is None:
        raise ValueError("Chat needs a model with a chat template; use `odesteer generate`.")
    err.print(f"[dim]{one.method} at layer {one.layer}, {one.dose}\n{HELP}[/]")
    messages: list[dict[str, str]] = []
    on = True
    while True:
        try:
            line = out.input("[bold cyan]you>[/] ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if line in ("/quit", "/exit"):
            return
        if line.startswith("/"):
            one, on = _command(line, one, on, messages)
            continue
        if not line:
            continue
        messages.append({"role": "user", "content": line})
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(language_model.device)
        streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        handle = one.attach(language_model, positions=positions, measure=on)
        with handle:
            if not on:
                handle.set_strength(0.0)
            try:
                output = language_model.generate(
                    **inputs,
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    streamer=streamer,
                    pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
                )
            except KeyboardInterrupt:  # stops the answer, not the chat
                out.print()
                messages.pop()
                continue
        reply = tokenizer.decode(
            output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        messages.append({"role": "assistant", "content": reply})
        if on:
            err.print(f"[dim]{_summary(handle.stats())}[/]")


def _summary(stats: dict[str, float]) -> str:
    line = f"{stats['steered']:.0f} tokens, moved {stats['moved']:.0%}"
    line += f", by {stats['relative_displacement']:.2f} of their norm"
    if "log_odds_before" in stats:
        line += f"; log-odds {stats['log_odds_before']:+.1f} -> {stats['log_odds_after']:+.1f}"
    return line


def _command(
    line: str, steering: "AnySteering", on: bool, messages: list[dict[str, str]]
) -> "tuple[AnySteering, bool]":
    name, _, value = line[1:].partition(" ")
    if name in ("off", "on"):
        on = name == "on"
    elif name == "reset":
        messages.clear()
    elif name in ("strength", "angle", "target"):
        try:
            steering = steering.with_strength(_dose(name, _number(name, value), steering))
        except ValueError as error:
            err.print(f"[red]{error}[/]")
            return steering, on
    else:
        err.print(f"[dim]{HELP}[/]")
        return steering, on
    err.print(f"[dim]{steering.dose if on else 'unsteered'}[/]")
    return steering, on


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"/{name} takes a number; got '{text}'.") from None


def _dose(name: str, value: float, steering: "AnySteering") -> Any:
    if name == "target":
        budget = getattr(steering.strength, "budget", steering.strength)
        from odesteer.ode import Target

        return Target(value, budget=budget)
    return parse_dose(value, None, None) if name == "strength" else parse_dose(None, value, None)
