"""Control vectors: one direction a layer, from files or objects of other libraries.

a <- a + scale d_l      at the output of block l, for every l that it has

Other libraries exchange one direction a layer, added to every token: the flow of a constant field
for the time `scale`. Their objects:

    steering-vectors   SteeringVector: `layer_activations` {layer: tensor}, `layer_type`
    repeng             ControlVector: `directions` {layer: array}, `model_type`
    plain              {layer: tensor, array or numbers}

They are recognised by these names, so that neither library is needed. And back:
`SteeringVector(vectors.directions)`, and `ControlVector(vectors.model_type, {layer: d.numpy() for
layer, d in vectors.directions.items()})`. All count the decoder's blocks from 0 and mean their
outputs, as here.

A steering is flattened to one vector a layer,

    d = mean_i (a_i(T) - a_i)

over activations that the steering was not fitted on. A constant field is exactly its vector. Any
other field moves each activation differently, and some not at all; gates and stopping at a target
are lost. Two numbers say how much:

    cosine      mean_i cos(a_i(T) - a_i, d), over those that move
    explained   1 - sum_i ||a_i(T) - a_i - d||^2 / sum_i ||a_i(T) - a_i||^2

The damage of the exported vector is compared by

    KL(p || q) = sum_y p(y) log p(y)/q(y)      p: the next token under the flow, in nats

with q under the vector and, for scale, q of the unsteered model. A vector as far from the flow as
the unsteered model does not stand for it, whatever its cosine.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from odesteer.common.limits import MAX_LAYERS
from odesteer.data import Example
from odesteer.extraction.packing import PromptWithAnswers, as_texts
from odesteer.extraction.score_texts import baselines, kl
from odesteer.ode import ConstantField, Time
from odesteer.steering import LayerSteering, Steering


def as_direction(numbers: Tensor) -> Tensor:
    """Return [d] for [d], [1, d] or [1, 1, d], in float32; several rows stay as they are."""
    numbers = numbers.float()
    return numbers.flatten() if numbers.numel() in numbers.shape else numbers


# "1" alone: what Python's int takes for 1 as well ("01", "+1", "1_0", other scripts) is ambiguous.
_LAYER = re.compile(r"(?:direction\.)?(0|[1-9][0-9]{0,8})")


def by_layer(named: Iterable[tuple[str, Tensor]]) -> dict[int, Tensor]:
    """Return directions by layer, from tensors named "direction.N" or "N".

    Raises:
        ValueError: for another name, a layer beyond any model's, or a duplicate layer.
    """
    directions: dict[int, Tensor] = {}
    for name, numbers in named:
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) >= MAX_LAYERS:
            raise ValueError(
                f"a direction is named by its layer, 0 to {MAX_LAYERS - 1}, as 'direction.7' or "
                f"'7'; got {name!r:.80}"
            )
        layer = int(match[1])
        if layer in directions:
            raise ValueError(f"it has two directions of layer {layer}")
        directions[layer] = as_direction(numbers)
    return directions


@dataclass(frozen=True, eq=False)
class Vectors:
    """Control vectors: directions by layer.

    Attributes:
        directions: [d] in float32, by the 0-based index of the block to whose output each is
            added.
        model_type: the architecture's name, if known: a hint, on which a model is warned about
            and not refused.
        notes: their origin (plain text, by key).

    Raises:
        ValueError: for no directions, one that is no finite vector, a negative layer, or several
            widths.
    """

    directions: dict[int, Tensor]
    model_type: str | None = None
    notes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.directions:
            raise ValueError("A control vector has a direction for at least one layer; got none.")
        for layer, direction in self.directions.items():
            if layer < 0:
                raise ValueError(f"A control vector counts layers from 0; got {layer}.")
            shaped = direction.dim() == 1 and len(direction) > 0
            if not shaped or not bool(torch.isfinite(direction).all()):
                raise ValueError(
                    f"The direction of layer {layer} is no vector of finite numbers (its shape is "
                    f"{list(direction.shape)})."
                )
        widths = sorted({len(direction) for direction in self.directions.values()})
        if len(widths) > 1:
            raise ValueError(f"The directions have several widths: {widths}.")
        ordered = {layer: self.directions[layer].float() for layer in sorted(self.directions)}
        object.__setattr__(self, "directions", ordered)

    @property
    def width(self) -> int:
        """Width d of the directions."""
        return len(next(iter(self.directions.values())))

    def scaled(self, factor: float) -> "Vectors":
        """Return every direction times `factor`."""
        scaled = {layer: factor * d for layer, d in self.directions.items()}
        return Vectors(scaled, self.model_type, self.notes)

    def moved(self, by: int) -> "Vectors":
        """Return every direction `by` blocks later."""
        shifted = {layer + by: d for layer, d in self.directions.items()}
        return Vectors(shifted, self.model_type, self.notes)

    def noted(self, key: str, note: str) -> "Vectors":
        """Return the vectors with one more note, which files keep."""
        return Vectors(self.directions, self.model_type, {**self.notes, key: note})

    def steering(self, strength: float = 1.0) -> Steering:
        """Return the equal steering, of one layer or of several, at all tokens as in llama.cpp.

        Args:
            strength: the scale, as other libraries call it; with 1, a moves by d.
        """
        hint = {} if self.model_type is None else {"hint": self.model_type}
        parts = tuple(
            Steering.from_vector(direction, layer, strength).replace(
                model={**hint, "hidden_size": self.width},
                receipts=dict(self.notes),
                positions="all",
            )
            for layer, direction in self.directions.items()
        )
        return Steering.of(parts)


def vectors_of(other: object) -> Vectors:
    """Copy the control vectors of an object.

    Args:
        other: any of the above; a direction is [d], [1, d] or [1, 1, d].

    Raises:
        ValueError: for another kind of object, a steering vector that is not added to the output
            of blocks, or what `Vectors` refuses.
    """
    kind = getattr(other, "layer_type", "decoder_block")
    if kind != "decoder_block":
        raise ValueError(
            f"A control vector is added to the output of decoder blocks; this one is at '{kind}'."
        )
    directions: Any = getattr(other, "layer_activations", getattr(other, "directions", other))
    if not isinstance(directions, Mapping):
        raise ValueError(
            f"A control vector is a mapping from layers to directions, or an object with "
            f"`layer_activations` or `directions`; got a {type(other).__name__}."
        )
    model_type = getattr(other, "model_type", None)
    return Vectors(
        {_layer(key): _direction(key, numbers) for key, numbers in directions.items()},
        model_type if isinstance(model_type, str) else None,
    )


def _layer(key: Any) -> int:
    if isinstance(key, bool) or not isinstance(key, int):
        raise ValueError(f"Layers are counted in whole numbers; got {key!r}.")
    return key


def _direction(key: Any, numbers: Any) -> torch.Tensor:
    try:
        return as_direction(torch.as_tensor(numbers).detach().cpu().clone())
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ValueError(
            f"The direction of layer {key} is no array of numbers: {reason}."
        ) from None


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


def is_constant(part: LayerSteering) -> bool:
    """Whether a steering at one layer adds the same vector to every activation."""
    return type(part.field) is ConstantField and isinstance(part.dose, Time)


def _constant(part: LayerSteering) -> Tensor:
    assert isinstance(part.field, ConstantField)
    assert isinstance(part.dose, Time)
    return part.dose.size * part.field.direction.float()


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
        if is_constant(part):
            directions[layer] = _constant(part)
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

    Both steer the steering's positions of the same texts; of a text without a prompt, the first
    half is one.

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
        flow = baseline.run(steering, steering.positions).log_q
        to_unsteered.append(kl(flow, baseline.log_p).cpu())
        to_vector.append(kl(flow, baseline.run(vector, steering.positions).log_q).cpu())
        read += len(baseline.batch.slots)
        if progress is not None:
            progress(read, len(texts))
    near, far = torch.cat(to_vector).double(), torch.cat(to_unsteered).double()
    return Divergence(float(near.mean()), float(far.mean()), len(near))
