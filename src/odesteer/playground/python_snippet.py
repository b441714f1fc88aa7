"""Python snippet that reproduces the page's state."""

import re

from odesteer.models.chat_template import Messages
from odesteer.playground.library import SteeringLibrary
from odesteer.playground.settings import AS_LEARNT, STRENGTH, TARGET, Controls
from odesteer.steering.expression import NAME


def python(setting: Controls, shelf: SteeringLibrary, model: str, prompt: str | Messages) -> str:
    """A script from loading the model to printing the steered text.

    Args:
        setting: the controls.
        shelf: what its expression names.
        model: what `load_model` is to load.
        prompt: text or chat messages.

    Raises:
        ValueError: for a name that is not on the shelf.
    """
    imports: list[str] = []
    made: list[str] = []
    names: dict[str, str] = {}
    used = setting.used(shelf)
    for name, source in used.items():
        lines, call = source.python(setting.method, setting.place(shelf))
        imports += [line for line in lines if line not in imports]
        names[name] = _variable(name, names)
        made.append(f"{names[name]} = {call}")
    whole = NAME.sub(lambda match: names[match[0]], setting.expression.strip())
    whole = whole if NAME.fullmatch(setting.expression.strip()) else f"({whole})"
    made.append(f"steering = {whole}.with_strength({_dose(setting)})")
    changes = [] if setting.solver == AS_LEARNT else [f"solver={setting.solver!r}"]
    changes += [f"steps={int(setting.steps)}"] if setting.steps else []
    if changes:
        made.append(f"steering = steering.replace({', '.join(changes)})")
    sampling = [f"max_new_tokens={setting.max_new_tokens}"]
    if setting.temperature > 0:
        sampling += [f"temperature={setting.temperature:g}", f"seed={setting.seed}"]
    lines = [
        "import odesteer as ods",
        *sorted([*imports, "from odesteer.models.loading import load_model"]),
        "",
        f"model, tokenizer = load_model({model!r})",
        *made,
        "",
        f"prompt = {_literal(prompt)}",
        f"backend = ods.TransformersBackend(model, tokenizer, positions={setting.positions!r})",
        f"sampling = ods.Sampling({', '.join(sampling)})",
        "print(backend.generate([prompt], steering, sampling)[0])",
    ]
    return "\n".join(lines) + "\n"


def _variable(name: str, taken: dict[str, str]) -> str:
    """A Python name for a steering's, which no other one has."""
    variable = re.sub(r"\W", "_", name)
    variable = f"_{variable}" if variable[0].isdigit() else variable
    while variable in {"model", "tokenizer", "steering", "prompt", "ods", *taken.values()}:
        variable += "_"
    return variable


def _dose(setting: Controls) -> str:
    if setting.dose == STRENGTH:
        return f"{setting.amount:g}"
    angle = f"ods.Angle({setting.amount:g})"
    return f"ods.Target({setting.probability:g}, {angle})" if setting.dose == TARGET else angle


def _literal(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return repr(prompt)
    return "[\n" + "".join(f"    {dict(message)!r},\n" for message in prompt) + "]"
