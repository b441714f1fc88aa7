"""Steering of a command: loaded from a directory or fitted now."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import odesteer as ods
from odesteer.cli import library
from odesteer.cli.console import progress, reading, say, warn
from odesteer.common.catalogue import BEHAVIOURS

if TYPE_CHECKING:
    from odesteer.ode import Dose
    from odesteer.steering import Steering


def load_or_fit(
    model: str,
    path: Path | None,
    method: str | None,
    contrast: Path | None,
    layer: str,
    dose: "Dose | float | None",
    spread: bool,
    positions: str | None,
    seed: int = 0,
    cache: bool = False,
    columns: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    refits: bool = False,
    budget: "ods.KL | None" = None,
) -> "tuple[Any, Any, Steering]":
    """Return model, tokenizer and steering, after checking all that is cheap to check.

    `refits`: whether a contrast may come with a saved steering, for later fits.
    """
    if (path is None) == (method is None):
        raise ValueError(
            "Give a steering (--steering DIR, from `odesteer fit`) or a method to fit now "
            "(--method caa)" + (", not both." if path else ".")
        )
    if path is not None and contrast is not None and not refits:
        raise ValueError("--contrast is for --method; a saved steering is fitted already.")
    if path is not None and budget is not None:
        raise ValueError(
            "--kl is measured when a steering is fitted, and this one is: give --angle, or fit it "
            "with `odesteer fit --kl`."
        )
    if positions is not None:
        library.PositionRule.parse(positions)
    check_solver(solver)
    steering: Steering
    if path is not None:
        steering = ods.load(path)
        language_model, tokenizer = library.load_model(model, say)
    else:
        name = str(method)
        library.find_method(name)
        blocks = as_layers(layer)
        if spread and isinstance(blocks, int):
            raise ValueError(f"--spread is for several layers; got --layer {layer}.")
        data = read_contrast(contrast, columns=columns)
        language_model, tokenizer = library.load_model(model, say)
        with reading(cache), progress("Reading texts and fitting") as callback:
            steering = ods.fit(
                language_model,
                tokenizer,
                data,
                method=name,
                layer=blocks,
                strength=budget if dose is None else dose,
                seed=seed,
                progress=callback,
                positions=positions,
                cache=cache,
            )
        say(f"Fitted {steering.method} at layer {steering.layer}.")
    for part in steering.parts:
        library.check_fits(part, language_model)
    if path is not None:
        # The other differences do not prevent steering, but may harm it.
        for difference in steering.compatibility(language_model, tokenizer):
            warn(f"this steering was fitted on another {difference}.")
    return language_model, tokenizer, with_solver(with_dose(steering, dose, spread), solver, steps)


def read_contrast(
    path: Path | None,
    template: str = "auto",
    columns: str | None = None,
    format: str | None = None,
) -> Any:
    """Read a contrast file, or the packaged moods (towards melancholy)."""
    if path is None:
        return library.demo.contrast()[0]
    # A shell passes "\\n" as two characters.
    template = template.replace("\\n", "\n")
    return ods.Contrast.from_file(path, template, as_columns(columns), format)


def read_chosen(
    path: Path | None,
    behaviour: str | None,
    template: str = "auto",
    columns: str | None = None,
    format: str | None = None,
) -> Any:
    """Read a contrast file, or a packaged behaviour, of which one is given.

    Raises:
        ValueError: for neither, both, or a behaviour's name in place of a file.
    """
    if (path is None) == (behaviour is None):
        raise ValueError(
            "Give a contrast file, or --behaviour NAME (`odesteer behaviours` lists them)"
            + (", not both." if path else ".")
        )
    if behaviour is not None:
        return library.behaviours.load(behaviour)
    if str(path) in BEHAVIOURS and not Path(str(path)).exists():
        raise ValueError(
            f"There is no file '{path}'; the packaged behaviour is --behaviour {path}."
        )
    return read_contrast(path, template, columns, format)


def as_columns(columns: str | None) -> dict[str, str] | None:
    """Parse `positive=chosen,negative=rejected`.

    Raises:
        ValueError: for anything else.
    """
    if columns is None:
        return None
    pairs = [part.partition("=") for part in columns.split(",")]
    if not all(key.strip() and name.strip() for key, _, name in pairs):
        raise ValueError(
            f"--columns takes pairs such as positive=chosen,negative=rejected; got '{columns}'."
        )
    return {key.strip(): name.strip() for key, _, name in pairs}


def pairs(texts: list[str], option: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """Parse `NAME=VALUE` of an option that may be repeated.

    Raises:
        ValueError: for anything else, or a repeated name.
    """
    values: dict[str, str] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise ValueError(
                f"{option} takes {form}, such as truthful=runs/truthful; got '{text}'."
            )
        if name in values:
            raise ValueError(f"{option} names '{name}' twice.")
        values[name] = value
    return values


def as_layers(layer: str) -> int | str | list[int]:
    """Parse `auto`, an index, or several with commas.

    Raises:
        ValueError: for anything else.
    """
    if layer == "auto":
        return layer
    try:
        indices = [int(part) for part in layer.split(",")]
    except ValueError:
        raise ValueError(
            f"--layer is a block index, several with commas, or 'auto'; got '{layer}'."
        ) from None
    return indices[0] if len(indices) == 1 else indices


def with_solver(steering: "Steering", solver: str | None, steps: int | None) -> "Steering":
    """Replace solver and steps at every layer, where given."""
    changes = {"solver": solver, "steps": steps}
    return steering.replace(**{key: value for key, value in changes.items() if value is not None})


def check_solver(solver: str | None) -> None:
    """Raise ValueError for an unknown solver."""
    if solver is not None:
        library.find_solver(solver)


def with_dose(steering: "Steering", dose: "Dose | float | None", spread: bool) -> "Steering":
    """Set the dose, at every layer or shared out over them."""
    if not spread:
        return steering if dose is None else steering.with_strength(dose)
    if len(steering.parts) == 1:
        raise ValueError(
            f"--spread is for several layers; this steering has one, {steering.layer}."
        )
    return steering.spread(steering.strength if dose is None else dose)
