"""Flattening of a steering to one vector a layer, with its fidelity and KL.

d = mean_i (a_i(T) - a_i)

over activations that the steering was not fitted on. A constant field is exactly its vector. Any
other field moves each activation differently, and some not at all; gates and stopping at a target
are lost. Two numbers say how much:

    cosine      mean_i cos(a_i(T) - a_i, d), over those that move
    explained   1 - sum_i ||a_i(T) - a_i - d||^2 / sum_i ||a_i(T) - a_i||^2

KL between next-token distributions under a steering and its exported vector.

    KL(p || q) = sum_y p(y) log p(y)/q(y)      p: the next token under the flow, in nats

with q under the vector and, for scale, q of the unsteered model. A vector as far from the flow as
the unsteered model does not stand for it, whatever its cosine.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.data import Example
from odesteer.extraction.scoring.packing import PromptWithAnswers, as_texts
from odesteer.extraction.scoring.score_texts import baselines, kl
from odesteer.integrations.control_vectors.vectors import Vectors
from odesteer.ode import ConstantField, Time
from odesteer.steering import LayerSteering, Steering

# Below it, most activations move in other directions than the vector.
THRESHOLD = 0.9


class Fidelity(NamedTuple):
    """Fidelity of a vector to a steering at one layer; 1 and 1 for a constant field.

    Attributes:
        cosine, explained: see above.
        moved: the share of the activations that the steering moves.
        n: the number of activations; 0 for a constant field.
    """

    cosine: float
    explained: float
    moved: float
    n: int

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine:.3f}, explains {self.explained:.0%} of the displacement, "
            f"{self.moved:.0%} moved, n = {self.n}"
        )


def flattened(
    steering: Steering,
    activations: Mapping[int, Tensor] | None = None,
    force: bool = False,
) -> tuple[Vectors, dict[int, Fidelity]]:
    """Flatten a steering at its dose to one vector for each layer, with its fidelity.

    Args:
        steering: at residual streams, with non-negative layers.
        activations: [n, d] by layer, of the class that is steered (negatives), held out from
            fitting; a constant field at a plain strength needs none.
        force: also where the cosine is below `THRESHOLD`.

    Raises:
        ValueError: for heads, layers that count from the end, missing activations, or a fidelity
            below the threshold; says which layer.
    """
    parts = steering.parts
    directions: dict[int, Tensor] = {}
    fidelity: dict[int, Fidelity] = {}
    for part in parts:
        layer = part.layer
        if part.site != "residual" or layer is None or layer < 0:
            raise ValueError(
                f"A control vector is added to the output of a block that is counted from 0; this "
                f"steering is at {part.site} of layer {layer}."
            )
        if type(part.field) is ConstantField and isinstance(part.dose, Time):
            directions[layer] = part.dose.size * part.field.direction.float()
            fidelity[layer] = Fidelity(1.0, 1.0, 1.0, 0)
            continue
        rows = None if activations is None else activations.get(layer)
        if rows is None:
            raise ValueError(
                f"'{part.method}' at layer {layer} is a field, and a vector stands for it only on "
                f"given activations: give held-out ones of the class that is steered."
            )
        directions[layer], fidelity[layer] = _mean_displacement(part, rows)
    for layer, each in fidelity.items():
        if each.cosine < THRESHOLD and not force:
            raise ValueError(
                f"One vector does not stand for this steering at layer {layer}: {each}; below a "
                f"cosine of {THRESHOLD:g} it is refused unless forced. Serve the steering itself "
                f"(odesteer serve), or take a smaller dose."
            )
    first = parts[0]
    kind = first.model.get("text_type") or first.model.get("type") or first.model.get("hint")
    notes = {
        "odesteer.method": steering.method,
        "odesteer.dose": str(steering.dose),
        "odesteer.fidelity": "; ".join(
            f"layer {layer}: {each}" for layer, each in fidelity.items()
        ),
    }
    return Vectors(directions, kind, notes), fidelity


def _mean_displacement(part: LayerSteering, rows: Tensor) -> tuple[Tensor, Fidelity]:
    with torch.no_grad():
        rows = rows.float()
        step = part(rows) - rows
    mean = step.mean(dim=0)
    length = step.norm(dim=-1)
    moves = length > 0
    total = float(step.square().sum())
    if not bool(moves.any()) or float(mean.norm()) == 0.0:
        raise ValueError(
            f"'{part.method}' at layer {part.layer} moves none of the {len(rows)} activations "
            f"given: there is no vector that stands for it."
        )
    cosines = (step[moves] @ mean) / (length[moves] * mean.norm())
    explained = 1.0 - float((step - mean).square().sum()) / total
    return mean, Fidelity(float(cosines.mean()), explained, float(moves.float().mean()), len(rows))


class Divergence(NamedTuple):
    """Mean KL from the flow's next token, in nats per token; 0 if nothing is steered.

    Attributes:
        vector: KL(flow || vector).
        unsteered: KL(flow || unsteered).
        tokens: the number of distributions compared.
    """

    vector: float
    unsteered: float
    tokens: int

    def __str__(self) -> str:
        return (
            f"KL(flow || vector) {self.vector:.3g}, KL(flow || unsteered) {self.unsteered:.3g} "
            f"nats a token, {self.tokens} tokens"
        )


def divergence(
    model: Any,
    tokenizer: Any,
    steering: Steering,
    vectors: Vectors,
    examples: Sequence[Example],
    template: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> Divergence:
    """Compare the next-token distributions of a vector with those of the flow it stands for.

    Both steer the last token of each prompt and all that follow, of the same texts; of a text
    without a prompt, the second half follows.

    Args:
        model: a transformers causal language model, in eval mode.
        tokenizer: its own.
        steering: the flow, at its dose.
        vectors: of `flattened`.
        examples: held out from fitting.
        template: how they become texts, see `odesteer.models.chat_template`.
        progress: called with the number of texts read, and of all.

    Raises:
        ValueError: if no text has two tokens.
    """
    texts = [text for text, _ in as_texts(tokenizer, examples, template)]
    if not texts:
        raise ValueError(f"No next token can be compared: of {len(examples)} texts, none has two.")
    rows = [PromptWithAnswers(text.prompt, [text.answer]) for text in texts]
    vector = vectors.steering()
    to_vector, to_unsteered, read = [], [], 0
    for baseline in baselines(model, rows, [steering, vector], packed=False):
        flow = baseline.run(steering).log_q
        to_unsteered.append(kl(flow, baseline.log_p).cpu())
        to_vector.append(kl(flow, baseline.run(vector).log_q).cpu())
        read += len(baseline.batch.slots)
        if progress is not None:
            progress(read, len(texts))
    near, far = torch.cat(to_vector).double(), torch.cat(to_unsteered).double()
    return Divergence(float(near.mean()), float(far.mean()), len(near))
