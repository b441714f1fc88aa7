"""ODESteer with a barrier that is trained through the model.

    v(a) = grad h / ||grad h||,   h = zeta . Lambda zeta + beta . zeta,   zeta = V^T y / ||y||

y = a - m on the sphere about the mean m. V, Lambda and beta are learnt by what the steered model q
says, the unsteered one being p, with K the KL budget in nats a token:

    dpo    -log sigmoid(b [log q/p (y+) - log q/p (y-)]) / b
    bipo   the same, in a direction drawn for each batch: backwards for the opposite preference
    lm     -log q(y+), nats a token

    loss + lambda KL(p || q),   lambda by dual ascent: it grows while KL > K

A shift's length is drawn anew for each batch, so that the dose stays a dial. Gradients go through
the solver's steps (discretise, then optimise). It starts at the natural gradient and keeps the
epoch with the largest held-out margin at the budget. Weights of the model take no part, and what
the blocks below compute is kept.

Sources: Zhao et al., "ODESteer", ICLR 2026, https://arxiv.org/abs/2602.17560, for the barrier;
Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, https://arxiv.org/abs/2305.18290,
and Cao et al., "Bi-directional Preference Optimization", NeurIPS 2024,
https://arxiv.org/abs/2406.00045, for the losses; Wu et al., "AxBench", ICML 2025,
https://arxiv.org/abs/2501.17148, for the language-modelling loss (ReFT-r1).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from odesteer.common.registry import lookup
from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.natural_gradient import NaturalGradient
from odesteer.methods.samples import Samples
from odesteer.ode import (
    Angle,
    ConstantField,
    Dose,
    GradientField,
    LinearBarrier,
    QuadraticBarrier,
    VectorField,
    Whitening,
)

OBJECTIVES = ("dpo", "bipo", "lm")
BARRIERS = ("quadratic", "constant")


@dataclass(frozen=True)
class TrainedODESteer(Method):
    """Barrier trained by the preferences of the steered model, at a KL budget.

    It is fitted with `odesteer.fit` on a model; a fit of activations and sensitivities alone
    (`TrainedODESteer().fit`) is where the training starts.

    Args:
        objective: "dpo" (default), "bipo" or "lm", see above.
        barrier: "quadratic" (default), or "constant" for one direction everywhere.
        rank: number of columns of V.
        epochs: passes over the pairs.
        batch: pairs in a step.
        lr: learning rate of Adam, after ten steps of warm-up, to 0 linearly.
        preference: b, how sharply a preference is asked for.
        kl_weight: lambda at the start, in units of the loss a nat.
        start: the method whose direction training starts at.
    """

    name: ClassVar[str] = "odesteer-trained"
    default_strength: ClassVar[Dose | float] = Angle(0.1)
    default_kl: ClassVar[str | None] = "strong"
    tokens: ClassVar[str] = "response"
    reads_sensitivities: ClassVar[bool] = True
    trains_through_model: ClassVar[bool] = True
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="grad h / ||grad h||",
        barrier="quadratic on the sphere of a - m, trained through the model",
        exact="keeps ||a - m||; closes in k + 1 dimensions, where it is solved",
        strength="path length",
        source="Zhao et al., ICLR 2026, arXiv 2602.17560; trained",
    )

    steps: int = 4
    solver: str = "great-circle"
    objective: str = "dpo"
    barrier: str = "quadratic"
    rank: int = 16
    epochs: int = 4
    batch: int = 8
    lr: float = 3e-3
    preference: float = 0.2
    kl_weight: float = 10.0
    start: NaturalGradient = field(default_factory=NaturalGradient)

    def __post_init__(self) -> None:
        lookup(dict.fromkeys(OBJECTIVES), self.objective, "objective")
        lookup(dict.fromkeys(BARRIERS), self.barrier, "barrier")
        if self.barrier == "constant" and self.solver == "great-circle":
            object.__setattr__(self, "solver", "euler")  # exact along a straight line
        sizes = {"rank": self.rank, "batch": self.batch, "lr": self.lr}
        sizes |= {"preference": self.preference, "kl_weight": self.kl_weight}
        for name, value in sizes.items():
            if not value > 0:
                raise ValueError(f"odesteer-trained needs {name} > 0; got {value}.")
        if self.epochs < 0:
            raise ValueError(f"odesteer-trained needs epochs >= 0; got {self.epochs}.")

    def select_hyperparameters(self, samples: Samples) -> "TrainedODESteer":
        return self

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return self.fit_samples(Samples(positive, negative))

    def fit_samples(self, samples: Samples, progress: object = None) -> VectorField:
        return self.parameters(samples, 0).requires_grad_(False).field()

    def parameters(self, samples: Samples, seed: int) -> "FieldParameters":
        """Return the parameters where training starts: at the natural gradient."""
        start = self.start.select_hyperparameters(samples).fit_samples(samples)
        assert isinstance(start, ConstantField)
        return FieldParameters(self.barrier, self.rank, start.direction, samples.rows, seed)


class FieldParameters(nn.Module):
    """Parameters of a trained field, and the field that they make.

    Args:
        barrier: "quadratic" or "constant".
        rank: of V.
        direction: where it starts, [d].
        rows: activations [n, d], whose mean is the sphere's centre.
        seed: of the other columns of V.
    """

    def __init__(self, barrier: str, rank: int, direction: Tensor, rows: Tensor, seed: int):
        super().__init__()
        d = direction.shape[0]
        generator = torch.Generator().manual_seed(seed)
        rank = 1 if barrier == "constant" else min(rank, d - 2)
        columns = torch.randn(d, rank, generator=generator, dtype=torch.float64).to(direction)
        columns[:, 0] = direction / direction.norm()
        basis = _orthonormal(columns)
        y = rows - rows.mean(dim=0)
        zeta = (y / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)) @ basis
        self.barrier = barrier
        # So that a curvature of 1 bends the field as much as a slope of 1.
        self.unit = float(1.0 / zeta.square().mean().sqrt().clamp_min(1e-3))
        self.centre: Tensor
        self.register_buffer("centre", rows.mean(dim=0))
        self.columns = nn.Parameter(basis)
        self.curvature = nn.Parameter(torch.zeros_like(basis[0]))
        slope = torch.zeros_like(basis[0])
        slope[0] = 1.0
        self.slope = nn.Parameter(slope)

    def field(self) -> VectorField:
        """Return the field; gradients go through it where they are enabled."""
        basis = _orthonormal(self.columns)
        if self.barrier == "constant":
            direction = basis[:, 0]
            return ConstantField(direction, LinearBarrier(direction, -direction @ self.centre))
        curvature, slope = self.unit / 2 * self.curvature, 1.0 * self.slope
        return GradientField(QuadraticBarrier(Whitening(self.centre), basis, curvature, slope, 0.0))


def _orthonormal(columns: Tensor) -> Tensor:
    """Return the Q of a QR factorisation whose first column is parallel to the first one given."""
    q, r = torch.linalg.qr(columns)
    return q * r.diagonal().sign()
