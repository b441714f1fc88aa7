"""Tiny random models of any transformers architecture.

The class's default configuration with fewer and narrower blocks: sizes are recognised by their
names in configurations, and lists with an entry for each block keep one of every kind.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

DEPTH = 4
# A larger model gets no weights: meta device.
_PARAMETERS = 20_000_000

# Names of sizes in configurations, by a small value that fits the rest: 4 heads of 8 are 32 wide,
# and the state of a Mamba mixer is twice that.
_BY_SIZE: dict[int, str] = {
    32: "hidden_size d_model n_embd embed_dim embedding_size emb_dim dim_model out_hidden_size "
    "word_embed_proj_dim text_hidden_size moe_intermediate_size shared_expert_intermediate_size "
    "shared_experts_intermediate_size expert_ffn_hidden_size adapter_in_dim",
    64: "intermediate_size ffn_hidden_size decoder_ffn_dim ffn_dim encoder_ffn_dim n_inner dff "
    "dim_ff attention_hidden_size mamba_d_ssm",
    16: "mamba_d_head mamba_head_dim attention_head_dim",
    8: "head_dim dim_head qk_rope_head_dim qk_nope_head_dim v_head_dim kv_lora_rank q_lora_rank "
    "n_mamba_heads mamba_headdim hidden_size_per_layer_input indexer_head_dim indexer_budget "
    "index_head_dim index_topk",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads rotary_dim "
    "encoder_attention_heads mamba_n_heads mamba_num_heads num_experts num_local_experts "
    "n_routed_experts zero_expert_num index_n_heads",
    2: "num_key_value_heads num_kv_heads mamba_expand num_experts_per_tok num_experts_per_token "
    "moe_topk top_k_experts indexer_n_heads indexer_compress_ratio",
    1: "expand n_group n_groups topk_group num_expert_group n_shared_experts num_shared_experts "
    "indexer_kv_heads num_codebooks",
    0: "num_kv_shared_layers",
    99: "vocab_size vocab_size_per_layer_input",
}
_SMALL = {name: size for size, names in _BY_SIZE.items() for name in names.split()}
_DEPTHS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"),
    *("encoder_layers", "num_decoder_layers", "num_encoder_layers", "depth"),
)

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_DRAFTER = {
    "num_hidden_layers": DEPTH,
    "layer_types": ["sliding_attention", "full_attention"] * (DEPTH // 2),
    "num_kv_shared_layers": DEPTH // 2,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
}
# Settings that a class's defaults leave out or contradict.
_REQUIRED: dict[str, dict[str, Any]] = {
    "cohere_compass": {"text_config": {"rope_parameters": {"full_attention": _ROPE}}},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "gemma4_assistant": {"text_config": _DRAFTER | {"num_kv_shared_layers": DEPTH}},
    "gemma4_unified_assistant": {"text_config": _DRAFTER},
    "lfm2_moe": {"num_hidden_layers": DEPTH, "layer_types": ["conv", "full_attention"] * 2},
    "qwen4_exp": {"text_config": {"output_gate_type": "silu"}},
    "qwen4_exp_text": {"output_gate_type": "silu"},
    "reformer": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_models(task: str, model_type: str, reasons: list[str]) -> Iterator[nn.Module]:
    """Yield models in eval mode, smallest first: small, only shallow, and as the defaults are.

    Args:
        task: "causal-lm" or "image-text-to-text", whose Auto class builds them.
        model_type: transformers' name of the architecture.
        reasons: receives a line for each model that could not be built.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    maker: Any = AutoModelForCausalLM if task == "causal-lm" else AutoModelForImageTextToText
    kind, needs = CONFIG_MAPPING[model_type], _REQUIRED.get(model_type, {})

    def build(narrow: bool, shallow: bool) -> nn.Module | None:
        try:
            config = kind(**needs)
            if shallow:
                config = kind(**_smaller(config, narrow, needs))
            with torch.device("meta"):
                model = _from_config(maker, config)
            if sum(p.numel() for p in model.parameters()) <= _PARAMETERS:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    model = _from_config(maker, config)
            return model.float().eval()
        # Not all defaults can be built, and they fail with every kind of error.
        except Exception as error:
            reasons.append(short(error))
            return None

    for sizes in ((True, True), (False, True), (False, False)):
        if (model := build(*sizes)) is not None:
            yield model


def short(error: Exception) -> str:
    """Return an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"


def _from_config(maker: Any, config: Any) -> nn.Module:
    """Build a model, also if its class is for one part of a composite configuration."""
    cls: Any = maker._model_mapping[type(config)]
    cls = cls[0] if isinstance(cls, tuple) else cls
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if cls.config_class is type(part):
            config = part
    model: nn.Module = cls._from_config(config)
    return model


def _smaller(config: Any, narrow: bool, needs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the configuration, with smaller sizes and the required settings."""
    settings = config.to_dict()
    depth = getattr(config, "num_hidden_layers", 0) or 0
    changed: dict[str, Any] = {}
    lists = {
        name: value
        for name, value in settings.items()
        if isinstance(value, list | tuple) and len(value) == depth > DEPTH
    }
    kept = _one_of_each(list(zip(*(map(str, value) for value in lists.values()), strict=True)))
    for name, value in settings.items():
        number = isinstance(value, int) and not isinstance(value, bool)
        if name in lists:
            changed[name] = [value[i] for i in kept]
        elif name in _DEPTHS and number:
            changed[name] = min(value, DEPTH)
        elif narrow and name in _SMALL and (number or value is None):
            changed[name] = _SMALL[name]
        elif narrow and name.endswith("_token_id") and number and value >= _SMALL["vocab_size"]:
            changed[name] = 1
        elif narrow and name == "rope_parameters" and isinstance(value, dict):
            changed[name] = _small_rope(value)
    if settings.get("num_key_value_heads") == settings.get("num_attention_heads", 0) and narrow:
        # Not every attention can share keys: shared only if the default shares them.
        changed["num_key_value_heads"] = _SMALL["num_attention_heads"]
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if hasattr(part, "to_dict"):
            kind: Any = type(part)
            changed[name] = kind(**_smaller(part, narrow, needs.get(name, {})))
    return changed | {
        name: value for name, value in needs.items() if name not in config.sub_configs
    }


def _one_of_each(kinds: list[Any]) -> list[int]:
    """`DEPTH` indices in order, of as many kinds of block as possible."""
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)][:DEPTH]
    rest = [i for i in range(len(kinds)) if i not in firsts]
    return sorted(firsts + rest[: DEPTH - len(firsts)])


def _small_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Sections of a rotary embedding that fill a head of 8."""
    small: dict[str, Any] = {
        name: _small_rope(value) if isinstance(value, dict) else value
        for name, value in rope.items()
    }
    if "mrope_section" in small:
        small |= {"mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    return small
