"""Architectures of the conformance suite.

Tiny random models of the architectures people use, made from a configuration: no weights are
fetched. Every one is a few kilobytes and generates in milliseconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

WIDTH, DEPTH, VOCABULARY = 32, 4, 64
WINDOW = 6  # tokens; shorter than the prompts, so that sliding caches forget

# No end of sequence, so that generations have the full length; weights large enough that the
# most likely token does not depend on rounding.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_LLAMA = _COMMON | {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
_GPT = _COMMON | {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": 4, "n_positions": 128}
_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
}
_HEADS = {"head_dim": 8}
_SLIDING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"] * 2}
_LATENT = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "num_key_value_heads": 4,
}
_MAMBA = _COMMON | {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "state_size": 8}
_MAMBA_PARTS = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
}


@dataclass(frozen=True)
class Architecture:
    """Tiny model of one transformers architecture.

    Attributes:
        model_type: of the configuration.
        settings: of the configuration.
        blocks: path of the decoder blocks, written down: an oracle for libraries that search.
        excuses: by check, why it does not apply to this model.
    """

    model_type: str
    settings: Mapping[str, Any]
    blocks: str = "model.layers"
    excuses: Mapping[str, str] = field(default_factory=dict)

    def build(self, seed: int = 0) -> nn.Module:
        """Build a random model in eval mode, the same for the same seed.

        Raises:
            ValueError: if the installed transformers does not know it.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        config: Any = AutoConfig.for_model(self.model_type, **self.settings)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = AutoModelForCausalLM.from_config(config)
        return model.eval()


_ALL = (
    Architecture("llama", _LLAMA),
    Architecture("mistral", _LLAMA | {"sliding_window": WINDOW}),
    Architecture("mixtral", _LLAMA | _EXPERTS),
    Architecture("qwen2", _LLAMA),
    Architecture("qwen2_moe", _LLAMA | _EXPERTS),
    Architecture("qwen3", _LLAMA | _HEADS),
    Architecture("qwen3_moe", _LLAMA | _EXPERTS | _HEADS),
    Architecture(
        "qwen3_next",
        _LLAMA
        | _EXPERTS
        | _HEADS
        | {
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"] * 2,
        },
    ),
    Architecture("gemma", _LLAMA | _HEADS),
    Architecture("gemma2", _LLAMA | _HEADS | _SLIDING),
    Architecture("gemma3_text", _LLAMA | _HEADS | _SLIDING),
    Architecture(
        "gemma3",
        {
            "text_config": _LLAMA | _HEADS | _SLIDING | {"model_type": "gemma3_text"},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
            },
            "mm_tokens_per_image": 4,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": 0,
            "image_token_id": 1,
            "boi_token_id": 2,
            "eoi_token_id": 3,
        },
        "model.language_model.layers",
    ),
    Architecture("phi", _LLAMA),
    Architecture("phi3", _LLAMA),
    Architecture("gpt2", _GPT, "transformer.h"),
    Architecture(
        "gpt_neo",
        _COMMON
        | {
            "hidden_size": WIDTH,
            "num_layers": DEPTH,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": WINDOW,
            "max_position_embeddings": 128,
            "intermediate_size": 48,
        },
        "transformer.h",
    ),
    Architecture("gpt_neox", _LLAMA, "gpt_neox.layers"),
    Architecture("gptj", _GPT | {"rotary_dim": 4}, "transformer.h"),
    Architecture("codegen", _GPT | {"rotary_dim": 4}, "transformer.h"),
    Architecture("gpt_bigcode", _GPT, "transformer.h"),
    Architecture(
        "opt",
        _COMMON
        | {
            "hidden_size": WIDTH,
            "word_embed_proj_dim": WIDTH,
            "ffn_dim": 48,
            "num_hidden_layers": DEPTH,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "init_std": 0.2,
        },
        "model.decoder.layers",
    ),
    Architecture(
        "bloom", _COMMON | {"hidden_size": WIDTH, "n_layer": DEPTH, "n_head": 4}, "transformer.h"
    ),
    Architecture(
        "mpt",
        _COMMON
        | {
            "d_model": WIDTH,
            "n_layers": DEPTH,
            "n_heads": 4,
            "max_seq_len": 128,
            "use_cache": True,
        },
        "transformer.blocks",
    ),
    Architecture("falcon", _LLAMA, "transformer.h"),
    Architecture("olmo", _LLAMA),
    Architecture("olmo2", _LLAMA),
    Architecture("olmo3", _LLAMA | _SLIDING),
    Architecture("olmoe", _LLAMA | _EXPERTS),
    Architecture("cohere", _LLAMA | {"logit_scale": 1.0}),
    Architecture("cohere2", _LLAMA | _HEADS | _SLIDING | {"logit_scale": 1.0}),
    Architecture("stablelm", _LLAMA),
    Architecture("starcoder2", _LLAMA),
    Architecture("granite", _LLAMA),
    Architecture("granitemoe", _LLAMA | _EXPERTS),
    Architecture("deepseek_v3", _LLAMA | _EXPERTS | _LATENT),
    Architecture("gpt_oss", _LLAMA | _EXPERTS | _HEADS | _SLIDING),
    Architecture("nemotron", _LLAMA),
    Architecture("smollm3", _LLAMA),
    Architecture("glm4", _LLAMA | _HEADS),
    Architecture("helium", _LLAMA | _HEADS),
    Architecture(
        "llama4_text",
        _LLAMA
        | _EXPERTS
        | _HEADS
        | {
            "intermediate_size_mlp": 48,
            "layer_types": ["chunked_attention", "full_attention"] * 2,
            "attention_chunk_size": WINDOW,
            "no_rope_layers": [1, 0, 1, 0],
        },
    ),
    Architecture(
        "xglm",
        _COMMON
        | {
            "d_model": WIDTH,
            "ffn_dim": 48,
            "num_layers": DEPTH,
            "attention_heads": 4,
            "max_position_embeddings": 128,
            "init_std": 0.2,
        },
    ),
    Architecture("mamba", _MAMBA | {"time_step_rank": 4}, "backbone.layers"),
    Architecture(
        "mamba2",
        _MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
        "backbone.layers",
    ),
    Architecture(
        "jamba",
        _LLAMA
        | _EXPERTS
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    Architecture("falcon_h1", _LLAMA | _MAMBA_PARTS | {"mamba_d_ssm": 64}),
    Architecture(
        "granitemoehybrid",
        _LLAMA
        | _EXPERTS
        | _MAMBA_PARTS
        | {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 48},
    ),
    Architecture(
        "recurrent_gemma",
        _LLAMA
        | _HEADS
        | {
            "lru_width": WIDTH,
            "attention_window_size": WINDOW,
            "block_types": ["recurrent", "attention"],
        },
        excuses={"threads": "the model keeps its recurrent state in its modules"},
    ),
    Architecture(
        "lfm2",
        _LLAMA | {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    ),
)
ARCHITECTURES: dict[str, Architecture] = {each.model_type: each for each in _ALL}
"""By model type."""
