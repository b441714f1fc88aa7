"""`odesteer inspect`: the contents of a steering."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import odesteer as ods
from odesteer.cli import options
from odesteer.cli.console import out, teaching_errors

if TYPE_CHECKING:
    from odesteer.steering import LayerSteering


@teaching_errors
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A directory written by `odesteer fit`.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Show a saved steering: method, layer, dose, calibration and what was measured.

    Example: odesteer inspect cheerful
    """
    parts = ods.load(path).parts
    if as_json:
        described = [
            {key: _jsonable(value) for key, value in _facts(part).items()} for part in parts
        ]
        out.print_json(data=described[0] if len(parts) == 1 else {"parts": described})
        return
    for part in parts:
        _print(path, part)


def _facts(steering: "LayerSteering") -> dict[str, Any]:
    return {
        "method": steering.method,
        "layer": steering.layer,
        "site": steering.site,
        "hidden size": steering.hidden_size,
        "dose": str(steering.dose),
        "positions": steering.positions,
        "solver": f"{steering.solver}, {steering.steps} steps",
        "field": type(steering.field).__name__,
        "barrier": type(steering.field.barrier).__name__ if steering.field.barrier else "none",
        "calibration": f"P = sigmoid({steering.calibration.scale:.4g} h "
        f"{steering.calibration.offset:+.4g})",
        "certificate": _certificate(steering),
        "highest coverage": _highest_coverage(steering),
        **{f"model {key}": value for key, value in steering.model.items() if value is not None},
        **{key: value for key, value in steering.hyperparameters.items() if value is not None},
        **{f"KL {key}": value for key, value in _table(steering, "kl").items()},
        **{f"held-out {key}": value for key, value in _table(steering, "held_out").items()},
    }


def _certificate(steering: "LayerSteering") -> dict[str, Any]:
    """Return what is certified of P under a change of the activation (JSON values).

    `radius`: whether each activation has one, which `odesteer score` shows; `lipschitz`: the most
    that its log-odds change per unit, where that is bounded; `reason`: why there is no radius.
    """
    import torch

    slope = None
    try:
        steering.radius(torch.ones(1, steering.hidden_size or 1))
    except ValueError as error:
        return {"radius": False, "lipschitz": None, "reason": str(error)}
    with suppress(ValueError):
        slope = steering.calibration.scale * float(steering.barrier.lipschitz())
    return {"radius": True, "lipschitz": slope, "reason": None}


def _highest_coverage(steering: "LayerSteering") -> float | None:
    """Return the highest coverage that a target can have, or None where no rows were held out."""
    shares = () if steering.coverage is None else steering.coverage.toward.share
    return round(shares[-1], 4) if shares else None


def _shown(value: Any) -> str:
    if not isinstance(value, dict) or "lipschitz" not in value:
        return str(value)
    if not value["radius"]:
        return f"no radius: {value['reason']}"
    slope = value["lipschitz"]
    most = "" if slope is None else f"log-odds change by at most {slope:.4g} per unit of ||a||; "
    return f"{most}each activation has a radius (odesteer score)"


def _print(path: Path, steering: "LayerSteering") -> None:
    table = Table(title=str(path), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for key, value in _facts(steering).items():
        table.add_row(key, escape(_shown(value)))
    out.print(table)
    if layers := _table(steering, "layers"):
        try:
            out.print(layer_table(layers, steering.layer))
        except (KeyError, TypeError, ValueError):
            out.print("Its record of the other layers is damaged.")


def _table(steering: "LayerSteering", receipt: str) -> dict[str, Any]:
    """Return a receipt with several entries; a file may hold anything under that name."""
    value = steering.receipts.get(receipt)
    return value if isinstance(value, dict) else {}


def layer_table(layers: dict[str, dict[str, float]], chosen: int | None) -> Table:
    """Tabulate held-out quality by layer, with the chosen one marked."""
    if all("margin" in quality for quality in layers.values()):
        table = Table(title="Held-out margin by layer, at equal KL")
        columns = {"margin": "margin (nats a token)"}
    else:
        table = Table(title="Held-out quality of the barrier by layer")
        columns = {"auc": "AUC", "log_loss": "log-loss", "ece": "calibration error"}
    for heading in ("layer", *columns.values(), ""):
        table.add_column(heading, justify="right")
    for index, quality in layers.items():
        is_chosen = int(index) == chosen
        table.add_row(
            index,
            *(f"{quality[key]:.3f}" for key in columns),
            "chosen" if is_chosen else "",
            style="bold green" if is_chosen else None,
        )
    return table


def _jsonable(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value
