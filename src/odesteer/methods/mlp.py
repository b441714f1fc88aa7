"""ODESteer with a multilayer perceptron as the log density ratio.

    h(a) = (net((a - mean) / std) - log(n+/n-)) / temperature
    v(a) = G grad h / ||G grad h||,  G = diag(std^2)

A classifier trained by cross-entropy estimates log p(positive | a) / p(negative | a); minus the log
prior odds, that is the log density ratio. The temperature is fitted on held-out rows.

Source: Sugiyama, Suzuki, Kanamori, "Density Ratio Estimation in Machine Learning", 2012,
section 4.2 (probabilistic classification); Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017, https://arxiv.org/abs/1706.04599 (temperature); the field is that of Zhao
et al., "ODESteer", ICLR 2026, https://arxiv.org/abs/2602.17560
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.estimators import best_sharpness
from odesteer.methods.samples import Progress, Samples
from odesteer.methods.training import Recipe, hold_out, learning, train
from odesteer.ode import Angle, Dose, GradientField, Network, NetworkBarrier, VectorField


@dataclass(frozen=True)
class NetworkODESteer(Method):
    """Gradient flow of a multilayer perceptron's log density ratio.

    A fifth of the groups is held out for early stopping and the temperature; the epoch with their
    least cross-entropy is kept. The gradient is taken in standardised coordinates. Far from the
    rows the network is confident without evidence: keep the dose small.

    Args:
        hidden: widths of the hidden layers.
        activation: "relu", "gelu", "silu" or "tanh".
        epochs: maximum number.
        batch: rows in a step.
        lr: of AdamW.
        weight_decay: of AdamW.
        patience: epochs without a better held-out cross-entropy before training stops.
        seed: of the weights, the shuffling and the split.
    """

    name: ClassVar[str] = "odesteer-network"
    default_strength: ClassVar[Dose | float] = Angle(0.3)
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="G grad h / ||G grad h||",
        barrier="log density ratio of a small MLP classifier, on standardised coordinates",
        exact="none",
        strength="path length",
        source="Sugiyama et al. 2012, section 4.2",
    )

    steps: int = 10
    solver: str = "heun"
    hidden: tuple[int, ...] = (64, 64)
    activation: str = "silu"
    epochs: int = 100
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.1
    patience: int = 30
    seed: int = 0

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return self.fit_samples(Samples(positive, negative))

    def fit_samples(self, samples: Samples, progress: Progress | None = None) -> VectorField:
        with learning():
            rows = samples.rows.float()
            labels = torch.as_tensor(samples.labels).to(rows)
            centre, scale = rows.mean(dim=0), rows.std(dim=0, correction=0)
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            rows = (rows - centre) / scale
            fit, test = hold_out(samples, seed=self.seed)
            generator = torch.Generator().manual_seed(self.seed)
            widths = [rows.shape[1], *self.hidden, 1]
            network = Network.draw(widths, self.activation, generator).to(rows.device)

            def loss(index: Tensor) -> Tensor:
                return binary_cross_entropy_with_logits(network(rows[index])[:, 0], labels[index])

            train(
                list(network.buffers()),
                loss,
                fit,
                Recipe(
                    epochs=self.epochs,
                    batch=self.batch,
                    lr=self.lr,
                    weight_decay=self.weight_decay,
                    patience=self.patience,
                ),
                generator,
                score=lambda: -float(loss(test)),
                progress=progress,
            )
        barrier = NetworkBarrier(network, centre, scale, -samples.log_prior_odds)
        barrier = barrier.to(samples.positive.dtype)
        values = barrier.value(samples.rows[test]).cpu().numpy()
        sharpness = best_sharpness(values, samples.labels[test.cpu()])
        return GradientField(barrier.affine(sharpness.factor))
