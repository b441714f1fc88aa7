"""Do the other steering libraries pass the conformance suite?

    python -m venv peers && . peers/bin/activate
    pip install -c constraints.txt torch==2.13.0
    pip install -c constraints.txt -e . peft gguf scikit-learn tqdm
    pip install --no-deps steering-vectors==0.12.2 repeng==0.4.0
    odesteer conformance \\
        --adapter odesteer.testing:OdesteerVector \\
        --adapter experiments.conformance_peers:SteeringVectors \\
        --adapter experiments.conformance_peers:Repeng

From the root of the repository (PYTHONPATH=. if Python does not find `experiments`). `--no-deps`,
because steering-vectors asks for transformers < 5 and repeng for numpy < 2; the suite runs with
transformers >= 4.56, so that every library can also be run within its own limits:

    pip install "transformers<5" steering-vectors==0.12.2

Every adapter steers as its library's own documentation says. What a library does not claim to
do is `NotOffered`, with the reason, and is not counted against it.
"""

import warnings
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import ClassVar

from torch import Tensor, nn

from odesteer.testing import ARCHITECTURES, Adapter, NotOffered, Steered


def _version(package: str) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return ""


class SteeringVectors(Adapter):
    """https://github.com/steering-vectors/steering-vectors: a hook that adds.

    `layer_config` names the blocks, as its documentation says for models that it cannot guess.
    """

    name = "steering-vectors"
    version = _version("steering-vectors")
    masks = True
    unclaimed: ClassVar = {"forgotten": '"requires manually undoing the patching", says its docstring'}

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        from steering_vectors import SteeringVector

        steering = SteeringVector({layer: vector}, layer_type="decoder_block")
        tokens = positions if isinstance(positions, Tensor) else None
        handle = steering.patch_activations(
            model, layer_config={"decoder_block": _matcher(model)}, token_indices=tokens
        )
        return Steered(model, handle.remove)


class Repeng(Adapter):
    """https://github.com/vgel/repeng: blocks wrapped by a `ControlModel`."""

    name = "repeng"
    version = _version("repeng")
    unclaimed: ClassVar = {
        "itself": '"This mutates the wrapped model!", says its docstring',
        "forgotten": "`unwrap` undoes the mutation; there is no handle to forget",
    }

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        from repeng import ControlModel, ControlVector
        from repeng.control import model_layer_list

        try:
            model_layer_list(model)
        except (ValueError, AttributeError) as error:
            raise NotOffered(f"it finds model.layers and transformer.h alone: {error}") from None
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Trying to rewrap")
            try:
                controlled = ControlModel(model, [layer])
            except UserWarning as warning:
                raise NotOffered(str(warning)) from None
        control = ControlVector(model.config.model_type, {layer: vector.numpy()})
        controlled.set_control(control, 1.0)
        return Steered(controlled, controlled.unwrap)


def _matcher(model: nn.Module) -> str:
    """What a user would read off `print(model)`: "model.layers.{num}"."""
    blocks = ARCHITECTURES[model.config.model_type].blocks
    paths = [name for name, _ in model.named_modules() if f".{name}".endswith(f".{blocks}")]
    return min(paths, key=len) + ".{num}"
