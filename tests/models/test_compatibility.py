"""A steering meets the model it was fitted on, one like it, or another one, and says which."""

import pytest
import torch
from tests.helpers import models as tiny
from transformers import LlamaForCausalLM, LlavaConfig, LlavaForConditionalGeneration

from odesteer import CAA, Steering, load
from odesteer.common.catalogue import LEVELS
from odesteer.models.compatibility import describe_model

COMMIT, OTHER_COMMIT = "a" * 40, "b" * 40


def llama(name="me/llama", revision=COMMIT, **changes):
    """A tiny Llama that the Hub knows by that name and commit."""
    config = tiny.ARCHITECTURES["llama"]().config
    for key, value in changes.items():
        setattr(config, key, value)
    model = LlamaForCausalLM(config).eval()
    model.config._name_or_path, model.config._commit_hash = name, revision
    return model


def fitted(model, tokenizer=None, layer=1, **forget):
    """A constant steering that remembers the model, less what it is told to forget."""
    facts = describe_model(model, tokenizer) | forget
    facts = {key: value for key, value in facts.items() if value != "forget"}
    return tiny.constant(layer).replace(model=facts)


def differing(steering, model, tokenizer=None):
    return {each.what: each.accepted_by for each in steering.compatibility(model, tokenizer)}


def attaches(steering, model, level):
    """Whether it can be attached at that level; a refusal is one short line."""
    try:
        steering.attach(model, check=level).remove()
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
        return False
    assert not tiny.hooked(model)
    return True


def accepts(steering, model):
    """The levels at which it attaches."""
    return [level for level in LEVELS if attaches(steering, model, level)]


def test_the_model_it_was_fitted_on_is_accepted_at_every_level():
    model, tokenizer = llama(), tiny.tokenizer(chat=True)
    steering = fitted(model, tokenizer)
    assert steering.compatibility(model, tokenizer) == []
    assert accepts(steering, model) == list(LEVELS)


@pytest.mark.parametrize(
    ("other", "what", "levels"),
    [
        (lambda: llama(revision=OTHER_COMMIT), "revision", ["architecture", "width"]),
        (lambda: llama(name="you/finetune"), "model", ["architecture", "width"]),
        (lambda: llama(num_hidden_layers=3), "layers", ["width"]),
        (lambda: tiny.model("qwen2"), "model type", ["width"]),
        (lambda: llama(hidden_size=16, head_dim=8), "width", []),
    ],
)
def test_each_difference_is_accepted_by_its_level_and_those_below(other, what, levels):
    steering, model = fitted(llama()), other()
    assert what in differing(steering, model)
    assert accepts(steering, model) == levels


def test_the_error_names_both_values_and_the_level_that_would_accept_them():
    steering = fitted(llama())
    with pytest.raises(ValueError, match=r"layers 4 and not 3.*check='width'"):
        steering.attach(llama(num_hidden_layers=3))
    with pytest.raises(ValueError, match=r"revision a{12} and not b{12}; .*check='architecture'"):
        steering.attach(llama(revision=OTHER_COMMIT), check="exact")
    with pytest.raises(ValueError, match=r"4 blocks of width 32\); this is .* width 16\)"):
        steering.attach(llama(hidden_size=16, head_dim=8), check="width")
    with pytest.raises(ValueError, match="Did you mean 'exact'"):
        steering.attach(llama(), check="exakt")


def test_another_chat_template_is_named_where_the_tokenizer_is_given():
    model, tokenizer = llama(), tiny.tokenizer(chat=True)
    steering = fitted(model, tokenizer)
    changed = tiny.tokenizer(chat=True)
    changed.chat_template += " "
    assert differing(steering, model) == {}
    assert differing(steering, model, changed) == {"chat template": "architecture"}
    assert differing(steering, model, tiny.tokenizer()) == {"chat template": "architecture"}
    assert differing(fitted(model, tiny.tokenizer()), model, tokenizer) == {
        "chat template": "architecture"
    }


def test_a_local_copy_is_the_model_of_the_hub(tmp_path):
    local = tmp_path / "llama"
    local.mkdir()
    here = llama(name=str(local), revision=None)
    assert describe_model(here)["name"] == "llama"
    assert accepts(fitted(llama()), here) == list(LEVELS)
    assert accepts(fitted(here), llama()) == list(LEVELS)


def test_one_made_by_hand_is_checked_for_width_and_layer_only():
    assert accepts(tiny.constant(), llama()) == list(LEVELS)
    assert accepts(tiny.constant(), tiny.model("gpt2")) == list(LEVELS)
    assert accepts(tiny.constant(layer=9), llama()) == []
    assert differing(tiny.constant(layer=9), llama()) == {"layer": None}
    assert accepts(tiny.constant(), llama(hidden_size=16, head_dim=8)) == []


def test_one_from_before_revisions_were_kept_still_attaches():
    old = fitted(llama(), text_type="forget", revision="forget", chat_template_sha256="forget")
    assert accepts(old, llama()) == list(LEVELS)
    assert accepts(old, tiny.model("qwen2")) == ["width"]
    assert differing(old, llama(), tiny.tokenizer(chat=True)) == {}


def test_a_model_that_also_sees_takes_a_steering_of_its_language_model():
    text = tiny.model("llama")
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    both = LlavaForConditionalGeneration(
        LlavaConfig(
            text_config=text.config,
            vision_config={"model_type": "clip_vision_model", "projection_dim": 8} | vision,
            image_token_index=3,
        )
    ).eval()
    assert both.config.model_type != text.config.model_type
    for there, here in ((text, both), (both, text)):
        assert "architecture" in accepts(fitted(there), here)
        old = fitted(there, text_type="forget", type=text.config.model_type)
        assert "architecture" in accepts(old, here)
    assert accepts(fitted(tiny.model("qwen2")), both) == ["width"]


def test_a_steering_of_heads_is_not_held_to_the_width_of_the_stream():
    steering = fitted(llama()).replace(site="heads")
    wide = llama(head_dim=16)
    assert "width" not in differing(steering, wide)


def test_several_layers_are_compared_once_and_attach_at_the_level_asked():
    model = llama()
    steering = Steering.of((fitted(model, layer=0), fitted(model, layer=2)))
    other = llama(revision=OTHER_COMMIT)
    assert [each.what for each in steering.compatibility(other)] == ["revision"]
    steering.attach(other).remove()
    with pytest.raises(ValueError, match="revision"):
        steering.attach(other, check="exact")
    assert not tiny.hooked(other)


def test_what_is_remembered_is_saved_and_compared_after_loading(tmp_path):
    model, tokenizer = llama(), tiny.tokenizer(chat=True)
    loaded = load(fitted(model, tokenizer).save_pretrained(tmp_path))
    assert loaded.model == describe_model(model, tokenizer)
    assert loaded.compatibility(model, tokenizer) == []
    assert accepts(loaded, llama(num_hidden_layers=3)) == ["width"]


@pytest.mark.parametrize("value", ["32", [32], {"x": 1}, True, -1, 1e300, "a\nb" * 500])
def test_nonsense_in_what_is_remembered_is_a_difference_and_no_crash(value):
    keys = ("name", "type", "text_type", "revision", "layers", "chat_template_sha256")
    for key in keys:
        steering = tiny.constant().replace(model={key: value})
        both = Steering.of((steering, steering.replace(layer=2)))
        both.compatibility(llama(), tiny.tokenizer(chat=True))
        accepts(steering, llama())


def test_what_is_fitted_remembers_revision_and_template():
    from odesteer import Contrast, fit

    model, tokenizer = llama(), tiny.tokenizer(chat=True)
    contrast = Contrast.from_pairs(["the cat is good"] * 3, ["the cat is bad"] * 3)
    steering = fit(model, tokenizer, contrast, method=CAA(), layer=1)
    assert steering.model["revision"] == COMMIT
    assert len(steering.model["chat_template_sha256"]) == 64
    assert steering.receipts["data"] == {
        "sha256": contrast.sha256,
        "positive": 3,
        "negative": 3,
    }
    with steering.attach(model, check="exact"), torch.no_grad():
        model(tiny.prompt(3))


def test_the_command_line_warns_of_what_it_accepts_and_refuses_the_rest(
    tmp_path, monkeypatch, capfd
):
    from odesteer.cli.load_steering import load_or_fit

    there, tokenizer = llama(), tiny.tokenizer(chat=True)
    path = fitted(there, tokenizer).save_pretrained(tmp_path / "it")

    def run(model, here):
        monkeypatch.setattr("odesteer.models.loading.load_model", lambda *_: (model, here))
        load_or_fit("a model", path, None, None, "auto", None, False, "last+generated")
        printed = capfd.readouterr()
        assert printed.out == ""
        return " ".join(printed.err.split())

    assert run(there, tokenizer) == ""
    err = run(llama(revision=OTHER_COMMIT), tiny.tokenizer())
    assert f"another revision {'a' * 12} and not {'b' * 12}" in err
    assert "another chat template" in err
    with pytest.raises(ValueError, match="layers 4 and not 3"):
        run(llama(num_hidden_layers=3), tokenizer)
