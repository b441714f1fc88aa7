"""`odesteer eval`: tasks of lm-evaluation-harness, without and with a steering."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import out, parse_dose, say, stoppable, teaching_errors


@teaching_errors
def evaluate(
    model: options.Model,
    steering: options.SavedSteering,
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
    coverage: options.Coverage = None,
    positions: Annotated[
        str | None,
        typer.Option(
            help="Steer the `continuation` and the token before it, or `all` tokens; by default "
            "those that it was fitted for."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents per task.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, help="Examples in the prompt.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Requests per batch.")] = 8,
    folder: Annotated[
        Path | None, typer.Option("--include", help="A directory with task files of your own.")
    ] = None,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Compare tasks of lm-evaluation-harness without and with a steering, in pairs.

    Example: odesteer eval smollm2 -s truthful --tasks arc_easy --angle 0.2 --limit 200
    """
    dose = parse_dose(strength, angle, target, coverage)
    try:
        steered_lm = library.lm_eval.SteeredLM
    except ImportError:
        raise ImportError(
            'odesteer eval needs lm-evaluation-harness: pip install "odesteer[eval]".'
        ) from None
    paired = library.lm_eval.paired
    # The harness warns of every model that it did not load.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = ods.load(steering)
    loaded = loaded if dose is None else loaded.with_strength(dose)
    language_model, tokenizer = library.load_model(model, say)
    harness_model = steered_lm(
        language_model,
        loaded,
        positions=positions,
        tokenizer=tokenizer,
        batch_size=batch_size,
    )
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    task_folder = None if folder is None else str(folder)
    with stoppable("Nothing was kept; the same command begins anew, --limit makes it shorter."):
        results = paired(harness_model, names, limit, shots, task_folder, seed)
    if as_json:
        rows = [{**delta._asdict(), "delta": delta.delta._asdict()} for delta in results]
        about = harness_model.get_model_info()
        out.print_json(data={"model": about, "metrics": rows}, default=str)
        return
    where = positions or loaded.positions
    table = Table(title=f"{loaded.method} at layer {loaded.layer}, {loaded.dose}, {where}")
    for heading in ("task", "metric", "unsteered", "steered", "difference [95 %]", "n"):
        table.add_column(heading, justify="left" if heading in ("task", "metric") else "right")
    for row in results:
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
