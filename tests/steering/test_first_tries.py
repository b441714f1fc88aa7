"""What is tried first works, or one line says what to call instead."""

import warnings
from typing import Any

import datasets
import pytest
import torch
from tests.helpers import models as tiny
from tests.helpers.models import WIDTH

import odesteer as ods
from odesteer import Angle, Contrast, Steering, Target
from odesteer.ode import ConstantField, GradientField, LinearBarrier

MODEL, TOKENIZER = tiny.model(), tiny.tokenizer(chat=True)
SUBJECTS = [f"{who} {does}" for who in ("the cat", "a dog", "the bird") for does in ("sat", "ran")]
POSITIVE = [f"{who} is good" for who in SUBJECTS]
NEGATIVE = [f"{who} is bad" for who in SUBJECTS]
PAIRS = list(zip(POSITIVE, NEGATIVE, strict=True))
ROWS = [{"positive": good, "negative": bad} for good, bad in PAIRS]
CONTRAST = Contrast.from_pairs(POSITIVE, NEGATIVE)


def fit(*data: Any, layer: Any = 1, **more: Any) -> Steering:
    return ods.fit(MODEL, TOKENIZER, *data, method="caa", layer=layer, **more)


@pytest.fixture(scope="module")
def steering() -> Steering:
    return fit(CONTRAST)


def refuses(words: str, call: Any) -> None:
    """The whole message is one line with these words."""
    with pytest.raises(ValueError) as caught:
        call()
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 300


# ---- texts


@pytest.mark.parametrize(
    "data",
    [
        (POSITIVE, NEGATIVE),
        ((POSITIVE, NEGATIVE),),
        (PAIRS,),
        (ROWS,),
        ({"positive": POSITIVE, "negative": NEGATIVE},),
        (datasets.Dataset.from_list(ROWS),),
        (Contrast.from_pairs(PAIRS),),
        (Contrast.from_dataset(datasets.Dataset.from_list(ROWS)),),
    ],
    ids=["two lists", "a tuple", "pairs", "rows", "dict", "Dataset", "from_pairs", "from_dataset"],
)
def test_fit_takes_texts_as_they_come(data: Any, steering: Steering) -> None:
    fitted = fit(*data)
    assert torch.equal(fitted.field.direction, steering.field.direction)


def test_a_path_is_read(tmp_path: Any) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("positive,negative\n" + "\n".join(map(",".join, PAIRS)))
    assert [each.response for each in Contrast.of(file).positive] == POSITIVE


def test_two_lists_are_taken_by_whatever_takes_a_contrast() -> None:
    expected = ods.activations(MODEL, TOKENIZER, CONTRAST, 1)
    for given in (
        ods.activations(MODEL, TOKENIZER, POSITIVE, NEGATIVE, layer=1),
        ods.activations(MODEL, TOKENIZER, POSITIVE, NEGATIVE, 1),
        ods.activations(MODEL, TOKENIZER, Contrast.from_pairs(PAIRS), layer=1),
    ):
        assert all(map(torch.equal, given, expected))


def test_a_list_of_texts_has_activations() -> None:
    positive, negative = ods.activations(MODEL, TOKENIZER, CONTRAST, 1)
    rows = ods.activations(MODEL, TOKENIZER, POSITIVE + NEGATIVE, layer=1)
    assert torch.equal(rows, torch.cat([positive, negative]))
    every = ods.activations(MODEL, TOKENIZER, POSITIVE)
    assert list(every) == list(range(tiny.DEPTH)) and torch.equal(every[1], positive)


def test_layer_and_layers_are_the_same_everywhere(steering: Steering) -> None:
    assert ods.fit(MODEL, TOKENIZER, CONTRAST, "caa", layers=1).layer == steering.layer == 1
    assert ods.fit(MODEL, TOKENIZER, CONTRAST, "caa", layers=[0, 2]).layer == (0, 2)
    assert list(ods.activations(MODEL, TOKENIZER, CONTRAST, layers=[1, 2])) == [1, 2]
    with pytest.raises(ValueError, match="Layer 9 is out of range"):
        ods.tune(MODEL, TOKENIZER, CONTRAST, "caa", layer=9)
    refuses("layers is another name of layer; give one of them.", lambda: fit(CONTRAST, layers=[1]))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Contrast.from_pairs("a good day", "a bad day"), "A class is a list of texts"),
        (lambda: Contrast.from_pairs(POSITIVE), "one list of (positive, negative) pairs"),
        (lambda: Contrast(POSITIVE, NEGATIVE), "Contrast.from_pairs(positives, negatives)"),  # type: ignore[arg-type]
        (lambda: fit(3), "or of two lists by Contrast.from_pairs(positives, negatives); got int"),
        (lambda: fit(CONTRAST, strength="0.2"), "such as 0.5 or Angle(0.2); got '0.2'"),
        (
            lambda: ods.score(MODEL, TOKENIZER, fit(CONTRAST), "the cat"),
            "score reads a list of texts",
        ),
    ],
)
def test_other_data_is_refused(call: Any, words: str) -> None:
    refuses(words, call)


def test_what_is_doubtful_is_said() -> None:
    with pytest.warns(UserWarning, match="3 positive and 2 negative texts do not pair up"):
        Contrast.from_pairs(POSITIVE[:3], NEGATIVE[:2])
    with pytest.warns(UserWarning, match="One pair of texts says little"):
        fit(POSITIVE[:1], NEGATIVE[:1])
    with pytest.warns(UserWarning, match=r"Angle\(50\) is a path of 50 times the activation's"):
        Angle(50.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Angle(-3.0)


# ---- models


def test_model_and_tokenizer_that_are_swapped_or_named_are_refused(steering: Steering) -> None:
    swapped = "The model comes first and the tokenizer second"
    named = "model, tokenizer = odesteer.models.load_model('smollm2')"
    for call in (
        lambda *loaded: ods.fit(*loaded, CONTRAST),
        lambda *loaded: ods.tune(*loaded, CONTRAST),
        lambda *loaded: ods.activations(*loaded, CONTRAST, 1),
        lambda *loaded: ods.score(*loaded, steering, POSITIVE),
        lambda *loaded: ods.assess(*loaded, steering, CONTRAST),
        lambda *loaded: steering.generate(*loaded, "the cat"),
    ):
        refuses(swapped, lambda call=call: call(TOKENIZER, MODEL))
        refuses(named, lambda call=call: call("smollm2", TOKENIZER))
        refuses("The tokenizer is one of transformers", lambda call=call: call(MODEL, POSITIVE))
    refuses("A model of transformers is steered; got", lambda: steering.attach(TOKENIZER))


def test_a_steering_of_another_model_says_of_which(steering: Steering) -> None:
    refuses(
        "This steering was fitted on LlamaForCausalLM (llama, 4 blocks of width 32); this is "
        "GPT2LMHeadModel (gpt2, 4 blocks of width 32): model type llama and not gpt2; fit one on "
        "this model",
        lambda: steering.attach(tiny.model("gpt2")),
    )
    facts = {**steering.model, "name": "SmolLM2", "layers": 30}
    deep = steering.replace(layer=14, model=facts)
    refuses(
        "fitted on SmolLM2 (llama, 30 blocks of width 32); this is LlamaForCausalLM (llama, 4 "
        "blocks of width 32): layer 14 and not 0 to 3",
        lambda: deep.attach(MODEL),
    )


# ---- a dose


def logits(steering: Steering, **more: Any) -> torch.Tensor:
    ids = tiny.prompt(5)
    with steering.attach(MODEL, **more), torch.no_grad():
        return MODEL(ids).logits


def test_a_dose_may_be_given_where_it_is_used(steering: Steering) -> None:
    other = steering.with_strength(0.2)
    assert torch.equal(logits(steering, strength=0.2), logits(other))
    assert not torch.equal(logits(steering), logits(other))
    a = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(steering(a, strength=0.2), other(a))
    assert torch.equal(steering(a, Angle(0.2)), steering.with_strength(Angle(0.2))(a))
    assert torch.equal(steering(a, dose=Angle(0.2)), steering(a, strength=Angle(0.2)))
    refuses("attach(model, strength=0.2)", lambda: steering.attach(MODEL, 0.2))  # type: ignore[arg-type]


def test_a_dose_is_multiplied() -> None:
    steering = tiny.constant(strength=1.5)
    assert (2 * steering).dose == (steering * 2).dose == ods.Time(3.0)
    assert (-steering).dose == ods.Time(-1.5)
    a = torch.zeros(WIDTH)
    assert torch.equal((-steering)(a), (~steering)(a))
    assert (0.5 * steering.with_strength(Angle(0.4))).dose == Angle(0.2)
    target = Steering(GradientField(LinearBarrier(torch.ones(4), 0.0)), Target(0.9, Angle(0.2)))
    assert (2 * target).dose == Target(0.9, Angle(0.4))
    refuses("use the negated steering ~s with a target", lambda: -target)
    several = Steering.of([tiny.constant(0), tiny.constant(2, strength=3.0)])
    assert [part.strength for part in (-several).parts] == [ods.Time(-1.0), ods.Time(-3.0)]
    with pytest.raises(TypeError):
        "2" * steering


def test_what_is_no_dose_is_refused(steering: Steering) -> None:
    refuses("got '0.2'", lambda: steering.with_strength("0.2"))  # type: ignore[arg-type]
    refuses("Angle must be a finite number; got '0.2'", lambda: Angle("0.2"))  # type: ignore[arg-type]
    refuses(
        "such as 0.5 or Angle(0.2); got KL(budget=0.3)", lambda: steering.with_strength(ods.KL(0.3))
    )  # type: ignore[arg-type]
    refuses("got [0.1, 0.2]", lambda: steering.with_strength([0.1, 0.2]))  # type: ignore[arg-type]


# ---- a vector


def test_a_vector_is_a_steering() -> None:
    vector = torch.arange(4.0)
    steering = Steering.from_vector(vector, 1, strength=0.5)
    assert torch.equal(steering(torch.ones(4)), 1 + 0.5 * vector)
    assert (steering.layer, steering.method) == (1, "vector")
    assert torch.equal(Steering.from_vector(vector.numpy(), layer=1).field.direction, vector)
    refuses("Steering.from_vector(vector, layer)", lambda: Steering(vector, layer=1))  # type: ignore[arg-type]
    refuses("got the shape [1, 4]", lambda: Steering.from_vector(vector[None], 1))
    refuses("finite numbers", lambda: Steering.from_vector([float("nan")], 1))


# ---- texts that are written


def test_generate_is_a_handle_and_the_models_own_generate(steering: Steering) -> None:
    messages = [{"role": "user", "content": "the cat sat"}]
    ids = TOKENIZER.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with steering.attach(MODEL, strength=4.0), torch.no_grad():
        output = MODEL.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = TOKENIZER.decode(
        output[0, ids["input_ids"].shape[1] :], skip_special_tokens=True
    ).strip()
    text = steering.generate(MODEL, TOKENIZER, "the cat sat", strength=4.0, max_new_tokens=6)
    assert text == expected
    more = {"strength": 4.0, "max_new_tokens": 6}
    assert steering.generate(MODEL, TOKENIZER, messages, **more) == expected
    assert steering.generate(MODEL, TOKENIZER, ["the cat sat"], **more) == [expected]
    assert not tiny.hooked(MODEL)
    refuses(
        "Unknown argument of generation 'max_tokens'. Did you mean 'max_new_tokens'?",
        lambda: steering.generate(MODEL, TOKENIZER, "the cat", max_tokens=3),
    )


def test_unsteered_beside_steered(steering: Steering) -> None:
    both = steering.compare(MODEL, TOKENIZER, ["the cat", "a dog"], strength=4.0, max_new_tokens=4)
    unsteered = (0 * steering).generate(MODEL, TOKENIZER, ["the cat", "a dog"], max_new_tokens=4)
    steered = steering.generate(
        MODEL, TOKENIZER, ["the cat", "a dog"], strength=4.0, max_new_tokens=4
    )
    assert (both.unsteered, both.steered) == (tuple(unsteered), tuple(steered))
    lines = str(both).splitlines()
    assert lines[:3] == ["the cat", "unsteered", f"  {unsteered[0]}".rstrip()]
    assert lines[3] == "caa, strength 4" and repr(both) == str(both)
    assert steering.compare(MODEL, TOKENIZER, "the cat", max_new_tokens=4).prompts == ("the cat",)


# ---- shown


def test_what_is_shown_is_short(steering: Steering) -> None:
    assert repr(steering) == "Steering(method='caa', layer=1, strength=1.0)"
    assert repr(steering.only) == "LayerSteering(method='caa', layer=1, strength=1.0)"
    assert repr(CONTRAST) == "Contrast(6 positive, 6 negative, 6 groups)"


def test_notebooks_show_a_card_and_escape_it(steering: Steering) -> None:
    card = steering.replace(method="<b>mine</b>")._repr_html_()
    assert "Steering by &lt;b&gt;mine&lt;/b&gt; at layer 1" in card and "<b>mine" not in card
    assert "<th>held-out auc</th>" in card and "<th>field</th><td>ConstantField</td>" in card
    several = Steering.of([tiny.constant(0), tiny.constant(2)])
    assert "<th>layers</th><td>0, 2</td>" in several._repr_html_()
    pairs = Contrast.from_pairs([("<i>yes</i>", "no")])._repr_html_()
    assert "<td>&lt;i&gt;yes&lt;/i&gt;</td><td>no</td>" in pairs
    both = ods.Steering(ConstantField(torch.ones(WIDTH)), layer=1, method="<u>").compare(
        MODEL, TOKENIZER, "the cat", max_new_tokens=1
    )
    assert "&lt;u&gt;, strength 1" in both._repr_html_()
