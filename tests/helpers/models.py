"""Small random models, a tokenizer, data and steerings for tests."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from odesteer import Angle, Steering
from odesteer.models.batching import pad
from odesteer.models.layers import find_layers
from odesteer.ode import ConstantField, GradientField, QuadraticBarrier, Whitening
from odesteer.testing import ARCHITECTURES as ALL_ARCHITECTURES
from odesteer.testing.method_checks import two_gaussians  # noqa: F401
from odesteer.testing.suite.architectures import DEPTH, VOCABULARY, WIDTH  # noqa: F401

# The conformance suite runs on all; these stand for the kinds that differ most.
ARCHITECTURES = {
    name: ALL_ARCHITECTURES[name].build for name in ("llama", "gpt2", "qwen2", "gpt_neox", "gemma2")
}


def model(name: str = "llama", seed: int = 0) -> nn.Module:
    """A random model in eval mode, the same for the same seed."""
    return ARCHITECTURES[name](seed)


WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "under",
    "mat",
    "tree",
    "moon",
    "is",
    "was",
    "good",
    "bad",
    "Q:",
    "A:",
]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer(chat: bool = False, bos: bool = True) -> PreTrainedTokenizerFast:
    """One token a word, with a begin-of-sequence token unless `bos` is false."""
    special = ["<pad>", "<s>", "<unk>", "<user>", "<assistant>", "<system>", "<end>"]
    vocabulary = {word: i for i, word in enumerate(special + WORDS)}
    words = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    if bos:
        words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    result = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
    )
    result.chat_template = CHAT_TEMPLATE if chat else None
    return result


def constant(layer: int = 1, strength: float = 1.0, seed: int = 0) -> Steering:
    """a -> a + strength * direction."""
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
    return Steering(ConstantField(direction), strength, layer=layer)


def quadratic(layer: int = 1, seed: int = 0) -> Steering:
    """Follows a quadratic barrier along great circles, for 0.8 of each row's norm."""
    generator = torch.Generator().manual_seed(seed)
    form = torch.randn(WIDTH, WIDTH, generator=generator)
    slope = 3 * torch.randn(WIDTH, generator=generator)
    barrier = QuadraticBarrier.from_form(form, slope, 0.0, Whitening(torch.zeros(WIDTH)))
    field = GradientField(barrier.float())
    return Steering(field, Angle(0.8), solver="great-circle", steps=5, layer=layer)


def prompt(length: int, seed: int = 0) -> Tensor:
    """Random token ids [1, length] without padding tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(7, VOCABULARY, (1, length), generator=generator)


def padded(rows: list[Tensor], left: bool = True) -> tuple[Tensor, Tensor]:
    """Ids and mask [b, longest] of prompts [1, t]."""
    return pad([row[0].tolist() for row in rows], left=left)


def block_outputs(net: nn.Module, ids: Tensor, mask: Tensor | None = None) -> tuple[list, Tensor]:
    """Every block's output as the next block sees it, and the logits."""
    seen = []
    hooks = [
        block.register_forward_hook(
            lambda _m, _a, out: seen.append(out[0] if isinstance(out, tuple) else out)
        )
        for block in find_layers(net)
    ]
    places = None if mask is None else (mask.cumsum(dim=1) - 1).clamp_min(0)
    with torch.no_grad():
        logits = net(input_ids=ids, attention_mask=mask, position_ids=places).logits
    for hook in hooks:
        hook.remove()
    return seen, logits


def hooked(net: nn.Module) -> list[nn.Module]:
    """The modules that carry a forward hook."""
    return [m for m in net.modules() if m._forward_hooks or m._forward_pre_hooks]


def saved(folder: Path, *, chat: bool = True) -> Path:
    """Save the model and its tokenizer to a folder, as commands load them; return it."""
    model().save_pretrained(folder)
    tokenizer(chat=chat).save_pretrained(folder)
    return folder
