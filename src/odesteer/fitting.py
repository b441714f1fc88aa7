"""How does a contrast become a steering, and which layer should it act on?"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from odesteer.calibration import BinaryQuality
from odesteer.contrast import Contrast
from odesteer.extraction import Progress, activations
from odesteer.layers import find_layers, hidden_size, layer_index
from odesteer.lookup import pick
from odesteer.methods import METHODS, Method, ODESteer
from odesteer.methods.base import held_out_quality
from odesteer.ode import Dose
from odesteer.steering import Steering

# The barrier that ranks layers: one setting, so that layers differ and nothing else does.
_RANKING = ODESteer(gamma=1.0, C=1.0, p=0.0)


def fit(
    model: nn.Module,
    tokenizer: Any,
    contrast: Contrast,
    method: str | Method = "odesteer",
    layer: int | str = "auto",
    strength: Dose | float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Steering:
    """Learn a steering for a model from a contrast.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: what to steer towards and away from.
        method: a name in `odesteer.METHODS`, or a method with your hyperparameters.
        layer: a 0-based block index, negative from the end, or "auto": the middle block
            with the smallest held-out log-loss.
        strength: the dose; the method's own default where it is None.
        seed: of the folds.
        progress: called with (texts read, texts in all).

    Raises:
        ValueError: for an unknown method, a layer the model does not have, or a contrast
            the method cannot learn from.
    """
    chosen = pick(METHODS, method, "method")() if isinstance(method, str) else method
    if isinstance(layer, str):
        if layer != "auto":
            raise ValueError(f'layer is a block index or "auto"; got {layer!r}.')
        data = activations(model, tokenizer, contrast, middle_layers(model), progress=progress)
        qualities = rank_layers(data, contrast.groups, seed)
        index = best_layer(qualities)
    else:
        index = layer_index(model, layer)
        data = activations(model, tokenizer, contrast, [index], progress=progress)
        qualities = {}
    steering = chosen.fit(
        *data[index], layer=index, strength=strength, groups=contrast.groups, seed=seed
    )
    receipts = dict(steering.receipts)
    if qualities:
        receipts["layers"] = {str(i): quality._asdict() for i, quality in qualities.items()}
    return replace(steering, model=describe_model(model, tokenizer), receipts=receipts)


def middle_layers(model: nn.Module) -> list[int]:
    """The blocks from one fifth to two thirds of the depth.

    Earlier ones have not read the text yet; later ones tell the classes apart as well, but
    leave the model few blocks in which the change could take effect.
    """
    depth = len(find_layers(model))
    return list(range(depth // 5, max(depth * 2 // 3, depth // 5 + 1)))


def rank_layers(
    data: dict[int, tuple[Tensor, Tensor]],
    groups: tuple[Sequence[Any], Sequence[Any]],
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[int, BinaryQuality]:
    """Held-out quality of the barrier at each layer, by cross-validation over groups.

    Raises:
        ValueError: if there are too few groups to hold any out.
    """
    qualities = {}
    for done, (index, (positive, negative)) in enumerate(data.items(), start=1):
        samples = _RANKING.check(positive, negative, groups)
        quality = held_out_quality(_RANKING, samples, seed)
        if quality is None:
            raise ValueError(
                'layer="auto" compares layers on held-out groups, and this contrast has fewer '
                "than two in a class. Give more examples, or choose the layer."
            )
        qualities[index] = quality
        if progress is not None:
            progress(done, len(data))
    return qualities


def best_layer(qualities: dict[int, BinaryQuality]) -> int:
    """The layer with the smallest held-out log-loss."""
    return min(qualities, key=lambda index: qualities[index].log_loss)


def describe_model(model: nn.Module, tokenizer: Any) -> dict[str, Any]:
    """What a steering remembers of the model it was fitted on."""
    config = getattr(model, "config", None)
    name = getattr(config, "_name_or_path", None) or type(model).__name__
    # A local directory says where this machine keeps its models, and nothing to anyone else.
    name = Path(name).name if Path(name).is_dir() else name
    return {
        "name": name,
        "type": getattr(config, "model_type", None),
        "layers": len(find_layers(model)),
        "hidden_size": hidden_size(model),
        "chat_template": bool(getattr(tokenizer, "chat_template", None)),
    }
