"""The model card states the facts, in Markdown and front matter that tools read."""

import dataclasses
import re

import pytest
import yaml
from tests.helpers import models as tiny

from odesteer import CAA, Contrast, ODESteer, Steering, Target, fit
from odesteer.models.compatibility import describe_model
from odesteer.ode import ZeroField

WORDS = ("cat", "dog", "bird", "tree", "moon", "mat")


def contrast():
    texts = [f"the {a} sat on the {b}" for a in WORDS for b in WORDS if a != b]
    return Contrast.from_pairs([f"{t} good" for t in texts], [f"{t} bad" for t in texts])


@pytest.fixture(scope="module")
def model():
    result = tiny.model()
    result.config._name_or_path, result.config._commit_hash = "me/llama", "c" * 40
    return result


@pytest.fixture(scope="module")
def fitted(model):
    method = ODESteer(gamma=1.0, C=1.0)
    return fit(model, tiny.tokenizer(chat=True), contrast(), method=method)


def card_of(steering, tmp_path):
    return (steering.save_pretrained(tmp_path) / "README.md").read_text(encoding="utf-8")


def front_matter(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


def table(card, heading):
    """The rows of the table whose first line has that heading."""
    lines = card.split(f"| {heading} |", 1)[1].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_the_front_matter_is_what_the_hub_reads(fitted, tmp_path):
    from huggingface_hub import ModelCard

    card = card_of(fitted, tmp_path)
    assert front_matter(card) == {
        "library_name": "odesteer",
        "pipeline_tag": "text-generation",
        "base_model": "me/llama",
        "tags": ["activation-steering", "odesteer"],
    }
    assert ModelCard(card).data.base_model == "me/llama"


@pytest.mark.parametrize(
    ("facts", "base"),
    [
        ({"name": "me/llama"}, "me/llama"),
        ({"name": "gpt2", "revision": "a" * 40}, "gpt2"),
        ({"name": "SmolLM2", "revision": None}, None),
        ({"name": "LlamaForCausalLM"}, None),
        ({"name": 'x"\n- evil'}, None),
        ({"name": ["me/llama"]}, None),
        ({}, None),
    ],
)
def test_only_a_model_of_the_hub_is_a_base_model(facts, base, tmp_path):
    card = card_of(tiny.constant().replace(model=facts), tmp_path)
    assert front_matter(card).get("base_model") == base


def test_the_card_says_what_the_steering_is(fitted, model, tmp_path):
    card = card_of(fitted, tmp_path)
    facts = dict(re.findall(r"^\| ([^|]+) \| ([^|]*) \|$", card, re.MULTILINE))
    assert facts["method"] == "`odesteer`"
    assert facts["`gamma`"] == "1"
    assert facts["layer"] == str(fitted.layer)
    assert facts["dose"] == str(fitted.dose)
    assert facts["model: revision"] == "c" * 40
    assert facts["sha256 of the texts"] == contrast().sha256
    assert facts["positive texts"] == facts["negative texts"] == "30"
    assert facts["AUC"] == f"{fitted.receipts['held_out']['auc']:.4g}"
    assert facts["model: chat template sha256"] == fitted.model["chat_template_sha256"]


def test_the_calibration_curve_is_that_of_the_receipts(fitted, tmp_path):
    rows = table(card_of(fitted, tmp_path), "P(positive) | were positive |  | rows")
    bins = fitted.receipts["reliability"]
    assert [row[:2] for row in rows] == [
        [f"{each['probability']:.3f}", f"{each['frequency']:.3f}"] for each in bins
    ]
    assert sum(int(row[3]) for row in rows) == fitted.receipts["held_out"]["n"]
    for row, each in zip(rows, bins, strict=True):
        assert row[2].count("█") == round(20 * each["frequency"]) and len(row[2]) == 20


def test_the_curve_and_the_calibration_error_agree(fitted):
    bins = fitted.receipts["reliability"]
    assert sum(each["share"] for each in bins) == pytest.approx(1.0, abs=1e-3)
    error = sum(each["share"] * abs(each["probability"] - each["frequency"]) for each in bins)
    assert error == pytest.approx(fitted.receipts["held_out"]["ece"], abs=2e-4)


def test_the_layers_that_were_compared_are_shown_and_the_chosen_one_is_bold(fitted, tmp_path):
    rows = table(card_of(fitted, tmp_path), "layer | AUC | log-loss | calibration error")
    assert [row[0].strip("*") for row in rows] == list(fitted.receipts["layers"])
    assert [row[0] for row in rows if "*" in row[0]] == [f"**{fitted.layer}**"]


def test_several_layers_are_a_table_of_their_own(model, tmp_path):
    steering = fit(model, tiny.tokenizer(), contrast(), method=CAA(), layer=[0, 2], strength=0.5)
    card = card_of(steering, tmp_path)
    rows = table(card, "layer | dose | held-out AUC | log-loss | calibration error")
    assert [row[:2] for row in rows] == [["0", "time 0.5"], ["2", "time 0.5"]]
    assert "ods.Steering.from_pretrained" in card
    assert "at layer 0, 2" in card


def test_the_trials_of_tune_are_shown(tmp_path):
    trial = {"layer": 1, "dose": {"type": "angle", "amount": 0.3}, "value": 0.6}
    trial |= {"effect": {"mean": 2.25, "low": 2.0, "high": 2.5}, "kl_95": 0.08}
    trial |= {"perplexity_ratio": 1.1, "feasible": True, "pareto": True}
    other = trial | {"pareto": False, "value": 0.77}
    receipt = {"trials": [trial, other], "chosen": trial, "reason": "Layer 1 it is."}
    steering = tiny.constant().replace(receipts={"tune": receipt})
    card = card_of(steering, tmp_path)
    assert "held-out texts: Layer 1 it is. Effects" in card
    assert "| 1 | angle 0.3 | 2.25 | 2 | 2.5 | 0.6 | 0.08 | 1.1 | chosen |" in card
    assert "0.77" not in card


def test_the_code_of_the_card_runs(fitted, model, tmp_path):
    folder = fitted.save_pretrained(tmp_path)
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace("this directory, or the name of this repository", str(folder))
    inputs = {"input_ids": tiny.prompt(4), "max_new_tokens": 2}
    exec(code, {"model": model, "tokenizer": tiny.tokenizer(chat=True), "inputs": inputs})
    assert not tiny.hooked(model)


def test_what_is_not_known_is_left_out(tmp_path):
    card = card_of(Steering(ZeroField()), tmp_path)
    assert "None" not in card and "nan" not in card
    for absent in ("What it was learnt from", "How well", "What it does", "calibration"):
        assert f"## {absent}" not in card
    assert "at layer (not set)" in card


def test_a_target_is_named(tmp_path):
    card = card_of(tiny.quadratic().with_strength(Target(0.9, budget=2.0)), tmp_path)
    assert "| dose | until P >= 0.9 within strength 2 |" in card


NASTY = "x | y\n## Heading <script>alert(1)</script> ---\n```"


@pytest.mark.parametrize("key", ["held_out", "reliability", "layers", "tune", "data", "rows"])
@pytest.mark.parametrize(
    "value",
    [
        NASTY,
        [NASTY],
        {NASTY: NASTY},
        [[{}]],
        {"trials": [NASTY, {}]},
        [{"probability": "x"}],
        1e9,
        None,
    ],
)
def test_receipts_of_any_form_make_a_card_that_is_still_one(key, value, tmp_path):
    receipts = {"held_out": {"auc": 0.5}, "data": {"positive": 3}} | {key: value}
    steering = tiny.constant().replace(
        receipts=receipts, method=NASTY, hyperparameters={NASTY: NASTY}
    )
    both = Steering.of((steering, steering.replace(layer=2)))
    for one in (steering, both):
        card = card_of(one, tmp_path)
        assert front_matter(card)["library_name"] == "odesteer"
        assert "<script" not in card and "\n## Heading" not in card
        assert card.count("\n```") == 2
        widths = {
            len(re.findall(r"(?<!\\)\|", line)) for line in card.splitlines() if line[:1] == "|"
        }
        assert widths <= {3, 5, 6, 10}


def test_a_fingerprint_changes_with_everything_that_is_learnt_from():
    base = contrast()
    assert base.sha256 == contrast().sha256 and len(base.sha256) == 64
    first, *others = base.positive
    changed = [
        dataclasses.replace(base, template="plain"),
        dataclasses.replace(base, positive=base.negative, negative=base.positive),
        dataclasses.replace(base, positive=tuple(others)),
        dataclasses.replace(base, positive=(*others, first)),
    ]
    for key, value in {"response": "x", "prompt": "x", "group": "x", "reward": 1.0}.items():
        example = dataclasses.replace(first, **{key: value})
        changed.append(dataclasses.replace(base, positive=(example, *others)))
    assert len({base.sha256, *(each.sha256 for each in changed)}) == len(changed) + 1
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    assert len(Contrast.from_pairs([chat], [chat]).sha256) == 64


def test_describing_a_model_needs_no_tokenizer():
    facts = describe_model(tiny.model("gpt2"))
    assert facts["chat_template_sha256"] is None and facts["layers"] == tiny.DEPTH
