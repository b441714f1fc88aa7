"""What is learnt and asked within an experiment is what the library learns and asks alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.evaluation.benchmarks import Sentiment, TruthfulQA
from odesteer.evaluation.case import Case
from odesteer.evaluation.experiment.cases import instructed
from odesteer.evaluation.experiment.config import Experiment, Limits, parse
from odesteer.evaluation.experiment.fits import FitCache
from odesteer.evaluation.experiment.plan import limited, plan
from odesteer.evaluation.experiment.run_directory import RunFolder, line


@pytest.fixture
def benchmark_(local: Path) -> TruthfulQA:
    return TruthfulQA.load(local, verify=False)


def experiment(**changes: Any) -> Experiment:
    given = {"task": "choices", "benchmark": "truthfulqa", "doses": [0.1], "layers": [1]}
    return parse({**given, **changes}, "x.toml")


ROWS: list[Any] = [
    "caa",
    {"name": "truthflow", "min_steps": 20},
    "repe",
    "iti-heads",
    "natural-gradient",
    {"name": "caa", "id": "of the response", "tokens": "response"},
    {"name": "caa", "id": "shuffled caa", "shuffled": True},
]


@pytest.mark.parametrize("name", [row if isinstance(row, str) else row.get("id") for row in ROWS])
def test_a_fit_is_that_of_the_library(
    name: str | None, benchmark_: TruthfulQA, tmp_path: Path
) -> None:
    net, tokenizer = tiny.model(), tiny.tokenizer()
    planned = plan(experiment(methods=ROWS, layers=[0, 1, 2]), benchmark_)
    learning = FitCache(net, tokenizer, benchmark_, planned, RunFolder(tmp_path, 1))
    condition = next(each for each in planned.conditions if each.method.id == (name or "truthflow"))
    layer = condition.layers[0]
    fitting = condition.fitting(layer)
    found = learning.fit(1, fitting)
    contrast = benchmark_.contrast(planned.folds[1])
    own = "auto" if layer is None else layer
    expected = ods.fit(
        net,
        tokenizer,
        contrast.shuffled() if condition.method.shuffled else contrast,
        learning.method(fitting),
        own,
        found.strength,
        tokens=condition.method.tokens,
    )
    a = torch.randn(5, tiny.WIDTH)
    for one, other in zip(parts(found), parts(expected), strict=True):
        assert (one.layer, one.site) == (other.layer, other.site)
        torch.testing.assert_close(one(a), other(a))
    # Read back by whoever goes on, and not learnt again.
    again = FitCache(None, None, benchmark_, planned, RunFolder(tmp_path, 1))
    for one, other in zip(parts(again.fit(1, fitting)), parts(found), strict=True):
        assert torch.equal(one(a), other(a))


def parts(steering: Any) -> tuple[ods.Steering, ...]:
    return steering.parts if isinstance(steering, ods.Steering) else (steering,)


def test_limits_draw_groups_of_each_part_and_nothing_else(benchmark_: TruthfulQA) -> None:
    fold = benchmark_.folds()[0]
    small = limited(benchmark_, fold, Limits(fit=2, validation=1, test=3), 0)
    assert [len(part) for part in (small.fit, small.validation, small.test)] == [2, 1, 3]
    for part in ("fit", "validation", "test"):
        assert set(getattr(small, part)) <= set(getattr(fold, part))
    assert limited(benchmark_, fold, Limits(), 0) == fold
    assert limited(benchmark_, fold, Limits(test=3), 0) == limited(
        benchmark_, fold, Limits(test=3), 0
    )


def test_the_instruction_stands_where_the_model_is_told_things(benchmark_: TruthfulQA) -> None:
    words = TruthfulQA.instruction
    asked = instructed(tiny.tokenizer(), benchmark_, benchmark_.cases[1])
    assert asked.prompt == benchmark_.cases[1].prompt
    assert asked.template == f"{words}\n\n{TruthfulQA.template}"
    mood, chat = Sentiment.load(), tiny.tokenizer(chat=True)
    words = Sentiment.instruction
    told = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"})
    assert instructed(chat, mood, Case(told)).prompt == [
        {"role": "system", "content": f"Be brief. {words}"},
        told[1],
    ]
    assert instructed(chat, mood, Case("Hello?")).prompt == [
        {"role": "system", "content": words},
        {"role": "user", "content": "Hello?"},
    ]
    chat.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    assert instructed(chat, mood, Case("Hello?")).prompt == [
        {"role": "user", "content": f"{words}\n\nHello?"}
    ]
    assert instructed(tiny.tokenizer(), mood, Case("Hello?")).prompt == f"{words}\n\nHello?"


def test_a_line_has_sorted_keys_and_no_number_that_json_lacks() -> None:
    tree = {"b": float("nan"), "a": [1 / 3, (float("inf"), 7)], 1: {"ü": True}}
    assert line(tree) == '{"1": {"ü": true}, "a": [0.3333333, [null, 7]], "b": null}\n'.encode()
