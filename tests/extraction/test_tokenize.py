"""The prompt that is fitted on is token for token the one that is generated from."""

import pytest
import torch
from tests.helpers.chat_models import AROUND, EOS, TEMPLATES, WRITE_BOS, tokenizer
from tests.helpers.models import VOCABULARY
from tests.helpers.models import model as tiny_model
from tests.helpers.models import tokenizer as tiny_tokenizer

import odesteer as ods
from odesteer.models.chat_template import encode, encode_parts

PROMPT = "Is it good?"
RESPONSES = ["Yes.", "Yes. It is good.", "\nYes", " Yes", "the cat: a\n\nb", "No"]
KINDS = ["bytes", "greedy", "metaspace"]

every_template = pytest.mark.parametrize("template", TEMPLATES)
every_kind = pytest.mark.parametrize("kind", KINDS)
every_around = pytest.mark.parametrize("around", AROUND)


@every_template
@every_kind
@every_around
def test_in_a_chat_the_prompt_is_what_the_template_makes_of_it(template, kind, around):
    tok = tokenizer(template, around, kind)
    asked = [{"role": "user", "content": PROMPT}]
    theirs = tok.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert encode(tok, PROMPT) == encode(tok, asked) == theirs
    for response in RESPONSES:
        before, after = encode_parts(tok, PROMPT, response)
        assert before == theirs
        assert encode(tok, PROMPT, response) == before + after


@every_template
@every_kind
@every_around
def test_in_a_chat_special_tokens_come_once_and_the_response_ends_the_text(template, kind, around):
    tok = tokenizer(template, around, kind)
    for response in (None, *RESPONSES):
        ids = encode(tok, PROMPT, response)
        assert ids.count(tok.bos_token_id) == (template in WRITE_BOS)
        assert tok.bos_token_id not in ids[1:]
        assert tok.eos_token_id not in ids
        if response is not None:
            said = tok.decode(encode_parts(tok, PROMPT, response)[1])
            assert said.strip() == response.strip()
            assert not said[-1:].isspace()


@every_kind
@every_around
@pytest.mark.parametrize("form", ["plain", "Q: {prompt}\nA: {response}", "{prompt}{response}"])
def test_without_a_chat_template_the_same_holds(kind, around, form):
    tok = tokenizer(None, around, kind)
    has_bos = "bos" in around
    for prompt in (PROMPT, "", "trailing  "):
        before = encode(tok, prompt, None, form)
        assert before[:1].count(tok.bos_token_id) == before.count(tok.bos_token_id) == has_bos
        for response in RESPONSES:
            start, rest = encode_parts(tok, prompt, response, form)
            assert start == before
            assert tok.eos_token_id not in start + rest
            assert tok.bos_token_id not in rest
            text = (form if form != "plain" else "{prompt}\n{response}").format(
                prompt=prompt, response=response
            )
            # SentencePiece begins every text with a space, also a response made by itself.
            assert tok.decode(start + rest, skip_special_tokens=True).split() == text.split()


@every_kind
@every_around
def test_the_last_token_of_a_bare_text_is_the_texts_own(kind, around):
    tok = tokenizer(None, around, kind)
    ids = encode(tok, None, "the cat sat.")
    assert ids.count(tok.bos_token_id) == ("bos" in around)
    assert tok.eos_token_id not in ids
    assert tok.decode(ids[-1:]).strip().endswith(".")


def test_where_tokens_would_merge_over_the_border_the_response_is_tokenised_by_itself():
    tok = tokenizer("chatml", kind="greedy")
    before, after = encode_parts(tok, PROMPT, "\nYes")
    together = tok(tok.decode(before) + "\nYes", add_special_tokens=False).input_ids
    assert together[: len(before)] != before  # "\n" and "\nYes" begin with one token "\n\n"
    assert tok.decode(together) == tok.decode(before + after)
    assert after == tok("\nYes", add_special_tokens=False).input_ids


def test_where_they_do_not_merge_they_are_those_of_the_whole_text():
    tok = tokenizer("chatml", "bos", "bytes")
    whole = encode(tok, PROMPT, "Yes. It is good.")
    assert whole == tok(tok.decode(whole), add_special_tokens=False).input_ids


def test_a_begin_of_sequence_token_that_the_format_writes_is_not_doubled():
    for around in ("nothing", "bos"):
        tok = tokenizer(None, around)
        ids = encode(tok, PROMPT, "Yes.", "<s>{prompt}\n{response}")
        assert ids.count(tok.bos_token_id) == 1


def test_what_a_format_has_after_the_response_is_not_read():
    tok = tokenizer(None, "bos")
    assert encode(tok, PROMPT, "Yes.", "{prompt}\n{response}" + EOS + "\n") == encode(
        tok, PROMPT, "Yes.", "{prompt}\n{response}"
    )
    with pytest.raises(ValueError, match="in this order"):
        encode(tok, PROMPT, "Yes.", "{response} answers {prompt}")


def test_a_template_may_write_a_space_before_the_answer():
    tok = tokenizer("mistral", "bos")
    ids = encode(tok, PROMPT, "Yes.")
    assert tok.decode(ids) == f"<s>[INST] {PROMPT} [/INST] Yes."
    assert encode(tok, PROMPT, " Yes.") != encode(tok, PROMPT, "Yes.")


def test_a_template_that_trims_ends_with_the_last_visible_character_like_any_other():
    for name in ("llama 3", "chatml"):
        tok = tokenizer(name, "bos")
        assert encode(tok, PROMPT, "Yes.\n\n") == encode(tok, PROMPT, "Yes.")


def test_a_template_without_a_system_role_says_so():
    tok = tokenizer("gemma", "bos")
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    with pytest.raises(
        ValueError, match=r"\['system', 'user'\]: System role not supported\. A sys"
    ):
        encode(tok, chat)


def test_a_default_system_prompt_is_in_both():
    tok = tokenizer("default system")
    for response in (None, "Yes."):
        assert tok.decode(encode(tok, PROMPT, response)).count("You help.") == 1
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": PROMPT}]
    assert "You help." not in tok.decode(encode(tok, own, "Yes."))


def test_an_open_think_block_stays_open_and_is_opened_once():
    tok = tokenizer("think", "bos")
    start = f"<s><|User|>{PROMPT}<|Assistant|><think>\n"
    assert tok.decode(encode(tok, PROMPT)) == start
    thought = "It is.</think>\n\nYes."
    for response in (thought, f"<think>\n{thought}"):
        assert tok.decode(encode(tok, PROMPT, response)) == start + thought


@every_template
def test_several_turns_are_one_prompt(template):
    tok = tokenizer(template, "bos")
    turns = [
        {"role": "user", "content": "How are you?"},
        {"role": "assistant", "content": "Very well."},
        {"role": "user", "content": PROMPT},
    ]
    theirs = tok.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert encode(tok, turns) == encode(tok, turns, "Yes.")[: len(theirs)] == theirs


@pytest.mark.parametrize("chat", [True, False])
def test_what_is_fitted_on_begins_with_what_is_generated_from(chat):
    net, tok = tiny_model(), tiny_tokenizer(chat=chat)
    seen = []
    net.get_input_embeddings().register_forward_pre_hook(
        lambda _module, args: seen.append(args[0].clone())
    )
    ods.TransformersBackend(net, tok).generate(["the cat"], None, ods.Sampling(max_new_tokens=1))
    generated_from = seen[0]
    seen.clear()
    contrast = ods.Contrast.from_pairs([("the cat", "sat")], [("the cat", "ran")])
    ods.activations(net, tok, contrast, 1)
    (fitted_on,) = seen
    t = generated_from.shape[1]
    assert fitted_on.shape == (2, t + 1)
    assert torch.equal(fitted_on[:, :t], generated_from.expand(2, t))
    assert int(fitted_on.max()) < VOCABULARY


@pytest.mark.slow
def test_the_real_tokenizer_keeps_all_of_it():
    from odesteer.models.loading import SMOLLM2, load_model

    _, tok = load_model(SMOLLM2)
    asked = [{"role": "user", "content": PROMPT}]
    theirs = tok.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    for template in ("auto", "plain", "Q: {prompt}\nA: {response}"):
        before = encode(tok, PROMPT, None, template)
        assert before == theirs or template != "auto"
        for response in (*RESPONSES, "\n\nYes", "  two spaces", "```python\nprint(1)\n```"):
            start, rest = encode_parts(tok, PROMPT, response, template)
            assert start == before
            assert tok.decode(rest).strip() == response.strip()
            assert not set(rest) & set(tok.all_special_ids)
