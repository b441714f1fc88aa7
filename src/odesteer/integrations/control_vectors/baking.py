"""Control vectors baked into a model's own weights, as biases.

    x <- x + c W z            what block l adds to the residual stream last
    x <- x + c (W z + d / c)  with the bias d / c: its output moves by d, at every token

The linear layer W is found by trying: a bias belongs where it moves the block's output by a
multiple of itself, whatever the token. Behind a norm, a gate, a router of experts, or before
another layer that reads it, it does not, and such architectures are refused. So are those whose
configuration has no bias for that layer: their checkpoint could not be loaded again.

In a GGUF file the bias is the tensor `blk.l.ffn_down.bias`, and all other tensors keep their bits.
"""

import copy
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from odesteer.integrations.control_vectors.gguf import package, writing
from odesteer.integrations.control_vectors.vectors import Vectors
from odesteer.models.capture import captured, evaluating
from odesteer.models.layers import find_layers, hidden_size, input_device
from odesteer.models.loading import quiet

# Architectures of GGUF files that llama.cpp reads with or without this bias.
OPTIONAL_BIAS = ("llama",)
# On which a baked model is compared with the steered one.
TEXTS = (
    "The weather today makes me feel",
    "My neighbour told me about her new job, and I",
    "Once upon a time, in a small town by the sea, there was",
)


def bake(model: nn.Module, vectors: Vectors) -> list[str]:
    """Add vectors to the biases of a model, in place: it then steers every token by itself.

        bake(model, flattened(steering)[0])
        model.save_pretrained("gloomy-model")

    Args:
        model: a transformers causal language model that can be saved.
        vectors: one direction [d] a layer, counted from 0.

    Returns:
        The names of the biases.

    Raises:
        ValueError: if a block has no place for a bias, or the vectors are of another model. The
            model is then as it was.
    """
    blocks, width = find_layers(model), hidden_size(model)
    for layer, direction in vectors.directions.items():
        if layer >= len(blocks) or direction.shape != (width,):
            raise ValueError(
                f"The vectors do not fit: one of width {len(direction)} for block {layer}; the "
                f"model has {len(blocks)} blocks of width {width}."
            )
    names = {id(module): name for name, module in model.named_modules()}
    places = {}
    for layer in vectors.directions:
        module, scale = _output_layer(model, layer)
        places[layer] = names[id(module)], scale
    changed = [f"{name}.bias" for name, _ in places.values()]
    _give_biases(model, changed)
    with torch.no_grad():
        for layer, (name, scale) in places.items():
            bias: Any = model.get_submodule(name).bias
            bias += (vectors.directions[layer] / scale).to(bias)
    held: Any = model
    held.config.odesteer = dict(vectors.notes)
    return changed


def bake_gguf(source: str | os.PathLike[str], vectors: Vectors, target: Path) -> list[str]:
    """Write a GGUF model with vectors as biases, completely or not at all.

    Args:
        source: a GGUF model of one file.
        vectors: one direction [d] a layer, counted from 0.
        target: the file to write.

    Returns:
        The names of the biases.

    Raises:
        ImportError: without the package gguf.
        ValueError: if llama.cpp would not read such a bias in this architecture.
    """
    gguf = package()
    reader = gguf.GGUFReader(source)
    architecture = str(reader.fields["general.architecture"].contents())
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    biases = {f"blk.{layer}.ffn_down.bias": d for layer, d in vectors.directions.items()}
    for name, direction in biases.items():
        weight = tensors.get(name.replace(".bias", ".weight"))
        if weight is None or int(weight.shape[1]) != len(direction):
            raise ValueError(
                f"'{source}' has no tensor {name.replace('.bias', '.weight')} that writes "
                f"{len(direction)} numbers: the vectors are of another model."
            )
        if name not in tensors and architecture not in OPTIONAL_BIAS:
            raise ValueError(
                f"llama.cpp reads no {name} in a model of the architecture '{architecture}': "
                f"export a control vector instead, without --bake."
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        aside = Path(folder) / target.name
        with writing(aside, architecture) as writer:
            for key, field in reader.fields.items():
                if not key.startswith(("GGUF.", "general.architecture")):
                    writer.add_key_value(
                        key, field.contents(), field.types[0], sub_type=field.types[-1]
                    )
            for key, value in vectors.notes.items():
                writer.add_string(key, value)
            for name, tensor in tensors.items():
                if name not in biases:
                    writer.add_tensor(name, tensor.data, raw_dtype=tensor.tensor_type)
            for name, direction in biases.items():
                known = tensors.get(name)
                old = 0.0 if known is None else gguf.dequantize(known.data, known.tensor_type)
                writer.add_tensor(name, direction.float().numpy() + old)
        os.replace(aside, target)
    return list(biases)


def check_new(target: Path) -> None:
    """Raise FileExistsError if a directory is there."""
    if target.exists():
        raise FileExistsError(f"'{target}' is there already: name a directory that is not.")


def save_baked(model: Any, tokenizer: Any, target: Path) -> None:
    """Write a model and its tokenizer to a new directory, completely or not at all.

    Raises:
        FileExistsError: if the directory is there.
    """
    check_new(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        with quiet():
            model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        aside.chmod(0o755)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _output_layer(model: nn.Module, layer: int) -> tuple[nn.Module, float]:
    """Return the linear layer of a block whose bias moves its output, and by how many times it.

    Raises:
        ValueError: if there is none.
    """
    block, width = find_layers(model)[layer], hidden_size(model)
    ids = torch.arange(1, 9, device=input_device(model))[None]
    generator = torch.Generator().manual_seed(0)

    def output() -> Tensor:
        return run(ids, torch.ones_like(ids))[layer].detach().double().cpu()

    with torch.no_grad(), captured(model, [layer], "residual") as run:
        before = output()
        # As long as an activation, so that what is not linear shows.
        probe = torch.randn(width or 0, generator=generator).double()
        probe *= before.norm(dim=-1).median() / probe.norm()
        rounding = 64 * torch.finfo(next(block.parameters()).dtype).eps * before.abs().max()
        for module in reversed(list(block.modules())):
            weight = getattr(module, "weight", None)
            if not isinstance(weight, Tensor) or weight.ndim != 2 or width not in weight.shape:
                continue
            handle = module.register_forward_hook(
                lambda _module, _args, out: (
                    out + probe.to(out)
                    if isinstance(out, Tensor) and out.shape[-1] == width
                    else out
                )
            )
            try:
                moved = output() - before
            finally:
                handle.remove()
            scale = float((moved @ probe).mean() / (probe @ probe))
            if abs(scale) > 1e-3 and (moved - scale * probe).abs().max() <= rounding:
                return module, scale
    raise ValueError(
        f"Block {layer} of {type(model).__name__} has no place for a bias: no linear layer's "
        f"output goes to the residual stream as it is (a norm, a gate or a router comes after "
        f"it). Serve the steering itself (odesteer serve), or export a control vector."
    )


def _give_biases(model: Any, names: list[str]) -> None:
    """Switch biases on in the configuration, and add them as zeros, where they are not there."""
    if all(name in model.state_dict() for name in names):
        return
    for config in _switched(model.config):
        with torch.device("meta"):
            try:
                keys = type(model)(config).state_dict().keys()
            except (TypeError, ValueError, AttributeError):  # a switch of something else
                continue
        added = keys - model.state_dict().keys()
        if set(names) <= keys and added and all(key.endswith(".bias") for key in added):
            break
    else:
        raise ValueError(
            f"{type(model.config).__name__} has no switch for the bias {names[0]}, so a checkpoint "
            f"with it could not be loaded. Serve the steering itself (odesteer serve), or export "
            f"a control vector."
        )
    for key in added:
        parent = model.get_submodule(key.removesuffix(".bias"))
        weight: Tensor = parent.weight
        # Of transformers' Conv1D the weight is [in, out].
        size = int(getattr(parent, "out_features", weight.shape[-1]))
        parent.bias = nn.Parameter(torch.zeros(size, dtype=weight.dtype, device=weight.device))
    model.config = config


def _switched(config: Any) -> Iterator[Any]:
    """Yield copies of a configuration with one switch for biases on, the MLP's first."""
    attributes = vars(config.get_text_config() if hasattr(config, "get_text_config") else config)
    off = [key for key, value in attributes.items() if key.endswith("bias") and value is False]
    for key in sorted(off, key=lambda key: ("mlp" not in key, key)):
        copied = copy.deepcopy(config)
        inner = copied.get_text_config() if hasattr(copied, "get_text_config") else copied
        setattr(inner, key, True)
        yield copied


class Logits:
    """Logits of a steered model, with which those of a baked one are compared.

    Args:
        model: not baked.
        tokenizer: its own.
        vectors: what is to be baked.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, vectors: Vectors) -> None:
        self._rows = [list(tokenizer(text)["input_ids"]) for text in TEXTS]
        with vectors.steering().attach(model, positions="all"):
            self._expected = self._of(model)
        self.largest = max(float(each.abs().max()) for each in self._expected)

    def difference(self, model: nn.Module) -> float:
        """Return the largest difference of any logit of a baked model."""
        pairs = zip(self._of(model), self._expected, strict=True)
        return max(float((found - expected).abs().max()) for found, expected in pairs)

    def _of(self, model: Any) -> list[Tensor]:
        device = input_device(model)
        with torch.no_grad(), evaluating(model):
            return [
                model(torch.tensor([row], device=device)).logits[0].float().cpu()
                for row in self._rows
            ]
