"""`odesteer fit`: texts to a steering on disk."""

from pathlib import Path
from typing import Annotated

import typer

from odesteer.cli import options
from odesteer.cli.console import out, parse_dose, progress, say, teaching_errors


@teaching_errors
def fit(
    model: options.Model,
    contrast: Annotated[
        Path,
        typer.Argument(
            metavar="CONTRAST",
            help="JSONL: `positive` and `negative` (and `prompt`) a line, or `text` and `label`.",
        ),
    ],
    output: Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")],
    method: Annotated[
        str,
        typer.Option(
            help="none, caa, iti, odesteer, odesteer-paper, odesteer-one-step or odesteer-fourier."
        ),
    ] = "odesteer",
    layer: Annotated[
        str, typer.Option(help="Block index, negative from the end, or `auto`: by held-out loss.")
    ] = "auto",
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    template: Annotated[
        str,
        typer.Option(help='auto, chat, plain, or a format such as "Q: {prompt}\\nA: {response}".'),
    ] = "auto",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Learn a steering from positive and negative texts.

    Example: odesteer fit smollm2 pairs.jsonl --layer 14 --angle 0.3 --out cheerful
    """
    # What can be wrong is checked before anything slow happens.
    dose = parse_dose(strength, angle, target)
    block: int | str = layer if layer == "auto" else _as_index(layer)
    import odesteer as ods
    from odesteer.lookup import pick
    from odesteer.models import load_model

    pick(ods.METHODS, method, "method")
    # A shell passes "\\n" as two characters.
    data = ods.Contrast.from_jsonl(contrast, template=template.replace("\\n", "\n"))
    language_model, tokenizer = load_model(model, say)
    with progress("Reading texts and fitting") as callback:
        steering = ods.fit(
            language_model,
            tokenizer,
            data,
            method=method,
            layer=block,
            strength=dose,
            seed=seed,
            progress=callback,
        )
    path = steering.save_pretrained(output)
    held_out = steering.receipts.get("held_out", {})
    if as_json:
        out.print_json(
            data={"path": str(path), "layer": steering.layer, "method": method, **held_out}
        )
        return
    out.print(f"Wrote {path}: {method} at layer {steering.layer}, {steering.dose}")
    if held_out:
        out.print(
            f"On held-out groups: AUC {held_out['auc']:.3f}, log-loss {held_out['log_loss']:.3f} "
            f"(chance 0.693), calibration error {held_out['ece']:.3f}, n = {held_out['n']}"
        )


def _as_index(layer: str) -> int:
    try:
        return int(layer)
    except ValueError:
        raise ValueError(f"--layer is a block index or 'auto'; got '{layer}'.") from None
