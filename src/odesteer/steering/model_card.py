"""Model card of a saved steering.

A README.md in Markdown with the front matter that the Hugging Face Hub reads: what the steering
is, its model, its data, its measurements, its use and its limits. It states only what the
configuration records, and omits what is not recorded.
"""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape, unescape
from typing import Any

from odesteer.common.files import bar, table, text

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_TAG = re.compile(r"[a-z0-9-]{1,40}")


def card(config: dict[str, Any], dose: str) -> str:
    """Render the README.md of a saved configuration at a dose in words."""
    parts = config.get("parts") or [config]
    model = _dict(config, "model")
    sections = [
        _front_matter(config, model),
        f"# Steering by `{text(config['method'])}` at layer {_layers(parts)}",
        _summary(model, parts, dose),
        _use(),
        "## What it is",
        table(("", ""), _facts(config, parts, model, dose)),
        *_by_layer(parts),
        *_data(parts[0]),
        *(_measured(parts[0]) if len(parts) == 1 else ()),
        *_tuned(parts[0]),
        _limits(),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def html(config: dict[str, Any], dose: str) -> str:
    """Render the facts of a configuration as a table for notebooks, everything escaped."""
    parts = config.get("parts") or [config]
    quality = _dict(parts[0], "receipts", "held_out") if len(parts) == 1 else {}
    verdict = _dict(parts[0], "receipts", "assessment").get("verdict")
    facts = [
        *_facts(config, parts, _dict(config, "model"), dose),
        *((f"held-out {key}", value) for key, value in quality.items()),
        ("verdict", verdict),
    ]
    rows = "".join(
        f"<tr><th>{escape(key.replace('`', ''))}</th><td>{escape(_bare(value))}</td></tr>"
        for key, value in facts
        if value is not None
    )
    title = f"Steering by {config['method']} at layer {_layers(parts)}"
    return f"<p><b>{escape(title)}</b></p><table>{rows}</table>"


def _bare(value: Any) -> str:
    """Return a cell of the card without what is there for Markdown."""
    return unescape(text(value)).replace("\\|", "|").replace("`", "")


def _front_matter(config: dict[str, Any], model: dict[str, Any]) -> str:
    tags = ["activation-steering", "odesteer"]
    tags += [config["method"]] if _TAG.fullmatch(config["method"]) else []
    lines = ["---", "library_name: odesteer", "pipeline_tag: text-generation"]
    name = model.get("name")
    # A name without a namespace is a local directory's, unless the Hub gave it a revision.
    if isinstance(name, str) and (_HUB_NAME.fullmatch(name) or model.get("revision")):
        lines.append(f"base_model: {json.dumps(name)}")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags)), "---"]
    return "\n".join(lines)


def _summary(model: dict[str, Any], parts: Sequence[dict[str, Any]], dose: str) -> str:
    where = "blocks" if len(parts) > 1 else "block"
    what = (
        "the outputs of the attention heads of"
        if parts[0].get("site") == "heads"
        else "the output of"
    )
    return (
        f"Moves {what} decoder {where} {_layers(parts)} of `{text(model.get('name', 'a model'))}`"
        f" along da/dt = v(a), {text(dose)}. Nothing in these files is code."
    )


def _use() -> str:
    return """## Use

```python
import odesteer as ods

steering = ods.Steering.from_pretrained("this directory, or the name of this repository")
steering.compatibility(model, tokenizer)  # what differs from the model it was fitted on: []
with steering.attach(model):  # any transformers model; with_strength(...) changes the dose
    model.generate(**inputs)
```"""


def _facts(
    config: dict[str, Any], parts: Sequence[dict[str, Any]], model: dict[str, Any], dose: str
) -> Iterable[tuple[str, Any]]:
    first = parts[0]
    calibration = _dict(first, "calibration")
    yield "method", f"`{text(config['method'])}`"
    for key, value in _dict(first, "hyperparameters").items():
        if value is not None:
            yield f"`{text(key)}`", value
    yield "layer" if len(parts) == 1 else "layers", _layers(parts)
    yield "dose", dose
    if "positions" in first:
        yield "positions", f"`{text(first['positions'])}`"
    yield "solver", f"{first['solver']}, steps: {first['steps']}"
    yield "field", _kind(first["field"])
    if len(parts) == 1 and isinstance(first["field"].get("barrier"), dict):
        scale, offset = calibration.get("scale", 1.0), calibration.get("offset", 0.0)
        yield "barrier", _kind(first["field"]["barrier"])
        yield "calibration", f"P(positive) = sigmoid({scale:.4g} h {offset:+.4g})"
    for key, value in model.items():
        if value is not None:
            yield f"model: {key.replace('_', ' ')}", value
    yield "sha256 of the tensors", config.get("sha256")


def _by_layer(parts: Sequence[dict[str, Any]]) -> list[str]:
    if len(parts) == 1:
        return []
    rows = []
    for part in parts:
        quality = _dict(part, "receipts", "held_out")
        numbers = [quality.get(key, "") for key in ("auc", "log_loss", "ece")]
        rows.append((part["layer"], _dose(_dict(part, "dose")), *numbers))
    heading = ("layer", "dose", "held-out AUC", "log-loss", "calibration error")
    return ["## Its layers", table(heading, rows)]


def _data(part: dict[str, Any]) -> list[str]:
    receipts = _dict(part, "receipts")
    data = _dict(receipts, "data")
    facts = {
        "positive texts": data.get("positive"),
        "negative texts": data.get("negative"),
        "sha256 of the texts": data.get("sha256"),
        "rows learnt from": receipts.get("rows"),
        "tokens read": receipts.get("tokens"),
        "texts cut to the context": receipts.get("truncated"),
        "KL from the unsteered model, nats a token": _dict(receipts, "kl").get("measured"),
    }
    rows = [(key, value) for key, value in facts.items() if value is not None]
    return ["## What it was learnt from", table(("", ""), rows)] if rows else []


def _measured(part: dict[str, Any]) -> list[str]:
    """Tabulate held-out quality, the calibration curve and the layers compared."""
    receipts = _dict(part, "receipts")
    quality = _dict(receipts, "held_out")
    if not quality:
        return []
    words = {"auc": "AUC", "log_loss": "log-loss in nats (chance: 0.693)"}
    words |= {"ece": "expected calibration error", "n": "rows"}
    rows = [(words.get(key, key), value) for key, value in quality.items()]
    sections = [
        "## How well it tells the classes apart",
        "On groups of texts that were held out of the fit, both classes weighing the same.",
        table(("", ""), rows),
    ]
    curve = receipts.get("reliability")
    bins = [each for each in curve if _is_bin(each)] if isinstance(curve, list) else []
    if bins:
        shown = [
            (f"{b['probability']:.3f}", f"{b['frequency']:.3f}", bar(b["frequency"]), b["n"])
            for b in bins
        ]
        sections += [
            "Calibration: of the rows given the probability P, so many were positive.",
            table(("P(positive)", "were positive", "", "rows"), shown),
        ]
    layers = _dict(receipts, "layers")
    if layers:
        words = {"auc": "AUC", "log_loss": "log-loss", "ece": "calibration error"}
        if all("margin" in _dict(layers, index) for index in layers):
            words = {"margin": "held-out margin, nats a token"}
        compared = [
            (
                f"**{index}**" if index == str(part["layer"]) else index,
                *(_dict(layers, index).get(key, "") for key in words),
            )
            for index in layers
        ]
        sections += [
            "The layers that were compared, in one way; the chosen one is bold.",
            table(("layer", *words.values()), compared),
        ]
    return sections


def _tuned(part: dict[str, Any]) -> list[str]:
    """Tabulate `odesteer.tune`'s trials on the front of effect against damage."""
    tune = _dict(part, "receipts", "tune")
    trials = tune.get("trials")
    if not isinstance(trials, list):
        return []
    rows = []
    for trial in trials:
        if not isinstance(trial, dict) or not (trial.get("pareto") or trial == tune.get("chosen")):
            continue
        effect, dose = _dict(trial, "effect"), _dict(trial, "dose")
        bounds = [effect.get(key) for key in ("mean", "low", "high")]
        steered = trial.get("layer") is not None
        layer = trial["layer"] if steered else "unsteered"
        numbers = [trial.get(key) for key in ("value", "kl_95", "perplexity_ratio")]
        mark = "chosen" if trial == tune.get("chosen") else ""
        rows.append((layer, _dose(dose) if steered else "", *bounds, *numbers, mark))
    heading = ("layer", "dose", "effect", "2.5 %", "97.5 %", "read-out", "KL p95", "ppl x", "")
    return [
        "## What it does to the model",
        f"Chosen by `odesteer.tune` on held-out texts: {text(tune.get('reason', ''), 400)} "
        f"Effects are standard deviations of the unsteered read-out, KL is in nats a token.",
        table(heading, rows),
    ]


def _limits() -> str:
    return """## Limits

- It belongs to the model it was fitted on: attaching it to one of another type, depth or width
  is refused. Another revision or chat template is accepted, and `compatibility` names it.
- What was measured holds for texts like those it was learnt from. A calibrated probability is
  one for these, and a large effect there may be none elsewhere.
- Steering can also change what nobody meant to change. Measure at the dose that is used.
- The numbers derive from the model and the texts: their licences and terms apply. Whoever
  publishes this adds a `license:` to the front matter."""


# ---- parts of a configuration


def _layers(parts: Sequence[dict[str, Any]]) -> str:
    return ", ".join(text(part["layer"]) or "(not set)" for part in parts)


def _dose(tree: dict[str, Any]) -> str:
    return f"{tree.get('type')} {text(tree.get('amount', tree.get('probability')))}"


def _kind(tree: dict[str, Any]) -> str:
    return str(tree.get("type"))


def _is_bin(value: Any) -> bool:
    numbers = (
        [value.get(key) for key in ("probability", "frequency", "n")]
        if isinstance(value, dict)
        else [None]
    )
    return all(isinstance(each, int | float) for each in numbers)


def _dict(tree: Any, *path: str) -> dict[str, Any]:
    """Return the object at a path, or an empty one: receipts are anybody's JSON."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree if isinstance(tree, dict) else {}
