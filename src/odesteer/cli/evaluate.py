"""`odesteer eval`: tasks of lm-evaluation-harness, without and with a steering."""

import json
import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from odesteer.cli import options
from odesteer.cli.console import out, parse_dose, say, stoppable, teaching_errors


@teaching_errors
def evaluate(
    model: options.Model,
    steering: Annotated[
        Path, typer.Option("--steering", "-s", help="A directory written by `odesteer fit`.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            help="Names of lm-evaluation-harness, with commas; `transfer` is mmlu, arc_challenge "
            "and commonsense_qa."
        ),
    ] = "transfer",
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    positions: Annotated[
        str,
        typer.Option(help="Steer the `continuation` and the token before it, or `all` tokens."),
    ] = "continuation",
    limit: Annotated[int | None, typer.Option(min=1, help="Documents a task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples in the prompt.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests a batch.")] = 8,
    folder: Annotated[
        Path | None, typer.Option("--include", help="A directory with task files of your own.")
    ] = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """What a steering costs elsewhere: lm-evaluation-harness, asked twice, compared in pairs.

    Example: odesteer eval smollm2 -s truthful --tasks arc_easy --angle 0.2 --limit 200
    """
    dose = parse_dose(strength, angle, target)
    try:
        from odesteer.integrations.lm_eval import SteeredLM
    except ImportError:
        raise ImportError(
            'odesteer eval needs lm-evaluation-harness: pip install "odesteer[eval]".'
        ) from None
    from odesteer.integrations.lm_eval_paired import paired
    from odesteer.models.loading import load_model
    from odesteer.steering import load

    # The harness remarks on every model that was not loaded by itself.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    one = load(steering)
    one = one if dose is None else one.with_strength(dose)
    language_model, tokenizer = load_model(model, say)
    asked = SteeredLM(
        language_model,
        one,
        positions=positions,
        tokenizer=tokenizer,
        batch_size=batch_size,
    )
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    own = None if folder is None else str(folder)
    with stoppable("Nothing was kept; the same command begins anew, --limit makes it shorter."):
        found = paired(asked, names, limit, shots, own, seed)
    if as_json:
        rows = [{**delta._asdict(), "delta": delta.delta._asdict()} for delta in found]
        about = asked.get_model_info()
        typer.echo(json.dumps({"model": about, "metrics": rows}, indent=2, default=str))
        return
    table = Table(title=f"{one.method} at layer {one.layer}, {one.dose}, {positions}")
    for heading in ("task", "metric", "unsteered", "steered", "difference [95 %]", "n"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for row in found:
        low, high = row.delta.low, row.delta.high
        mark = "*" if row.significant else ""
        table.add_row(
            row.task,
            f"{row.metric} ({row.better} is better)",
            f"{row.unsteered:.3f}",
            f"{row.steered:.3f}",
            f"{row.delta.mean:+.3f} [{low:+.3f}, {high:+.3f}]{mark}",
            str(row.delta.n),
        )
    out.print(table)
    out.print("* the interval does not hold 0; not corrected for several metrics.")
