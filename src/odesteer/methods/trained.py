"""ODESteer with a barrier that is trained through the model.

    v(a) = grad h / ||grad h||,   y = a - m
    quadratic   h = zeta . Lambda zeta + beta . zeta,   zeta = V^T y / ||y||
    network     h = beta . silu(V^T y / s + c),         s the root mean square of y's entries
    constant    h = u . y

V, Lambda, c, beta and u are learnt by what the steered model q says, the unsteered one being p.
With L+ and L- the negative log-likelihoods of the wanted text y+ and the unwanted text y- under q,
in nats a token, and K the KL budget, in nats a token (log p and log q are sums over a text):

    dpo    -log sigmoid(b [log q/p (y+) - log q/p (y-)]) / b
    bipo   the same, with a direction drawn for each batch: backwards, y+ and y- change places
    lm     L+
    reps   -log sigmoid(L- - f L+),  f = max(1, log p(y-) - log p(y+)); with a direction drawn
    split  L+ + 0.6 L- + 4 max(0, 0.5 - (L- - L+))

    loss + lambda KL(p || q),   lambda by dual ascent: it grows while KL > K

A shift's length is drawn anew for each batch, so that the dose stays a dial. Gradients go through
the solver's steps (discretise, then optimise). It starts at the natural gradient and keeps the
epoch with the largest held-out margin at the budget. Weights of the model take no part, and what
the blocks below compute is kept.

A network starts as the natural gradient because silu(x) - silu(-x) = x: its first two units are
u and -u, and the other entries of beta are 0.

Differences from the sources: their losses have no KL term. RePS sums both directions, and its
second one takes a vector's component out of the activation, where ours goes backwards. SPLIT's
weights and margin are its authors' settings for vectors on AxBench.

Sources: Zhao et al., "ODESteer", ICLR 2026, https://arxiv.org/abs/2602.17560, for the barrier;
Rafailov et al., "Direct Preference Optimization", NeurIPS 2023, https://arxiv.org/abs/2305.18290,
and Cao et al., "Bi-directional Preference Optimization", NeurIPS 2024,
https://arxiv.org/abs/2406.00045, for the losses; Wu et al., "AxBench", ICML 2025,
https://arxiv.org/abs/2501.17148, for the language-modelling loss (ReFT-r1); Wu et al., "Improved
Representation Steering for Language Models", 2025, https://arxiv.org/abs/2505.20809, for RePS; Xu
et al., "Why Steering Works", 2026, https://arxiv.org/abs/2602.02343, for SPLIT.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from odesteer.common.registry import lookup
from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.natural_gradient import NaturalGradient
from odesteer.methods.samples import Samples
from odesteer.ode import (
    Angle,
    ConstantField,
    Dense,
    Dose,
    GradientField,
    LinearBarrier,
    Network,
    NetworkBarrier,
    QuadraticBarrier,
    VectorField,
    Whitening,
)

BARRIERS = ("quadratic", "network", "constant")


class Likelihoods(NamedTuple):
    """Log-likelihoods of preferred and other texts, in nats; each [pairs, 2], preferred first.

    Attributes:
        log_q: steered.
        log_p: unsteered.
        tokens: of each text.
    """

    log_q: Tensor
    log_p: Tensor
    tokens: Tensor

    def swapped(self) -> "Likelihoods":
        """Return them with the opposite preference."""
        return Likelihoods(*(each.flip(1) for each in self))


def _dpo(texts: Likelihoods, b: float) -> Tensor:
    above, below = (texts.log_q - texts.log_p).unbind(dim=1)
    return -logsigmoid(b * (above - below)) / b


def _lm(texts: Likelihoods, _b: float) -> Tensor:
    return -(texts.log_q / texts.tokens)[:, 0]


def _reps(texts: Likelihoods, _b: float) -> Tensor:
    above, below = (texts.log_q / texts.tokens).unbind(dim=1)
    factor = (texts.log_p[:, 1] - texts.log_p[:, 0]).clamp_min(1.0)
    return -logsigmoid(factor * above - below)


def _split(texts: Likelihoods, _b: float) -> Tensor:
    wanted, unwanted = (-texts.log_q / texts.tokens).unbind(dim=1)
    return wanted + 0.6 * unwanted + 4.0 * (0.5 - (unwanted - wanted)).clamp_min(0.0)


class Objective(NamedTuple):
    """Loss of each pair [pairs], of its likelihoods and b, and whether directions are drawn."""

    loss: Callable[[Likelihoods, float], Tensor]
    bidirectional: bool = False


OBJECTIVES = {
    "dpo": Objective(_dpo),
    "bipo": Objective(_dpo, bidirectional=True),
    "lm": Objective(_lm),
    "reps": Objective(_reps, bidirectional=True),
    "split": Objective(_split),
}


@dataclass(frozen=True)
class TrainedODESteer(Method):
    """Barrier trained by the preferences of the steered model, at a KL budget.

    It is fitted with `odesteer.fit` on a model; a fit of activations and sensitivities alone
    (`TrainedODESteer().fit`) is where the training starts.

    Args:
        objective: "dpo" (default), "bipo", "lm", "reps" or "split", see above.
        barrier: "quadratic" (default), "network", or "constant" for one direction everywhere.
        rank: number of columns of V: of a network, its hidden units, at least 2.
        epochs: passes over the pairs.
        batch: pairs in a step.
        lr: learning rate of Adam, after ten steps of warm-up, to 0 linearly.
        preference: b, how sharply "dpo" and "bipo" ask for a preference.
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
        barrier="quadratic on the sphere of a - m or a small network, trained through the model",
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
        lookup(OBJECTIVES, self.objective, "objective")
        lookup(dict.fromkeys(BARRIERS), self.barrier, "barrier")
        if self.barrier != "quadratic" and self.solver == "great-circle":
            object.__setattr__(self, "solver", "euler")  # no sphere; exact along a straight line
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
        barrier: one of `BARRIERS`.
        rank: number of columns of V.
        direction: where it starts, [d].
        rows: activations [n, d], whose mean is m.
        seed: of the other columns of V.
    """

    def __init__(self, barrier: str, rank: int, direction: Tensor, rows: Tensor, seed: int):
        super().__init__()
        d = direction.shape[0]
        generator = torch.Generator().manual_seed(seed)
        rank = {"quadratic": min(rank, d - 2), "network": max(rank, 2), "constant": 1}[barrier]
        columns = torch.randn(d, rank, generator=generator, dtype=torch.float64).to(direction)
        columns[:, 0] = direction / direction.norm()
        y = rows - rows.mean(dim=0)
        slope = torch.zeros_like(columns[0])
        slope[0] = 1.0
        if barrier == "network":
            columns = columns / columns.norm(dim=0)
            columns[:, 1], slope[1] = -columns[:, 0], -1.0
            unit = y.square().mean().sqrt().clamp_min(1e-12)
        else:
            columns = _orthonormal(columns)
            zeta = (y / y.norm(dim=-1, keepdim=True).clamp_min(1e-12)) @ columns
            # So that a curvature of 1 bends the field as much as a slope of 1.
            unit = 1.0 / zeta.square().mean().sqrt().clamp_min(1e-3)
        self.barrier = barrier
        self.unit = float(unit)
        self.centre: Tensor
        self.register_buffer("centre", rows.mean(dim=0))
        self.columns = nn.Parameter(columns.contiguous())
        # Lambda of a quadratic barrier, c of a network.
        self.curvature = nn.Parameter(torch.zeros_like(slope))
        self.slope = nn.Parameter(slope)

    def field(self) -> VectorField:
        """Return the field; gradients go through it where they are enabled."""
        slope = 1.0 * self.slope
        if self.barrier == "network":
            hidden = Dense(self.columns.mT.contiguous(), 1.0 * self.curvature)
            last = Dense(slope[None], torch.zeros_like(slope[:1]))
            network = Network([hidden, last], "silu")
            return GradientField(NetworkBarrier(network, self.centre, self.unit, 0.0))
        basis = _orthonormal(self.columns)
        if self.barrier == "constant":
            direction = basis[:, 0]
            return ConstantField(direction, LinearBarrier(direction, -direction @ self.centre))
        curvature = self.unit / 2 * self.curvature
        return GradientField(QuadraticBarrier(Whitening(self.centre), basis, curvature, slope, 0.0))


def _orthonormal(columns: Tensor) -> Tensor:
    """Return the Q of a QR factorisation whose first column is parallel to the first one given."""
    q, r = torch.linalg.qr(columns)
    return q * r.diagonal().sign()
