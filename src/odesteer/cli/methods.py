"""`odesteer methods`: the methods and what each computes."""

import inspect
import re
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import out, say, teaching_errors
from odesteer.common import catalogue
from odesteer.common.registry import plugins

if TYPE_CHECKING:
    from odesteer.methods import Method

WHICH = f"""Which one? If in doubt {catalogue.DEFAULT_METHOD}, the default, and caa beside it.
  {catalogue.DEFAULT_METHOD}: also detects (`score`), stops at a target, composes by & | ~
  caa: one vector, hard to beat; what other libraries read (`export`)
  odesteer-trained, natural-gradient: learn through the model; slower
  iti-heads: moves attention heads
  mimic, linear-act: move whole distributions; try a strength well below 1
  none, random: what any of them is to be compared with"""


@teaching_errors
def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="One method, with everything about it.",
            autocompletion=options.among(catalogue.METHODS),
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """List every method, or show one: field, barrier, exact flow, solver, strength, source.

    Example: odesteer methods odesteer
    """
    if name is not None:
        method = library.find_method(name)
        if as_json:
            out.print_json(data=facts_of(method))
        else:
            _show(method)
        return
    # A method of another package that is broken must not hide the others.
    others = {name: _of_others(name) for name in plugins(library.GROUP) if name not in ods.METHODS}
    listed = [*ods.METHODS.values(), *(m for m in others.values() if not isinstance(m, str))]
    rows = [facts_of(method) for method in listed]
    for error in others.values():
        if isinstance(error, str):
            say(error)
    if as_json:
        out.print_json(data=rows)
        return
    table = Table(box=None, padding=(0, 2, 1, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for row in rows:
        default = " (default)" if row["default"] else ""
        table.add_row(row["name"] + default, _lines(row))
    out.print(escape(WHICH), end="\n\n")
    out.print("Steering solves da/dt = v(a), a(0) = a, up to the strength.\n")
    out.print(table)
    out.print("Everything about one, with its hyperparameters: [bold]odesteer methods NAME[/]")


def _of_others(name: str) -> "type[Method] | str":
    """Load another package's method, or return the reason why it cannot be loaded."""
    try:
        return library.find_method(name)
    except ValueError as error:
        return str(error)


def facts_of(method: "type[Method]") -> dict[str, Any]:
    """Return everything about a method as JSON values."""
    return {
        "name": method.name,
        "default": method.name == catalogue.DEFAULT_METHOD,
        **method.facts._asdict(),
        "steps": _default(method, "steps"),
        "solver": _default(method, "solver"),
        "default_strength": str(library.as_dose(method.default_strength)),
        "needs_pairs": method.needs_pairs,
        "site": method.site,
        "hyperparameters": {
            field.name: _plain(_default(method, field.name))
            for field in fields(method)
            if field.name not in ("steps", "solver")
        },
    }


def _default(method: "type[Method]", name: str) -> Any:
    field = next(field for field in fields(method) if field.name == name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    # A method as a hyperparameter (the safety filter's barrier) is written by its name.
    return list(value) if isinstance(value, tuple) else getattr(value, "name", value)


def _solved(row: dict[str, Any]) -> str:
    return f"{row['solver']}, {row['steps']} step{'s' if row['steps'] > 1 else ''}"


def _lines(row: dict[str, Any]) -> str:
    notes = [_solved(row), f"strength: {row['strength']}"]
    notes += ["keeps the norm"] if row["keeps_norm"] else ["norm not kept"]
    notes += ["needs pairs"] if row["needs_pairs"] else ["no pairs needed"]
    notes += ["moves attention heads"] if row["site"] == "heads" else []
    barrier = "none" if row["barrier"] == "-" else row["barrier"]
    lines = [
        f"h(a): {barrier}",
        f"exact flow: {row['exact']}",
        " · ".join(notes),
        f"source: {row['source']}",
    ]
    return f"v(a) = {escape(row['field'])}\n[dim]{escape(chr(10).join(lines))}[/]"


def in_words(row: dict[str, Any]) -> dict[str, str]:
    """Describe the facts without the hyperparameters: label and text."""
    return {
        "field v(a)": row["field"],
        "barrier h(a)": "none" if row["barrier"] == "-" else row["barrier"],
        "exact flow": row["exact"],
        "solved by": _solved(row),
        "strength": f"{row['strength']} (default: {row['default_strength']})",
        "norm": "kept" if row["keeps_norm"] else "not kept",
        "data": "pairs: row i of both classes answers one prompt" if row["needs_pairs"] else "any",
        "moves": "attention heads" if row["site"] == "heads" else "the output of a block",
        "source": row["source"],
    }


def prose_of(method: "type[Method]") -> str:
    """Return the docstring up to its sections."""
    text = inspect.cleandoc(method.__doc__ or "")
    return re.split(r"\n\s*(?:Args|Raises):", text)[0].strip()


def _show(method: "type[Method]") -> None:
    row, meanings = facts_of(method), argument_meanings(method)
    # The terminal has another width than the source.
    paragraphs = [" ".join(part.split()) for part in prose_of(method).split("\n\n")]
    out.print(f"[bold]{method.name}[/]", end="\n\n")
    out.print("\n\n".join(escape(paragraph) for paragraph in paragraphs), end="\n\n")
    about = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    about.add_column(style="bold", no_wrap=True)
    about.add_column(overflow="fold")
    for label, value in in_words(row).items():
        about.add_row(label, escape(value))
    out.print(about)
    if not row["hyperparameters"]:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), title="Hyperparameters", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("default", no_wrap=True)
    table.add_column("meaning", overflow="fold")
    for name, default in row["hyperparameters"].items():
        table.add_row(name, escape(str(default)), escape(meanings.get(name, "")))
    out.print()
    out.print(table)


def argument_meanings(method: "type[Method]") -> dict[str, str]:
    """Collect the descriptions of hyperparameters from a method's and its parents' docstrings."""
    meanings: dict[str, str] = {}
    for cls in reversed(method.__mro__):
        section = re.search(
            r"^Args:\n(.*?)(?=^\S|\Z)",
            inspect.cleandoc(cls.__dict__.get("__doc__") or ""),
            re.S | re.M,
        )
        if section is None:
            continue
        entries = re.split(r"^    (?=\S)", section[1], flags=re.M)[1:]
        for names, text in (entry.split(":", 1) for entry in entries):
            meanings |= dict.fromkeys(re.split(r",\s*", names), " ".join(text.split()))
    return meanings
