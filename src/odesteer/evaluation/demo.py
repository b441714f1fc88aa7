"""The demo: a small run of a real model, reported as any other run.

A contrast of 384 sentence pairs (melancholy against bright, 24 topics) is split by topic. On the
fit topics: held-out quality by layer, the layer, CAA and ODESteer. On the test topics: the
barriers' log-odds of unseen sentences, and generations from unseen prompts at three doses, with a
target, and in a random direction, judged by VADER and by their perplexity under the unsteered
model. Nothing is chosen on the test topics.

`odesteer run` computes a condition at a time; here all of them share one batch, which takes a
third of the time. The lines are those of `odesteer run`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from odesteer import __version__
from odesteer.backends import TransformersBackend
from odesteer.common import catalogue
from odesteer.common.files import write_whole
from odesteer.common.jobs import line
from odesteer.data import Contrast
from odesteer.evaluation.benchmarks import Fold, Sentiment
from odesteer.evaluation.benchmarks.sentiment import SYSTEM
from odesteer.evaluation.benchmarks.sentiment import rows as contrast_rows
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.cases import describe_judges
from odesteer.evaluation.experiment.config import Named
from odesteer.evaluation.experiment.run import describe_benchmark, held_out_log_odds, trace
from odesteer.evaluation.experiment.run_directory import RESULTS, SCHEMA
from odesteer.evaluation.judges import VaderMood
from odesteer.evaluation.report import Report, build, read_run
from odesteer.evaluation.report.writers import html
from odesteer.extraction.extract import Progress, activations
from odesteer.fitting import best_layer, middle_layers, rank_layers
from odesteer.methods import CAA, Method, ODESteer
from odesteer.methods.baselines import RandomDirection
from odesteer.models.compatibility import describe_model
from odesteer.models.generation import Sampling, whole_sentences
from odesteer.models.layers import find_layers
from odesteer.ode import Angle, Target
from odesteer.steering import Steering
from odesteer.steering.calibration import BinaryQuality
from odesteer.steering.serialization import dose_to_json

# At all tokens.
DOSES = (Angle(0.03), Angle(0.06), Angle(0.09))
TARGET = Target(0.9, DOSES[-1])
METHODS: tuple[Method, ...] = (CAA(), ODESteer(), RandomDirection())
TEST_TOPICS = ("weather", "morning", "city", "garden", "music", "books", "sea", "weekend")
# 12 prompts and 40 tokens keep the whole demo below two minutes on two cores.
PROMPT_TOPICS = TEST_TOPICS[:6]
PROMPTS_PER_TOPIC = 2
NEW_TOKENS = 40
PAGE = "index.html"

Stage = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class DemoResult:
    """Measurements of the demo: quality by layer, the layer, steerings, report, page."""

    layers: dict[int, BinaryQuality]
    layer: int
    steerings: dict[str, Steering]
    report: Report
    page: Path


def contrast() -> tuple[Contrast, Contrast]:
    """Return the sentences without their prompts, of fit topics and of test topics."""
    rows = [{key: row[key] for key in ("positive", "negative", "topic")} for row in contrast_rows()]
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


def run(model: Any, tokenizer: Any, folder: Path, stage: Stage) -> DemoResult:
    """Run the whole measurement, write its results, steerings and page; deterministic.

    Args:
        model, tokenizer: a transformers causal language model with a chat template.
        folder: for results.jsonl, index.html and steerings/.
        stage: `stage("label")` is a context manager that yields a progress callback.
    """
    fit_set, test_set = contrast()
    with stage("Reading the fit sentences") as progress:
        data = activations(model, tokenizer, fit_set, middle_layers(model), progress=progress)
    with stage("Ranking the layers on held-out topics") as progress:
        qualities = rank_layers(data, fit_set.groups, progress=progress)
    layer = best_layer(qualities, len(find_layers(model)))
    described = describe_model(model, tokenizer)
    steerings: dict[str, Steering] = {}
    with stage("Fitting CAA and ODESteer") as progress:
        for done, method in enumerate(METHODS, start=1):
            steering = method.fit(*data[layer], layer=layer, groups=fit_set.groups)
            steerings[method.name] = steering.replace(model=described, positions="all")
            progress(done, len(METHODS))
    with stage("Reading the test sentences") as progress:
        held_out = activations(model, tokenizer, test_set, layer, progress=progress)
    conditions = _conditions(steerings)
    lines = [
        _header(described, fit_set, test_set, layer, conditions),
        *_barriers(conditions, held_out, test_set),
        *_cases(model, tokenizer, conditions, stage),
    ]
    cases = [each for each in lines if each["kind"] == "case"]
    unscored = Counter(name for each in cases for name in each["reasons"])
    lines.append({"kind": "end", "cases": len(cases), "unscored": unscored})
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RESULTS, b"".join(map(line, lines)))
    for name, steering in steerings.items():
        steering.save_pretrained(folder / "steerings" / name)
    with stage("Drawing the report") as progress:
        report = build(read_run(folder))
        write_whole(folder / PAGE, html([report]).encode())
        progress(1, 1)
    return DemoResult(qualities, layer, steerings, report, folder / PAGE)


def _conditions(steerings: Mapping[str, Steering]) -> dict[str, Steering | None]:
    doses = {name: DOSES for name in steerings} | {"random": DOSES[1:2]}
    return {
        "none": None,
        **{
            f"{name}@angle-{dose.size:g}": steering.with_strength(dose)
            for name, steering in steerings.items()
            for dose in doses[name]
        },
        f"odesteer@target-{TARGET.probability:g}": steerings["odesteer"].with_strength(TARGET),
    }


def _header(
    described: dict[str, Any],
    fit_set: Contrast,
    test_set: Contrast,
    layer: int,
    conditions: Mapping[str, Steering | None],
) -> dict[str, Any]:
    return {
        "kind": "run",
        "schema": SCHEMA,
        "version": __version__,
        "backend": None,
        "config": {
            "title": "A cheerful model, steered to melancholy",
            "layer": layer,
            "sampling": {"max_new_tokens": NEW_TOKENS, "temperature": 0.0},
        },
        "benchmark": describe_benchmark(Sentiment.load()),
        "folds": [Fold(_topics(fit_set), (), _topics(test_set)).as_dict()],
        "model": described,
        "judges": describe_judges([Named("vader"), Named("perplexity")]),
        "conditions": [
            {
                "id": name,
                "method": name.split("@")[0],
                "label": catalogue.METHODS[name.split("@")[0]],
                "dose": None if steering is None else dose_to_json(steering.dose),
                "layer": None if steering is None else layer,
                "chosen": False,
                "steps": None,
                "seed": 0,
            }
            for name, steering in conditions.items()
        ],
    }


def _topics(part: Contrast) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(str, part.groups[0])))


def _barriers(
    conditions: Mapping[str, Steering | None], held_out: tuple[Tensor, Tensor], test_set: Contrast
) -> Iterator[dict[str, Any]]:
    """Yield the lines of every method's barrier at the largest dose."""
    groups = [*test_set.groups[0], *test_set.groups[1]]
    for name, steering in conditions.items():
        if steering is not None and steering.dose == DOSES[-1]:
            about = {"condition": name, "fold": 0, "layer": steering.layer, "part": "test"}
            log_odds = held_out_log_odds(steering, *held_out, groups)
            yield {"kind": "barrier", **about, **log_odds}
            yield {"kind": "trajectory", **about, **trace(steering, held_out[1], DOSES[-1])}


def _cases(
    model: Any, tokenizer: Any, conditions: Mapping[str, Steering | None], stage: Stage
) -> Iterator[dict[str, Any]]:
    """Yield a line per condition and prompt."""
    prompts = test_prompts()
    chats = [
        [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
        for prompt in prompts
    ]
    # All conditions share batches: each steering acts on rows of its own.
    batch = [chat for _ in conditions for chat in chats]
    steered = [steering for steering in conditions.values() for _ in chats]
    with stage("Generating") as progress:
        # A decoding step costs little more for 120 rows than for 30: one batch.
        backend = TransformersBackend(model, tokenizer, batch_size=len(batch))
        texts = backend.generate(batch, steered, Sampling(max_new_tokens=NEW_TOKENS), progress)
        texts = [whole_sentences(text) for text in texts]
    with stage("Perplexity under the unsteered model") as progress:
        backend = TransformersBackend(model, tokenizer, batch_size=24)
        logprobs = backend.logprobs(batch, texts, None, progress)
    moods = VaderMood().score([Case("")] * len(texts), texts)
    names = [name for name in conditions for _ in prompts]
    for i, (name, text, mood) in enumerate(zip(names, texts, moods, strict=True)):
        number = i % len(prompts)
        nll = -float(logprobs[i].mean()) if len(logprobs[i]) else None
        scores = {"vader": mood.value, "perplexity": nll}
        yield {
            "kind": "case",
            "condition": name,
            "fold": 0,
            "case": str(number),
            "group": str(number),
            "sample": 0,
            "prompt": prompts[number],
            "generation": text,
            "choices": None,
            "tokens": len(logprobs[i]),
            "scores": scores,
            "reasons": {judge: mood.reason for judge, value in scores.items() if value is None},
        }
