"""Methods, layers and doses named in an experiment file."""

from dataclasses import fields
from typing import Any

from odesteer.common.registry import resolve
from odesteer.evaluation.experiment.config import CHOOSE, OWN, PROMPT, Layer, MethodChoice, Named
from odesteer.evaluation.experiment.toml_reader import TomlTable
from odesteer.methods import GROUP, METHODS, Method
from odesteer.ode import Dose
from odesteer.steering.serialization.directory import dose_from_json


def named_of(table: TomlTable, key: str, given: Any) -> Named:
    if isinstance(given, str):
        return Named(given)
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError(
            f'{table.file}: {table.name(key)} is a name, or {{name = "...", argument = ...}}; got '
            f"{given!r:.80}."
        )
    return Named(given["name"], {name: value for name, value in given.items() if name != "name"})


def methods_of(table: TomlTable, dose_type: str) -> tuple[MethodChoice, ...]:
    def made(given: Any) -> MethodChoice:
        named = named_of(table, "methods", given)
        own = TomlTable(named.arguments, table.file, f"methods, {named.name}")
        kind = resolve({**METHODS, PROMPT: None}, named.name, "method", GROUP, Method)
        special = ("id", "label", "layers", "doses", "within")
        known = [] if kind is None else [each.name for each in fields(kind)]
        own.only([*special, *known])
        rest = {key: value for key, value in own.values.items() if key not in special}
        rest = {key: tuple(v) if isinstance(v, list) else v for key, v in rest.items()}
        if kind is not None:
            kind(**rest)  # refuses what it cannot be made of, in its own words
        one = own.one("id", str, named.name)
        return MethodChoice(
            named.name,
            one,
            own.one("label", str, one),
            layers_of(own, ()),
            doses_of(own, dose_type, ()),
            within_of(own, dose_type),
            rest,
        )

    methods = table.each("methods", made)
    ids = [method.id for method in methods]
    twice = next((one for one in ids if ids.count(one) > 1), None)
    if twice is not None:
        raise ValueError(
            f'{table.file}: methods has two rows with the id "{twice}"; give one of them another: '
            f'{{name = "{twice}", id = "{twice}-2"}}.'
        )
    return methods


def layers_of(table: TomlTable, otherwise: tuple[Layer | str, ...]) -> tuple[Layer | str, ...]:
    def made(value: Any) -> Layer | str:
        if value == CHOOSE:
            return CHOOSE
        if isinstance(value, list) and value and all(type(each) is int for each in value):
            return tuple(value)
        if type(value) is int:
            return value
        raise ValueError(
            f'a layer is a block index from 0, a list of them, or "choose"; got {value!r}'
        )

    return table.each("layers", made, None, otherwise)


def doses_of(
    table: TomlTable, dose_type: str, otherwise: tuple[Dose | str, ...]
) -> tuple[Dose | str, ...]:
    def made(value: Any) -> Dose | str:
        if value in (CHOOSE, OWN):
            return str(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return dose_from_json({"type": dose_type, "amount": float(value)})
        return dose_from_json(value)

    return table.each("doses", made, None, otherwise)


def within_of(table: TomlTable, dose_type: str) -> Dose | None:
    amount = table.one("within", float)
    if amount is None:
        return None
    if not amount > 0:
        raise table.wrong("within", "more than 0")
    return dose_from_json({"type": dose_type, "amount": amount})
