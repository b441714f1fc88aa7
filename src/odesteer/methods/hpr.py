"""Householder pseudo-rotation (HPR): turn an activation, and keep its norm.

    v(a) = gamma(a) ||a|| u(a)  where theta.a < 0, else 0;  gamma = pi sigmoid(network(a))
    h(a) = theta.a / (||theta|| ||a||)

u is the tangent at a towards theta: the plane of a and theta is that of a and its Householder
reflection, on whose other side the probe says positive.

Source: Pham and Nguyen, "Householder Pseudo-Rotation: A Novel Approach to Activation Editing
in LLMs with Direction-Magnitude Perspective", EMNLP 2024, https://arxiv.org/abs/2409.10053
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.samples import Progress, Samples
from odesteer.methods.training import Recipe, by_pair, hold_out, learning, train
from odesteer.ode import Network, RotationField, VectorField


@dataclass(frozen=True)
class HPR(Method):
    """Rotates what a probe calls negative towards the positive side, by a predicted angle.

    A probe without bias and a network for the angle learn together: the cross-entropy of the
    probe plus the squared error of the angle, which for a negative is the one to the positive
    of its pair and for a positive 0. Half the strength is half the angle; ||a|| is kept. A
    negative strength turns what the probe calls positive, see `RotationField`.

    Differences from the original: all rows are divided by one number, so that the learning
    rate suits any model (an angle stays what it is); a few rows are visited for more than 5
    epochs; of epochs with equally many right probe answers, the one with the smallest
    held-out loss is kept; the rotation is written with two vectors instead of a d x d matrix.

    Args:
        epochs, batch, lr: of AdamW, the original's.
        warmup: share of the steps over which the rate climbs.
        min_steps: more epochs, if fewer steps than that would be made.
        seed: of the weights, the shuffling and the held-out fifth of the pairs.
    """

    name: ClassVar[str] = "hpr"
    needs_pairs: ClassVar[bool] = True
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="gamma(a) ||a|| times the tangent towards theta, where a probe says negative",
        barrier="theta.a^",
        exact="rotation by the predicted angle, one great-circle step",
        strength="fraction of the predicted angle",
        source="Pham and Nguyen, EMNLP 2024, arXiv 2409.10053",
        keeps_norm=True,
    )

    steps: int = 1
    solver: str = "great-circle"
    epochs: int = 5
    batch: int = 16
    lr: float = 5e-4
    warmup: float = 0.1
    min_steps: int = 1000
    seed: int = 0

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return self.fit_samples(Samples(positive, negative))

    def fit_samples(self, samples: Samples, progress: Progress | None = None) -> VectorField:
        samples = by_pair(samples)
        with learning():
            generator = torch.Generator().manual_seed(self.seed)
            fit, test = hold_out(samples, seed=self.seed)
            rows = samples.rows.float()
            scale = rows.square().mean().sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
            rows = rows / scale
            labels = torch.as_tensor(samples.labels).to(rows)
            angles = torch.cat([rows.new_zeros(len(samples.positive)), _angles(samples).to(rows)])
            d = rows.shape[1]
            widths = [d, *(max(8, d // 2**i) for i in (1, 2, 3)), 1]
            angle = Network.draw(widths, "gelu", generator).to(rows.device)
            theta = rows.new_zeros(d)

            def loss(index: Tensor) -> Tensor:
                probe = binary_cross_entropy_with_logits(rows[index] @ theta, labels[index])
                predicted = torch.pi * torch.sigmoid(angle(rows[index])[:, 0])
                return probe + (predicted - angles[index]).square().mean()

            def score() -> float:
                right = ((rows[test] @ theta > 0) == (labels[test] == 1)).sum()
                return float(right) + 1.0 / (1.0 + float(loss(test)))

            recipe = Recipe(self.epochs, self.batch, self.lr, warmup=self.warmup)
            train(
                [theta, *angle.buffers()],
                loss,
                fit,
                recipe.for_steps(self.min_steps, len(fit)),
                generator,
                score=score,
                progress=progress,
            )
            field = RotationField(theta / theta.norm(), angle.in_units(scale))
            return field.to(samples.positive.dtype)


def _angles(samples: Samples) -> Tensor:
    """[n]: the angle from each negative to its positive."""
    return torch.acos(cosine_similarity(samples.negative, samples.positive).clamp(-1.0, 1.0))
