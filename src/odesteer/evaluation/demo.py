"""The demo: fit, steer and score a real model, and its page.

A contrast of 384 sentence pairs (melancholy against bright, 24 topics) is split by topic.
On the fit topics: held-out quality by layer, the layer, CAA, ITI and ODESteer. On the test
topics: the barrier's quality, its value along the flow of unseen bright sentences, and
generations from unseen prompts at three doses, judged by VADER and by their perplexity
under the unsteered model. Nothing is chosen on the test topics.
"""

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from odesteer.backends import TransformersBackend
from odesteer.backends.base import Sampling
from odesteer.common.files import write_whole
from odesteer.data import Contrast
from odesteer.evaluation.benchmarks.sentiment import SYSTEM
from odesteer.evaluation.benchmarks.sentiment import rows as contrast_rows
from odesteer.evaluation.case import Case
from odesteer.evaluation.judges import VaderMood
from odesteer.evaluation.report import plots
from odesteer.evaluation.report.plots import LABELS
from odesteer.evaluation.statistics.bootstrap import interval
from odesteer.extraction.extract import Progress, activations
from odesteer.fitting import best_layer, middle_layers, rank_layers
from odesteer.methods import CAA, ITI, Method, ODESteer
from odesteer.models.compatibility import describe_model
from odesteer.ode import Angle
from odesteer.steering import Steering
from odesteer.steering.calibration import BinaryQuality, binary_quality

DOSES = {"low": 0.1, "medium": 0.2, "high": 0.3}
METHODS: tuple[Method, ...] = (CAA(), ITI(), ODESteer())
TEST_TOPICS = ("weather", "morning", "city", "garden", "music", "books", "sea", "weekend")
# 12 prompts and 20 tokens keep the whole demo below 90 seconds on two cores.
PROMPT_TOPICS = TEST_TOPICS[:6]
PROMPTS_PER_TOPIC = 2
NEW_TOKENS = 20
FIGURES = ("tradeoff.png", "flow.png", "portrait.png")

Stage = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Condition:
    """Row of the comparison: a method at a dose, and its texts."""

    method: str
    dose_name: str
    dose: float
    before: float | None  # mean P(wanted) of held-out negatives, by the method's own barrier
    after: float | None
    generations: list[str]
    effect: tuple[float, float, float, int]  # judge: mean, 95 % interval, n scored
    difference: tuple[float, float, float, int]  # paired, to the unsteered model
    perplexity: float
    unscored: int


@dataclass(frozen=True)
class DemoResult:
    """Measurements of the demo."""

    layers: dict[int, BinaryQuality]
    layer: int
    test_quality: dict[str, BinaryQuality]
    prompts: list[str]
    conditions: list[Condition]
    steerings: dict[str, Steering]
    test_negatives: Tensor
    counts: dict[str, int]


def contrast() -> tuple[Contrast, Contrast]:
    """Return the sentences without their prompts, of fit topics and of test topics."""
    rows = [
        {"positive": e["positive"], "negative": e["negative"], "topic": e["topic"]}
        for e in contrast_rows()
    ]
    whole = Contrast.from_rows(rows)
    topics = set(whole.groups[0])
    return whole.subset(topics - set(TEST_TOPICS)), whole.subset(set(TEST_TOPICS))


def test_prompts() -> list[str]:
    """Return unseen prompts: evenly spaced ones of six test topics."""
    prompts: list[str] = []
    for topic in PROMPT_TOPICS:
        topic_prompts = [row["prompt"] for row in contrast_rows() if row["topic"] == topic]
        step = len(topic_prompts) // PROMPTS_PER_TOPIC
        prompts += topic_prompts[::step][:PROMPTS_PER_TOPIC]
    return prompts


def run(model: Any, tokenizer: Any, stage: Stage) -> DemoResult:
    """Run the whole measurement; deterministic on one machine.

    Args:
        model, tokenizer: a transformers causal language model with a chat template.
        stage: `stage("label")` is a context manager that yields a progress callback.
    """
    fit_set, test_set = contrast()
    with stage("Reading the fit sentences") as progress:
        data = activations(model, tokenizer, fit_set, middle_layers(model), progress=progress)
    with stage("Ranking the layers on held-out topics") as progress:
        qualities = rank_layers(data, fit_set.groups, progress=progress)
    layer = best_layer(qualities)
    steerings: dict[str, Steering] = {}
    with stage("Fitting CAA, ITI and ODESteer") as progress:
        for done, method in enumerate(METHODS, start=1):
            steering = method.fit(*data[layer], layer=layer, groups=fit_set.groups)
            described = describe_model(model, tokenizer)
            steerings[method.name] = steering.replace(model=described)
            progress(done, len(METHODS))
    with stage("Reading the test sentences") as progress:
        positive, negative = activations(model, tokenizer, test_set, layer, progress=progress)
    rows, labels = (
        torch.cat([positive, negative]),
        np.repeat([1, 0], [len(positive), len(negative)]),
    )
    test_quality = {
        name: binary_quality(steering.log_odds(rows).numpy(), labels)
        for name, steering in steerings.items()
    }
    prompts = test_prompts()
    conditions = _conditions(model, tokenizer, prompts, steerings, negative, stage)
    return DemoResult(
        layers=qualities,
        layer=layer,
        test_quality=test_quality,
        prompts=prompts,
        conditions=conditions,
        steerings=steerings,
        test_negatives=negative,
        counts={
            "fit pairs": len(fit_set.positive),
            "fit topics": len(set(fit_set.groups[0])),
            "test pairs": len(test_set.positive),
            "test topics": len(set(test_set.groups[0])),
            "prompts": len(prompts),
        },
    )


def _conditions(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    steerings: dict[str, Steering],
    negatives: Tensor,
    stage: Stage,
) -> list[Condition]:
    settings: list[tuple[str, str, float, Steering | None]] = [("none", "", 0.0, None)]
    settings += [
        (name, dose_name, dose, steering.with_strength(Angle(dose)))
        for name, steering in steerings.items()
        for dose_name, dose in DOSES.items()
    ]
    chats = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        for prompt in prompts
    ]
    # All settings share batches: each steering acts on rows of its own.
    batch = [chat for _ in settings for chat in chats]
    steered = [steering for *_, steering in settings for _ in chats]
    with stage("Generating") as progress:
        # A decoding step costs little more for 120 rows than for 30: one batch.
        backend = TransformersBackend(model, tokenizer, batch_size=len(batch))
        texts = backend.generate(batch, steered, Sampling(max_new_tokens=NEW_TOKENS), progress)
    with stage("Perplexity under the unsteered model") as progress:
        backend = TransformersBackend(model, tokenizer, batch_size=24)
        logprobs = backend.logprobs(batch, texts, None, progress)
    scores = VaderMood().score([Case("")] * len(texts), texts)
    values = np.array([np.nan if s.value is None else s.value for s in scores])
    values = values.reshape(len(settings), len(prompts))
    conditions = []
    for i, (name, dose_name, dose, steering) in enumerate(settings):
        part = slice(i * len(prompts), (i + 1) * len(prompts))
        scored = ~np.isnan(values[i]) & ~np.isnan(values[0])
        conditions.append(
            Condition(
                method=name,
                dose_name=dose_name,
                dose=dose,
                before=None if steering is None else _mean_probability(steering, negatives),
                after=None
                if steering is None
                else _mean_probability(steering, steering(negatives)),
                generations=texts[part],
                effect=interval(values[i][scored]),
                difference=interval((values[i] - values[0])[scored]),
                perplexity=float(torch.cat(logprobs[part]).mean().neg().exp()),
                unscored=int((~scored).sum()),
            )
        )
    return conditions


def _mean_probability(steering: Steering, a: Tensor) -> float:
    return float(steering.probability(a).mean())


def draw(result: DemoResult, folder: Path) -> list[Path]:
    """Draw the three figures, as PNG files in `folder`."""
    unit = "mood (VADER, −1 gloomy to +1 bright)"
    rows = [
        {"method": c.method, "dose": c.dose, "perplexity": c.perplexity, "effect": c.effect}
        for c in result.conditions
    ]
    plots.tradeoff_figure(rows, unit, folder / FIGURES[0])
    ours = result.steerings["odesteer"]
    longest = ours.with_strength(Angle(1.5 * max(DOSES.values())))
    negatives = result.test_negatives
    trajectory = longest.trajectory(negatives)
    one_step = _straight(negatives, trajectory, longest)
    caa = result.steerings["caa"].with_strength(longest.strength)
    straight = torch.lerp(
        negatives, caa(negatives), torch.linspace(0, 1, len(trajectory)).view(-1, 1, 1)
    )
    plots.flow_figure(
        np.linspace(0, 1.5 * max(DOSES.values()), len(trajectory)),
        {
            "odesteer": ours.log_odds(trajectory).numpy(),
            "odesteer-one-step": ours.log_odds(one_step).numpy(),
            "caa": ours.log_odds(straight).numpy(),
        },
        folder / FIGURES[1],
        result.layer,
    )
    plots.portrait_figure(
        ours.barrier,  # type: ignore[arg-type]
        negatives,
        trajectory[:, ::6],
        *ours.calibration,
        folder / FIGURES[2],
        result.layer,
    )
    return [folder / name for name in FIGURES]


def _straight(start: Tensor, trajectory: Tensor, steering: Steering) -> Tensor:
    """Return the straight line that one Euler step of the same length would take."""
    velocity = steering.field(start)
    length = float(steering.strength.size) * start.norm(dim=-1, keepdim=True)  # type: ignore[union-attr]
    times = torch.linspace(0, 1, len(trajectory)).view(-1, 1, 1)
    return start + times * length * velocity


_CAPTIONS = {
    FIGURES[0]: "What a dose buys and what it costs. Down is more melancholy; left is more fluent.",
    FIGURES[1]: "Unseen bright sentences on their way. Following the field raises the barrier "
    "further than one straight step of the same length.",
    FIGURES[2]: "The field at work: activations start where h is negative and flow to where it "
    "is positive.",
}

_CSS = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --accent: #0072b2; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; font-size: 1.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid var(--line);
  vertical-align: top; }
td:first-child { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.chosen { background: var(--soft); font-weight: 600; }
.scroll { overflow-x: auto; }
figure { margin: 1.5rem 0; } img { max-width: 100%; background: white; border-radius: 6px; }
figcaption, .note { color: #777; font-size: .9rem; }
details { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .9rem;
  margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; }
b.ours { color: var(--accent); }
"""


def write(result: DemoResult, folder: Path) -> Path:
    """Write index.html with the figures inside it, and results.json beside it."""
    figures = "".join(_figure(folder / name) for name in FIGURES)
    counts = result.counts
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>odesteer demo</title><style>{_CSS}</style></head><body>
<h1>A cheerful model, steered to melancholy</h1>
<p class="note">{escape(result.steerings["odesteer"].model["name"])},
greedy decoding. Learnt from {counts["fit pairs"]} sentence pairs on {counts["fit topics"]} topics;
judged on {counts["prompts"]} prompts of topics it has never seen.
The last prompt token and every generated token are steered, at the output of block
{result.layer}.</p>
<h2>Side by side</h2>{_texts(result)}
<h2>Effect and cost</h2>
<p class="note">Mood: {escape(VaderMood.unit)}; mean and 95 % bootstrap interval. Change: paired
with the unsteered text. Perplexity: of the generated tokens under the unsteered model (2 to 4 is
its own style, higher is stranger). P(wanted): mean over held-out bright sentences by the
method's own calibrated barrier, before and after. Dose: path length over the activation's norm.</p>
<div class="scroll">{_effects(result)}</div>
{figures}
<h2>Which layer?</h2>
<p class="note">Quality of the barrier on held-out topics of the fit set (5 folds); the layer with
the smallest log-loss is steered. Chance is AUC 0.5 and log-loss 0.693.</p>
<div class="scroll">{_layers(result)}</div>
<h2>On the test topics, at that layer</h2>
<div class="scroll">{_test_quality(result)}</div>
</body></html>
"""
    target = folder / "index.html"
    write_whole(target, page.encode())
    numbers = json.dumps(_numbers(result), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / "results.json", numbers.encode())
    return target


def _numbers(result: DemoResult) -> dict[str, object]:
    return {
        "counts": result.counts,
        "layer": result.layer,
        "layers": {str(i): quality._asdict() for i, quality in result.layers.items()},
        "test_quality": {name: q._asdict() for name, q in result.test_quality.items()},
        "prompts": result.prompts,
        "conditions": [asdict(condition) for condition in result.conditions],
    }


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    caption = escape(_CAPTIONS[path.name])
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _title(condition: Condition) -> str:
    label = escape(LABELS[condition.method])
    label = f'<b class="ours">{label}</b>' if condition.method == "odesteer" else label
    return f"{label} {condition.dose_name}".strip()


def _texts(result: DemoResult) -> str:
    blocks = []
    for i, prompt in enumerate(result.prompts):
        rows = "".join(
            f"<tr><td>{_title(c)}</td><td>{escape(c.generations[i])}</td></tr>"
            for c in result.conditions
        )
        blocks.append(
            f"<details{' open' if i < 2 else ''}><summary>{escape(prompt)}</summary>"
            f"<table>{rows}</table></details>"
        )
    return "".join(blocks)


def _effects(result: DemoResult) -> str:
    head = "<tr><th></th>" + "".join(
        f'<th class="n">{name}</th>'
        for name in ("dose", "mood", "change", "perplexity", "P(wanted)", "unscored")
    )
    rows = []
    for c in result.conditions:
        probability = "" if c.before is None else f"{c.before:.2f} → {c.after:.2f}"
        cells = (
            f"{c.dose:g}" if c.dose else "",
            _interval(c.effect),
            "" if c.method == "none" else _interval(c.difference),
            f"{c.perplexity:.1f}",
            probability,
            str(c.unscored),
        )
        rows.append(f"<tr><td>{_title(c)}</td>" + "".join(f'<td class="n">{x}</td>' for x in cells))
    return f"<table>{head}{''.join(rows)}</table>"


def _interval(values: tuple[float, float, float, int]) -> str:
    mean, low, high, _ = values
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def _layers(result: DemoResult) -> str:
    rows = [(str(i), q, i == result.layer) for i, q in result.layers.items()]
    return _quality_table("layer", rows)


def _test_quality(result: DemoResult) -> str:
    rows = [(LABELS[name], q, False) for name, q in result.test_quality.items()]
    return _quality_table("method", rows)


def _quality_table(first: str, rows: Sequence[tuple[str, BinaryQuality, bool]]) -> str:
    heads = (first, "AUC", "log-loss", "calibration error")
    head = "".join(f"<th class='n'>{head}</th>" for head in heads)
    body = "".join(
        f"<tr{' class=chosen' if chosen else ''}><td class='n'>{escape(name)}</td>"
        + "".join(f"<td class='n'>{x:.3f}</td>" for x in (q.auc, q.log_loss, q.ece))
        + "</tr>"
        for name, q, chosen in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
