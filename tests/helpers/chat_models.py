"""Small chat templates and tokenizers of every kind found in the wild."""

import string

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": _CHATML,
    "default system": "{% if messages[0]['role'] != 'system' %}<|im_start|>system\n"
    "You help.<|im_end|>\n{% endif %}" + _CHATML,
    "llama 3": "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}"
    "<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    "mistral": "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}",
    "think": "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}<|Assistant|>"
    "{{ m['content'].split('</think>')[-1] }}{{ eos_token }}{% else %}<|User|>{{ m['content'] }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
}
# Which of them write the begin-of-sequence token themselves.
WRITE_BOS = {"llama 3", "gemma", "mistral", "think"}
_SPECIAL = [
    BOS,
    EOS,
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "[INST]",
    "[/INST]",
    "<|User|>",
    "<|Assistant|>",
    "<think>",
    "</think>",
]
# What the tokenizer itself puts around a text.
AROUND = {"nothing": "$A", "bos": "<s> $A", "bos and eos": "<s> $A </s>", "eos": "$A </s>"}
_CORPUS = [
    "How are you?\nVery well.",
    "assistant\n\nYes, the cat sat.\n\n\nNo.",
    "Q: Is it good?\nA: Yes. It is good.",
    "user\nassistant\nmodel\n\nsystem\n the cat: it is a good cat",
] * 4


def tokenizer(
    template: str | None = None, around: str = "nothing", kind: str = "bytes"
) -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on a few lines.

    Args:
        template: a name in `TEMPLATES`, or None for a base model's tokenizer.
        around: a name in `AROUND`.
        kind: "bytes" splits words as GPT-2 does; "greedy" merges across words and lines; and
            "metaspace" puts a space before the first word, as SentencePiece does.
    """
    tokens = Tokenizer(BPE(unk_token=None))
    if kind == "metaspace":
        tokens.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        tokens.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = sorted({*string.printable, "▁"})
    else:
        regex = kind == "bytes"
        tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex)
        tokens.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokens.train_from_iterator(_CORPUS, trainer)
    tokens.post_processor = TemplateProcessing(
        single=AROUND[around],
        special_tokens=[(name, tokens.token_to_id(name)) for name in (BOS, EOS)],
    )
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokens,
        bos_token=BOS,
        eos_token=EOS,
        pad_token="<pad>",
        additional_special_tokens=_SPECIAL[3:],
        clean_up_tokenization_spaces=False,
    )
    result.chat_template = None if template is None else TEMPLATES[template]
    return result
