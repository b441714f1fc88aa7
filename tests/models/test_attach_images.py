"""Steering models that see images: which tokens are the prompt, and which blocks run at all."""

import warnings

import pytest
import torch
from tests.helpers.models import DEPTH, VOCABULARY, WIDTH, constant, hooked, prompt
from transformers import Blip2Config, Blip2ForConditionalGeneration, MllamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

IMAGE, QUERIES, NEW = VOCABULARY - 1, 3, 4
PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TEXT = torch.cat([prompt(5, seed=1), prompt(5, seed=2)]).clamp_max(IMAGE - 1)
IDS = torch.cat([torch.full((2, QUERIES), IMAGE), TEXT], dim=1)


@pytest.fixture(scope="module")
def captioner():
    """BLIP-2: its `generate` begins with pixels and hands over to the language model inside."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = Blip2Config(
        vision_config=small | {"num_attention_heads": 2, "image_size": 8, "patch_size": 4},
        qformer_config=small
        | {"num_attention_heads": 2, "encoder_hidden_size": 16, "vocab_size": VOCABULARY},
        text_config={
            "model_type": "opt",
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "word_embed_proj_dim": WIDTH,
            "ffn_dim": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "bos_token_id": 5,
            "eos_token_id": None,
            "pad_token_id": 0,
        },
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
        image_token_id=IMAGE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blip2ForConditionalGeneration(config).eval()


@pytest.mark.parametrize(
    ("args", "kwargs", "length"),
    [
        ((), {"pixel_values": PIXELS, "input_ids": IDS}, IDS.shape[1]),
        ((PIXELS,), {"input_ids": IDS}, IDS.shape[1]),
        ((), {"pixel_values": PIXELS}, QUERIES + 1),
    ],
    ids=["by name", "pixels first", "image alone"],
)
@pytest.mark.parametrize("positions", ["last+generated", "generated", "prompt", "all"])
def test_the_tokens_of_an_image_are_prompt_however_it_is_given(
    captioner, args, kwargs, length, positions
):
    with constant(layer=1).attach(captioner, positions=positions) as handle:
        with torch.no_grad():
            captioner.generate(*args, **kwargs, max_new_tokens=NEW, do_sample=False)
        steered = handle.stats()["steered"]
    # The last new token is never read.
    read = {"last+generated": NEW, "generated": NEW - 1, "prompt": length}
    assert steered == 2 * read.get(positions, length + NEW - 1)
    assert not hooked(captioner)
    assert all("generate" not in vars(module) for module in captioner.modules())


@pytest.fixture(scope="module")
def looker():
    config = MllamaTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=DEPTH,
        num_attention_heads=4,
        num_key_value_heads=2,
        cross_attention_layers=[2],
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MllamaForCausalLM(config).eval()


def test_a_block_that_runs_only_with_an_image_is_warned_of(looker):
    with (
        pytest.warns(UserWarning, match=r"Block 2 .*MllamaCrossAttention.* text alone is not"),
        constant(layer=2).attach(looker) as handle,
        torch.no_grad(),
    ):
        looker(TEXT)
    assert handle.stats()["tokens"] == 0


def test_the_other_blocks_of_such_a_model_are_steered_without_a_word(looker):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        with constant(layer=3).attach(looker) as handle:
            looker(TEXT)
    assert handle.stats()["steered"] == 2
