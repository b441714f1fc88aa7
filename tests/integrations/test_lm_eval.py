"""What lm-evaluation-harness hears of a steered model is what each request alone would give."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tests.helpers import models as tiny
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli.app import app
from odesteer.ode import Angle

pytest.importorskip("lm_eval")

TASK = """
task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture(scope="module")
def parts() -> tuple[Any, Any, ods.Steering]:
    model, tokenizer = tiny.model(), tiny.tokenizer(chat=True)
    tokenizer.eos_token = "<end>"
    generator = torch.Generator().manual_seed(0)
    width = model.config.hidden_size
    positive = torch.randn(40, width, generator=generator) + 0.3
    negative = torch.randn(40, width, generator=generator)
    steering = ods.METHODS["odesteer"]().fit(positive, negative, layer=1, calibrate=False)
    return model, tokenizer, steering.with_strength(Angle(0.5))


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with one task of a dozen questions."""
    rows = [
        {"question": f"is {one} {two}", "choices": [f" {two}", f" {one} {one}"], "label": i % 2}
        for i, (one, two) in enumerate((a, b) for a in ("red", "blue", "green") for b in "abcd")
    ]
    data = tmp_path / "colours.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "colours.yaml").write_text(TASK.format(file=data), encoding="utf-8")
    return tmp_path


@pytest.fixture
def without_builtin_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Index only the folder: that of the harness's 13,000 files takes eleven seconds."""
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))


def alone(
    model: Any, steering: Any, start: int, row: list[int], context: int
) -> tuple[float, bool]:
    """A request by itself: no padding, and a hook that moves the rows from `start` on."""

    def move(_module: Any, _args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden.clone()
        hidden[0, start:] = steering(hidden[0, start:])
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.model.layers[steering.layer].register_forward_hook(move)
    with torch.no_grad():
        logp = model(torch.tensor([row[:-1]])).logits[0, context - 1 :].log_softmax(dim=-1)
    handle.remove()
    said = torch.tensor(row[context:])
    return float(logp.gather(-1, said[:, None]).sum()), bool((logp.argmax(-1) == said).all())


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("positions", ["continuation", "all"])
def test_a_request_in_a_batch_is_a_request_alone(parts: Any, positions: str, size: int) -> None:
    from odesteer.integrations.lm_eval import SteeredLM

    model, tokenizer, steering = parts
    steered_lm = SteeredLM(
        model, steering, positions=positions, tokenizer=tokenizer, batch_size=size
    )
    generator = torch.Generator().manual_seed(1)
    rows = [
        torch.randint(5, model.config.vocab_size, (n,), generator=generator).tolist()
        for n in (3, 9, 5, 12, 4, 7, 9, 6)
    ]
    splits = [(i, cut) for i, row in enumerate(rows) for cut in (1, 2, len(row) - 1)]
    requests = [((str(i), str(cut)), rows[i][:cut], rows[i][cut:]) for i, cut in splits]
    results = steered_lm._loglikelihood_tokens(requests, disable_tqdm=True)
    differing = set()
    for (i, cut), (value, greedy) in zip(splits, results, strict=True):
        start = 0 if positions == "all" else cut - 1
        expected, said = alone(model, steering, start, rows[i], cut)
        assert value == pytest.approx(expected, abs=1e-5 * max(1.0, abs(expected)))
        assert greedy == said
        differing.add(round(value - alone(model, steering, len(rows[i]), rows[i], cut)[0], 4))
    assert len(differing) > 10  # the steering was on


@pytest.mark.usefixtures("without_builtin_tasks")
def test_the_harness_is_asked_twice_and_compared_in_pairs(parts: Any, tasks: Path) -> None:
    from odesteer.integrations.lm_eval import SteeredLM, paired

    model, tokenizer, steering = parts
    steered_lm = SteeredLM(model, steering, tokenizer=tokenizer, batch_size=4)
    deltas = {delta.metric: delta for delta in paired(steered_lm, ["colours"], folder=str(tasks))}
    assert set(deltas) == {"acc", "acc_norm"}
    for delta in deltas.values():
        assert delta.delta.n == 12 and delta.better == "higher"
        assert delta.delta.mean == pytest.approx(delta.steered - delta.unsteered)
        assert delta.delta.low <= delta.delta.mean <= delta.delta.high
    still = SteeredLM(model, steering, 0.0, tokenizer=tokenizer, batch_size=4)
    for delta in paired(still, ["colours"], folder=str(tasks)):
        assert delta.delta[:3] == (0.0, 0.0, 0.0)


def test_generation_is_steered_and_rolling_likelihoods_are_scored(parts: Any) -> None:
    from lm_eval.api.instance import Instance

    from odesteer.integrations.lm_eval import SteeredLM

    model, tokenizer, steering = parts
    texts: dict[str, list[str]] = {}
    for name, one in (("plain", None), ("steered", steering.with_strength(Angle(1.5)))):
        steered_lm = SteeredLM(model, one, tokenizer=tokenizer, batch_size=2)
        arguments = [(text, {"until": ["."], "max_gen_toks": 8}) for text in ("red a", "blue b c")]
        requests = [Instance("generate_until", {}, one, i) for i, one in enumerate(arguments)]
        texts[name] = steered_lm.generate_until(requests, disable_tqdm=True)
        rolling = [Instance("loglikelihood_rolling", {}, ("red a blue b",), 0)]
        [value] = steered_lm.loglikelihood_rolling(rolling, disable_tqdm=True)
        assert value < 0
    assert texts["plain"] != texts["steered"]


@pytest.mark.usefixtures("without_builtin_tasks")
def test_what_cannot_be_is_said(parts: Any, tasks: Path) -> None:
    from odesteer.integrations.lm_eval import SteeredLM, paired

    model, tokenizer, steering = parts
    with pytest.raises(ValueError, match="give one of them"):
        SteeredLM(model, steering, 1.0, angle=0.2, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=r"positions.*continuation"):
        SteeredLM(model, steering, positions="last", tokenizer=tokenizer)
    steered_lm = SteeredLM(model, steering, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="has no task 'colors'"):
        paired(steered_lm, ["colors"], folder=str(tasks))
    with pytest.raises(ValueError, match="nothing to compare"):
        paired(SteeredLM(model, tokenizer=tokenizer), ["colours"], folder=str(tasks))


def test_the_command(
    parts: Any,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    model, tokenizer, steering = parts
    # The console was made when the first command was: COLUMNS comes too late for it.
    monkeypatch.setattr("odesteer.cli.evaluate.out", Console(width=200, highlight=False))
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    steering.save_pretrained(tmp_path / "steering")
    arguments = ["eval", str(tmp_path / "model"), "-s", str(tmp_path / "steering")]
    arguments += ["--tasks", "colours", "--include", str(tasks), "--limit", "6", "--angle", "0.4"]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "angle 0.4, last+generated" in shown.stdout and "acc (higher is better)" in shown.stdout
    request.getfixturevalue("without_builtin_tasks")  # the first time it was with all of them
    result = CliRunner().invoke(app, [*arguments, "--json"])
    tree = json.loads(result.stdout)
    assert tree["model"]["steered_positions"] == "last+generated"
    assert {row["metric"] for row in tree["metrics"]} == {"acc", "acc_norm"}
    assert all(row["delta"]["n"] == 6 for row in tree["metrics"])
