"""Tokens of a prompt and its response."""

import pytest
from tests.helpers.models import tokenizer

from odesteer.models.chat_template import encode

CHAT, PLAIN = tokenizer(chat=True), tokenizer()
PROMPT, RESPONSE = "the cat sat", "on the mat"
MESSAGES = [
    {"role": "system", "content": "good bird"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat"},
    {"role": "user", "content": "on the mat"},
]
TEMPLATES = ["auto", "chat", "plain", "Q: {prompt}\nA: {response}", "{prompt} {response}"]


def words(ids, tok=PLAIN):
    return " ".join(tok.convert_ids_to_tokens(ids))


def available(template):
    return [CHAT] if template == "chat" else [CHAT, PLAIN]


def test_plain_is_the_prompt_a_line_break_and_the_response():
    for template in ("plain", "auto"):
        assert words(encode(PLAIN, PROMPT, RESPONSE, template)) == f"<s> {PROMPT} {RESPONSE}"
    assert words(encode(CHAT, PROMPT, RESPONSE, "plain")) == f"<s> {PROMPT} {RESPONSE}"


def test_auto_is_the_chat_template_where_there_is_one():
    expected = f"<s> <user> {PROMPT} <end> <assistant> {RESPONSE}"
    for template in ("auto", "chat"):
        assert words(encode(CHAT, PROMPT, RESPONSE, template)) == expected


def test_a_format_puts_prompt_and_response_in_their_places():
    form = "Q: {prompt}\nA: {response}"
    for tok in (PLAIN, CHAT):
        assert words(encode(tok, PROMPT, RESPONSE, form)) == f"<s> Q: {PROMPT} A: {RESPONSE}"
        assert words(encode(tok, PROMPT, None, form)) == f"<s> Q: {PROMPT} A:"


def test_messages_go_through_the_chat_template_and_end_where_the_model_answers():
    start = "<s> <system> good bird <end> <user> the cat <end> <assistant> sat <end>"
    start += " <user> on the mat <end> <assistant>"
    assert words(encode(CHAT, MESSAGES)) == start
    assert words(encode(CHAT, MESSAGES, "was good")) == f"{start} was good"


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_begin_of_sequence_token_comes_exactly_once(template):
    for tok in available(template):
        for prompt, response in ((PROMPT, RESPONSE), (PROMPT, None), (None, RESPONSE)):
            ids = encode(tok, prompt, response, template)
            assert ids[0] == tok.bos_token_id
            assert ids.count(tok.bos_token_id) == 1


def test_a_tokenizer_that_adds_no_begin_of_sequence_gets_none():
    assert words(encode(tokenizer(bos=False), PROMPT, RESPONSE)) == f"{PROMPT} {RESPONSE}"


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_prompt_is_a_prefix_of_prompt_and_response(template):
    for tok in available(template):
        prompt, both = (encode(tok, PROMPT, r, template) for r in (None, RESPONSE))
        assert both[: len(prompt)] == prompt
        assert words(both[len(prompt) :]) == RESPONSE


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_last_token_is_the_last_of_the_response(template):
    for tok in available(template):
        assert words(encode(tok, PROMPT, "good bird", template)).split()[-1] == "bird"


def test_a_bare_text_is_taken_as_it_is():
    for tok in (PLAIN, CHAT):
        for template in ("auto", "plain", "Q: {prompt}\nA: {response}"):
            assert words(encode(tok, None, RESPONSE, template)) == f"<s> {RESPONSE}"


def test_braces_in_the_users_text_stay_the_users():
    class Spy:
        chat_template = None
        input_ids = (0,)

        def __init__(self):
            self.texts = []

        def __call__(self, text, add_special_tokens=True):
            self.texts.append(text)
            return self

    spy = Spy()
    encode(spy, "{response} {x}", "{prompt} {0}", "Q: {prompt} A: {response}")
    assert "Q: {response} {x} A: {prompt} {0}" in spy.texts
    encode(spy, "{response} {prompt}", None, "Q: {prompt} A: {response}")
    assert "Q: {response} {prompt} A:" in spy.texts


@pytest.mark.parametrize("template", ["{prompt}", "{response}", "chatt", ""])
def test_a_template_without_its_fields_is_refused(template):
    with pytest.raises(ValueError, match=r"needs \{prompt\} and \{response\}"):
        encode(PLAIN, PROMPT, RESPONSE, template)


@pytest.mark.parametrize(("prompt", "template"), [(PROMPT, "chat"), (MESSAGES, "auto")])
def test_chat_without_a_chat_template_is_refused_with_a_way_out(prompt, template):
    with pytest.raises(ValueError, match=r"no chat template.*plain"):
        encode(PLAIN, prompt, RESPONSE, template)
