"""HTML page of the demo's results."""

import base64
import json
from dataclasses import asdict
from html import escape
from pathlib import Path

from odesteer.common.files import write_whole
from odesteer.evaluation.demo import FIGURES, Condition, DemoResult
from odesteer.evaluation.judges import VaderMood
from odesteer.evaluation.report.plots import LABELS

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
    """index.html with the figures inside it, and results.json beside it."""
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
        change = "" if c.method == "none" else _interval(c.difference)
        cells = (
            f"{c.dose:g}" if c.dose else "",
            _interval(c.effect),
            change,
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
    rows = "".join(
        f"<tr{' class=chosen' if i == result.layer else ''}><td class='n'>{i}</td>"
        f"<td class='n'>{q.auc:.3f}</td><td class='n'>{q.log_loss:.3f}</td>"
        f"<td class='n'>{q.ece:.3f}</td></tr>"
        for i, q in result.layers.items()
    )
    return f"<table>{_quality_head('layer')}{rows}</table>"


def _test_quality(result: DemoResult) -> str:
    rows = "".join(
        f"<tr><td>{escape(LABELS[name])}</td><td class='n'>{q.auc:.3f}</td>"
        f"<td class='n'>{q.log_loss:.3f}</td><td class='n'>{q.ece:.3f}</td></tr>"
        for name, q in result.test_quality.items()
    )
    return f"<table>{_quality_head('method')}{rows}</table>"


def _quality_head(first: str) -> str:
    heads = (first, "AUC", "log-loss", "calibration error")
    return "<tr>" + "".join(f"<th class='n'>{head}</th>" for head in heads) + "</tr>"
