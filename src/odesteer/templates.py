"""Which tokens does the model see for a prompt, with or without a response?

Fitting and generating go through the same function, so that the prompt is the same text in
both and special tokens come exactly once.

    "auto"    the tokenizer's chat template, or "plain" where it has none
    "chat"    the tokenizer's chat template
    "plain"   "{prompt}\\n{response}"
    a format  such as "Q: {prompt}\\nA: {response}"
"""

from collections.abc import Sequence
from typing import Any

PLAIN = "{prompt}\n{response}"
Messages = Sequence[dict[str, str]]


def encode(
    tokenizer: Any,
    prompt: str | Messages | None,
    response: str | None = None,
    template: str = "auto",
) -> list[int]:
    """Token ids of a prompt, or of a prompt and its response up to its last character.

    Args:
        tokenizer: a transformers tokenizer.
        prompt: text, chat messages, or None for a bare text given as `response`.
        response: what follows; None stops where the model would begin to answer.
        template: see above; it does not apply to bare texts.

    Raises:
        ValueError: if the template lacks its fields, or "chat" is asked of a tokenizer
            without a chat template.
    """
    if prompt is None:
        return list(tokenizer(response or "").input_ids)
    if not isinstance(prompt, str) or _wants_chat(tokenizer, template):
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        if tokenizer.chat_template is None:
            raise ValueError(
                "This tokenizer has no chat template, so chat messages cannot be rendered; give "
                'plain prompts and template="plain" or a format such as '
                '"Q: {prompt}\\nA: {response}".'
            )
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        # The template has written the special tokens already. The response ends the text:
        # no end-of-turn token follows, so the last token is one of the response's own.
        return list(tokenizer(text + (response or ""), add_special_tokens=False).input_ids)
    form = PLAIN if template in ("auto", "plain") else template
    if "{prompt}" not in form or "{response}" not in form:
        raise ValueError(
            f"A template needs {{prompt}} and {{response}}; got {form!r}. Or use 'auto', 'chat' "
            f"or 'plain'."
        )
    if response is None:
        # A space before the response belongs to its first word in most vocabularies.
        text = form.split("{response}")[0].replace("{prompt}", prompt)
        return list(tokenizer(text.rstrip(" ")).input_ids)
    text = form.replace("{response}", "\0").replace("{prompt}", prompt).replace("\0", response)
    return list(tokenizer(text).input_ids)


def _wants_chat(tokenizer: Any, template: str) -> bool:
    return template == "chat" or (template == "auto" and tokenizer.chat_template is not None)
