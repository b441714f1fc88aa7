"""Steering of a command: loaded from a directory or fitted now."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from odesteer.cli.console import progress, reading, say, warn

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
    positions: str,
    seed: int = 0,
    cache: bool = False,
    columns: str | None = None,
    solver: str | None = None,
    steps: int | None = None,
    refits: bool = False,
) -> "tuple[Any, Any, Steering]":
    """Model, tokenizer and steering; the cheap parts first, so that their errors come at once.

    `refits`: whether a contrast may come with a saved steering, for what is fitted later.
    """
    if (path is None) == (method is None):
        raise ValueError(
            "Give a steering (--steering DIR, from `odesteer fit`) or a method to fit now "
            "(--method caa)" + (", not both." if path else ".")
        )
    if path is not None and contrast is not None and not refits:
        raise ValueError("--contrast is for --method; a saved steering is fitted already.")
    import odesteer as ods
    from odesteer.methods import find_method
    from odesteer.models.hooks.attach import check_fits
    from odesteer.models.hooks.positions import check_positions
    from odesteer.models.loading import load_model

    check_positions(positions)
    check_solver(solver)
    one: Steering
    if path is not None:
        one = ods.load(path)
        language_model, tokenizer = load_model(model, say)
    else:
        name = str(method)
        find_method(name)
        blocks = as_layers(layer)
        if spread and isinstance(blocks, int):
            raise ValueError(f"--spread is for several layers; got --layer {layer}.")
        data = read_contrast(contrast, columns=columns)
        language_model, tokenizer = load_model(model, say)
        with reading(cache), progress("Reading texts and fitting") as callback:
            one = ods.fit(
                language_model,
                tokenizer,
                data,
                method=name,
                layer=blocks,
                seed=seed,
                progress=callback,
                cache=cache,
            )
        say(f"Fitted {one.method} at layer {one.layer}.")
    for part in one.parts:
        check_fits(part, language_model)
    if path is not None:
        # What is left are differences that steering survives, but may suffer from.
        for difference in one.compatibility(language_model, tokenizer):
            warn(f"this steering was fitted on another {difference}.")
    return language_model, tokenizer, with_solver(with_dose(one, dose, spread), solver, steps)


def read_contrast(path: Path | None, template: str = "auto", columns: str | None = None) -> Any:
    """A contrast file, or the moods that come with the package (towards melancholy)."""
    import odesteer as ods

    if path is None:
        from odesteer.evaluation.demo import contrast

        return contrast()[0]
    # A shell passes "\\n" as two characters.
    template = template.replace("\\n", "\n")
    return ods.Contrast.from_file(path, template, as_columns(columns))


def as_columns(columns: str | None) -> dict[str, str] | None:
    """`positive=chosen,negative=rejected` as a dictionary.

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


def pairs(given: list[str], option: str, form: str = "NAME=VALUE") -> dict[str, str]:
    """`NAME=VALUE` of an option that may be repeated.

    Raises:
        ValueError: for anything else, or a name that is given twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not (name and equals and value):
            raise ValueError(
                f"{option} takes {form}, such as truthful=runs/truthful; got '{text}'."
            )
        if name in found:
            raise ValueError(f"{option} names '{name}' twice.")
        found[name] = value
    return found


def as_layers(layer: str) -> int | str | list[int]:
    """`auto`, an index, or several with commas.

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


def with_solver(one: "Steering", solver: str | None, steps: int | None) -> "Steering":
    """The steering with its ODE solved otherwise, at every layer."""

    wanted = {"solver": solver, "steps": steps}
    return one.replace(**{key: value for key, value in wanted.items() if value is not None})


def check_solver(solver: str | None) -> None:
    """ValueError for a name that is none."""
    from odesteer.steering.layer_steering import find_solver

    if solver is not None:
        find_solver(solver)


def with_dose(one: "Steering", dose: "Dose | float | None", spread: bool) -> "Steering":
    """The steering at the dose asked for, at every layer or shared out over them."""
    if not spread:
        return one if dose is None else one.with_strength(dose)
    if len(one.parts) == 1:
        raise ValueError(f"--spread is for several layers; this steering has one, {one.layer}.")
    return one.spread(one.strength if dose is None else dose)
