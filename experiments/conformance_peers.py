"""The conformance suite applied to other steering libraries.

steering-vectors asks for transformers < 5 and repeng for numpy < 2, so each has an environment.
From the root of the repository:

    python -m venv a && a/bin/pip install -c constraints.txt torch==2.13.0
    a/bin/pip install -c constraints.txt -e . peft
    a/bin/pip install --no-deps steering-vectors==0.12.2
    PYTHONPATH=. a/bin/odesteer conformance --adapter odesteer.testing:OdesteerVector \\
        --adapter experiments.conformance_peers:SteeringVectors

    python -m venv b && b/bin/pip install -c constraints.txt torch==2.13.0
    b/bin/pip install -e . transformers==5.23.0 peft==0.21.2 "numpy<2" repeng==0.4.0
    PYTHONPATH=. b/bin/odesteer conformance --adapter experiments.conformance_peers:Repeng

`--no-deps` runs steering-vectors outside what it asks for; within it, in an environment of its
own, `pip install -e . peft "transformers<5" steering-vectors==0.12.2`.

Every adapter steers as the library's own documentation says. What a library does not claim to
do is `NotOffered` or `unclaimed`, with the reason, and is not counted against it.
"""

import warnings
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import ClassVar

from torch import Tensor, nn

from odesteer.testing import Adapter, NotOffered, Steered


def _version(package: str) -> str:
    try:
        return installed(package)
    except PackageNotFoundError:
        return ""


class SteeringVectors(Adapter):
    """https://github.com/steering-vectors/steering-vectors: a forward hook that adds.

    It finds the blocks by itself. Its `min_token_index` counts the tokens of a call, not those
    of a text, so none of the kinds of positions is claimed for it but "all".
    """

    name = "steering-vectors"
    version = _version("steering-vectors")
    masks = True
    unclaimed: ClassVar = {
        "forgotten": '"requires manually undoing the patching", says its docstring'
    }

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        from steering_vectors import SteeringVector

        steering = SteeringVector({layer: vector}, layer_type="decoder_block")
        tokens = positions if isinstance(positions, Tensor) else None
        handle = steering.patch_activations(model, token_indices=tokens)
        return Steered(model, handle.remove)


class Repeng(Adapter):
    """https://github.com/vgel/repeng: a `ControlModel` around the model, and around its blocks."""

    name = "repeng"
    version = _version("repeng")
    unclaimed: ClassVar = {
        "itself": 'ControlModel "mutates the wrapped model", says its docstring',
        "forgotten": "unwrap undoes the mutation; there is no handle to forget",
    }

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        from repeng import ControlModel, ControlVector
        from repeng.control import model_layer_list

        try:
            model_layer_list(model)
        except (ValueError, AttributeError) as error:
            raise NotOffered(f"blocks elsewhere than it looks: {error}") from None
        with warnings.catch_warnings():
            # Its answer to two vectors on one block is to add the vectors.
            warnings.filterwarnings("error", "Trying to rewrap")
            try:
                controlled = ControlModel(model, [layer])
            except UserWarning as warning:
                raise NotOffered(str(warning)) from None
        control = ControlVector(model.config.model_type, {layer: vector.numpy()})
        controlled.set_control(control, 1.0)
        return Steered(controlled, controlled.unwrap)
