"""RE-Control: climb a value network.

    V(a) = W3 relu(W2 relu(W1 a^ + b1) + b2) + b3,  a^ = (a - mean) / spread
    h(a) = V(a) - eps,   v(a) = grad V(a)

Source: Kong et al., "Aligning Large Language Models with Representation Editing: A Control
Perspective", NeurIPS 2024, https://arxiv.org/abs/2406.05954
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.samples import Progress, Samples
from odesteer.methods.training import Recipe, hold_out, learning, train
from odesteer.ode import Angle, Dose, Network, NetworkBarrier, PlainGradientField, VectorField


@dataclass(frozen=True)
class REControl(Method):
    """Takes gradient steps on a value that a small network reads off the activation.

    The gradient is not normalised: a number as `strength` is the number of steps times their
    size (the original: 30 steps of size 1). How long a gradient is depends on the network and
    on the model's units, so the default dose is an angle, which depends on neither.

    Differences from the original: it learns V by temporal differences on the last layer's
    states of generated tokens, from a reward at the last token. Here V learns from labelled
    rows of any layer. Labels 1 and 0 with the logistic loss make V a log density ratio, which
    (unlike a probability) has a slope everywhere; graded `rewards` with the squared error make
    it the reward. Rows are centred and divided by one number, so that the learning rate suits
    any model; training stops when held-out rows no longer gain.

    Args:
        eps: h = V - eps; None: 0 for labels (even odds), the mean reward for rewards.
        epochs, batch, lr: of Adam, the original's.
        patience: stop after so many epochs without a better held-out loss.
        min_steps: more epochs, and patience, if fewer steps than that would be made.
        seed: of the weights, the shuffling and the held-out fifth of the groups.
    """

    name: ClassVar[str] = "re-control"
    default_strength: ClassVar[Dose | float] = Angle(0.3)
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="grad V(a), V a value network",
        barrier="V(a) - eps",
        exact="none",
        strength="steps x step size",
        source="Kong et al., NeurIPS 2024, arXiv 2406.05954",
    )

    steps: int = 30
    eps: float | None = None
    epochs: int = 100
    batch: int = 512
    lr: float = 1e-4
    patience: int = 10
    min_steps: int = 1000
    seed: int = 0

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return self.fit_samples(Samples(positive, negative))

    def fit_samples(self, samples: Samples, progress: Progress | None = None) -> VectorField:
        with learning():
            generator = torch.Generator().manual_seed(self.seed)
            fit, test = hold_out(samples, seed=self.seed)
            rows = samples.rows.float()
            centre = rows[fit].mean(dim=0)
            rows = rows - centre
            scale = rows[fit].square().mean().sqrt()
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            rows = rows / scale
            lesson = self._lesson(samples, fit)
            wanted = lesson.wanted.to(rows)
            d = rows.shape[1]
            network = Network.draw([d, d, d, 1], "relu", generator).to(rows.device)

            def loss(index: Tensor) -> Tensor:
                return lesson.criterion(network(rows[index])[:, 0], wanted[index])

            recipe = Recipe(self.epochs, self.batch, self.lr, patience=self.patience)
            train(
                list(network.buffers()),
                loss,
                fit,
                recipe.for_steps(self.min_steps, len(fit)),
                generator,
                score=lambda: -float(loss(test)),
                progress=progress,
            )
            value = NetworkBarrier(network, centre, scale, 0.0).affine(lesson.unit, lesson.zero)
            eps = lesson.even if self.eps is None else self.eps
            return PlainGradientField(value.affine(1.0, -eps).to(samples.positive.dtype))

    def _lesson(self, samples: Samples, fit: Tensor) -> "_Lesson":
        if samples.rewards is None:
            labels = torch.as_tensor(samples.labels)
            # The log odds lose what the class sizes alone say.
            zero = -samples.log_prior_odds
            return _Lesson(binary_cross_entropy_with_logits, labels, 1.0, zero, 0.0)
        rewards = samples.rewards
        mean, spread = float(rewards[fit].mean()), float(rewards[fit].std(correction=0))
        if spread == 0:
            raise ValueError(
                f"{self.name} needs rewards that differ; all {len(fit)} are {mean:g}. Without "
                f"rewards it learns from the two classes alone."
            )
        return _Lesson(mse_loss, (rewards - mean) / spread, spread, mean, mean)


class _Lesson(NamedTuple):
    """What the network learns, and how its output becomes V = unit * output + zero.

    `wanted` is [n + m], and `even` the eps that is taken for None.
    """

    criterion: Callable[[Tensor, Tensor], Tensor]
    wanted: Tensor
    unit: float
    zero: float
    even: float
