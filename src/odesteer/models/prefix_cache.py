"""KV-cache branches: several texts that continue one shared prefix.

The texts continue the prefix's keys and values as in generation. This is possible only where
every block's cache is a plain one of attention, full or windowed: recurrent and hybrid states are
no sequence of tokens.
"""

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from odesteer.models.fingerprint import hooked
from odesteer.models.layers import find_decoder, text_config, unwrap

# Layer types of attention with keys and values; "chunked" windows begin at multiples.
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


def supports_prefix_cache(model: nn.Module) -> bool:
    """Whether texts can continue a cached prefix: plain attention and no hooks.

    A steering or another hook may treat the second call as generation; accelerate's hooks run
    blocks elsewhere.
    """
    inner = unwrap(model)
    if hooked(model) is not None or any(hasattr(module, "_hf_hook") for module in model.modules()):
        return False
    if getattr(inner, "_is_stateful", False):
        return False
    if "past_key_values" not in inspect.signature(find_decoder(model).forward).parameters:
        return False
    config = text_config(inner)
    if not set(getattr(config, "layer_types", None) or ()) <= _ATTENTION:
        return False
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return bool(kinds) and kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


def empty_cache() -> DynamicCache:
    """Return an empty KV cache, to be filled by a run over prefixes.

    It keeps every token even where a block sees a window: masks hide the tokens outside.
    """
    return DynamicCache()


def branches(prefixes: DynamicCache, chosen: Sequence[int]) -> DynamicCache:
    """Return a KV cache whose row i holds prefix `chosen[i]`."""
    cache = DynamicCache()
    rows = torch.tensor(chosen)
    # Blocks that use another block's keys and values have none themselves.
    cache.layers = [
        DynamicLayer() if layer.keys is None else _Branches(layer.keys, layer.values, rows)
        for layer in cast(list[Any], prefixes.layers)
    ]
    return cache


class _Branches(DynamicLayer):
    """One block's keys and values of the prefixes, repeated only while it runs.

    Added keys and values are not kept, since the pass is the last one. So a batch needs the memory
    of its prefixes once, and not that of every text at every block.
    """

    def __init__(self, keys: Tensor, values: Tensor, rows: Tensor):
        super().__init__()
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._rows = rows.to(keys.device)

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: object, **_kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Return keys and values, [b, heads, prefix + t, d] each."""
        assert self.keys is not None and self.values is not None
        keys = torch.cat([self.keys[self._rows], key_states], dim=-2)
        return keys, torch.cat([self.values[self._rows], value_states], dim=-2)
