"""Chat templates: the tokens of a prompt with or without a response.

Fitting and generating use the same function, so that the prompt is the same tokens in both and
special tokens appear exactly once.

    "auto"    the tokenizer's chat template, or "plain" where it has none
    "chat"    the tokenizer's chat template
    "plain"   "{prompt}\\n{response}"
    a format  such as "Q: {prompt}\\nA: {response}"; what follows {response} is ignored

The tokens of prompt and response always begin with the prompt's. Where a tokenizer would merge
across the border ("\\n" and "\\nYes" into one token), the response is tokenized by itself, which
is what a model that answers this prompt can generate.

A text ends with its response: no end-of-turn and no end-of-sequence token follows. In a chat the
response is rendered by the template, up to its last visible character. A template that opens a
<think> block leaves it open: give responses the way the model writes them, with their thoughts
and </think>.
"""

from collections.abc import Mapping, Sequence
from typing import Any

PLAIN = "{prompt}\n{response}"
THINK = "<think>"
Messages = Sequence[Mapping[str, str]]


def encode(
    tokenizer: Any,
    prompt: str | Messages | None,
    response: str | None = None,
    template: str = "auto",
) -> list[int]:
    """Return the token ids of a prompt and its response, if any; see `encode_parts`."""
    before, after = encode_parts(tokenizer, prompt, response, template)
    return before + after


def encode_parts(
    tokenizer: Any,
    prompt: str | Messages | None,
    response: str | None = None,
    template: str = "auto",
) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt and of the response that follows it.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: text, chat messages, or None for a bare text given as `response`.
        response: what follows; None stops where the model would begin to answer.
        template: see above; it does not apply to bare texts.

    Raises:
        ValueError: if the template lacks its fields or refuses the messages, or "chat" is
            asked of a tokenizer without a chat template.
    """
    if prompt is None:
        return [], _with_lead(tokenizer, _ids(tokenizer, response or ""))
    chat = not isinstance(prompt, str) or _wants_chat(tokenizer, template)
    start, end = (
        _rendered(tokenizer, prompt, response) if chat else _filled(template, prompt, response)
    )
    before, whole = _ids(tokenizer, start), _ids(tokenizer, start + end)
    kept = whole[: len(before)] == before
    after = whole[len(before) :] if kept else _ids(tokenizer, end)
    # A chat template has written the special tokens already.
    return (before if chat else _with_lead(tokenizer, before)), after


def question(prompt: str | Messages) -> str:
    """Return the text of a prompt, or of the last message of a chat."""
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _rendered(tokenizer: Any, prompt: str | Messages, response: str | None) -> tuple[str, str]:
    """Render prompt and response with the chat template."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        raise ValueError(
            "This tokenizer has no chat template, so chat messages cannot be rendered; give "
            'plain prompts and template="plain" or a format such as '
            '"Q: {prompt}\\nA: {response}".'
        )
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    try:
        start = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(
            f"This model's chat template refuses messages with the roles "
            f"{[message.get('role') for message in messages]}: {error}. A system text can stand "
            f"at the beginning of the first user message instead."
        ) from None
    if response is None:
        return start, ""
    try:
        turns = [*messages, {"role": "assistant", "content": response}]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
    except TemplateError:
        whole = ""
    visible = response.strip()
    end = response.rstrip()
    if whole.startswith(start):
        # Some templates write a space before the answer, which the model then says itself;
        # anything more (an empty thought, say) would not be said after this prompt.
        position = whole.find(visible, len(start))
        if position >= 0 and not whole[len(start) : position].strip():
            end = whole[len(start) : position + len(visible)]
    if start.rstrip().endswith(THINK) and end.lstrip().startswith(THINK):
        end = end.lstrip()[len(THINK) :].lstrip()
    return start, end


def _filled(template: str, prompt: str | Messages, response: str | None) -> tuple[str, str]:
    """Render prompt and response with a format."""
    form = PLAIN if template in ("auto", "plain") else template
    before, field, _ = form.partition("{response}")
    if not field or "{prompt}" not in before:
        raise ValueError(
            f"A template needs {{prompt}} and {{response}}, in this order; got {form!r}. Or use "
            f"'auto', 'chat' or 'plain'."
        )
    text = before.replace("{prompt}", str(prompt))
    # A space before the response belongs to its first word in most vocabularies.
    start = text.rstrip(" ")
    return start, "" if response is None else text[len(start) :] + response


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Tokenize a text without adding special tokens."""
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _with_lead(tokenizer: Any, ids: list[int]) -> list[int]:
    """Prepend the tokenizer's begin-of-sequence token, unless it is there.

    What it puts after a text (an end-of-sequence token, in some) is left out: nothing can be
    said after it, and its activation is not the text's.
    """
    bare, full = _ids(tokenizer, "a"), list(tokenizer("a").input_ids)
    starts = range(len(full) - len(bare) + 1)
    size = next((i for i in starts if full[i : i + len(bare)] == bare), 0)
    lead = full[:size]
    return ids if ids[: len(lead)] == lead else lead + ids


def _wants_chat(tokenizer: Any, template: str) -> bool:
    return template == "chat" or (template == "auto" and tokenizer.chat_template is not None)
