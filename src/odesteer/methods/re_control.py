"""RE-Control: gradient ascent on a value network.

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
    """Gradient ascent on a value predicted from the activation by a small network.

    The gradient is not normalised: a number as `strength` is the number of steps times their size
    (the original: 30 steps of size 1). The length of the gradient depends on the network and the
    model's units, so the default dose is an angle, which depends on neither.

    Differences from the original: it fits V by temporal differences to the last layer's states of
    generated tokens, with a reward at the last token. Here V is fitted to labelled rows of any
    layer. Labels 1 and 0 with the logistic loss make V a log density ratio, which (unlike a
    probability) has a slope everywhere; graded `rewards` with the squared error make it the
    reward. Rows are centred and divided by one number, so that the learning rate suits any model;
    training stops when the held-out loss no longer improves.

    Args:
        eps: h = V - eps; None: 0 for labels (even odds), the mean reward for rewards.
        epochs, batch, lr: of Adam, the original's.
        patience: epochs without a better held-out loss before training stops.
        min_steps: epochs and patience are raised to make at least this many steps.
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
            objective = self._objective(samples, fit)
            targets = objective.targets.to(rows)
            d = rows.shape[1]
            network = Network.draw([d, d, d, 1], "relu", generator).to(rows.device)

            def loss(index: Tensor) -> Tensor:
                return objective.criterion(network(rows[index])[:, 0], targets[index])

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
            network_value = NetworkBarrier(network, centre, scale, 0.0)
            value = network_value.affine(objective.unit, objective.zero)
            eps = objective.eps if self.eps is None else self.eps
            return PlainGradientField(value.affine(1.0, -eps).to(samples.positive.dtype))

    def _objective(self, samples: Samples, fit: Tensor) -> "_Objective":
        if samples.rewards is None:
            labels = torch.as_tensor(samples.labels)
            # The log odds minus the log prior odds.
            zero = -samples.log_prior_odds
            return _Objective(binary_cross_entropy_with_logits, labels, 1.0, zero, 0.0)
        rewards = samples.rewards
        mean, spread = float(rewards[fit].mean()), float(rewards[fit].std(correction=0))
        if spread == 0:
            raise ValueError(
                f"{self.name} needs rewards that differ; all {len(fit)} are {mean:g}. Without "
                f"rewards it learns from the two classes alone."
            )
        return _Objective(mse_loss, (rewards - mean) / spread, spread, mean, mean)


class _Objective(NamedTuple):
    """Loss and targets of the network, with V = unit * output + zero.

    Attributes:
        criterion: loss of outputs and targets.
        targets: [n + m].
        unit, zero: see above.
        eps: the default of `REControl.eps`.
    """

    criterion: Callable[[Tensor, Tensor], Tensor]
    targets: Tensor
    unit: float
    zero: float
    eps: float
