"""ODESteer: gradient flow of an exact quadratic log density ratio.

    y = Sigma^-p (a - m) / ||Sigma^-p (a - m)||
    h(a) = log p+(a)/p-(a) = y^T A y + g . y + const
    v(a) = Sigma^2p grad h / ||Sigma^2p grad h||

The flow is the paper's; its estimate differs from the paper's (`PaperODESteer`) in four ways, each
measured in docs/barriers.md: the sphere is centred at the mean m of the activations, the degree-2
kernel is exact instead of sketched, gamma and C are chosen by cross-validation, and the gradient
may be taken in partially whitened coordinates (p). The ODE is solved in k + 1 dimensions
(`odesteer.ode.reduced.flow`), along great circles.

Source: Zhao et al., "ODESteer: A Unified ODE-Based Steering Framework for LLM Alignment",
ICLR 2026, https://arxiv.org/abs/2602.17560
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from odesteer.methods.base import FitResult, Method, MethodInfo
from odesteer.methods.estimators import whitening_about
from odesteer.methods.odesteer.kernel_machine import (
    Expansion,
    KernelMachine,
    expand,
    fit_folds,
    held_out_log_odds,
    sufficient_rank,
)
from odesteer.methods.samples import Progress, Samples
from odesteer.ode import Angle, Dose, GradientField, QuadraticBarrier, VectorField, Whitening

# Rows in double precision at a time.
CHUNK = 1024


class WhitenedSphere(NamedTuple):
    """Coordinates y, and the rows in them."""

    whitening: Whitening
    expansion: Expansion


def whiten(
    samples: Samples, p: float, covariance_rank: int, landmarks: int, seed: int
) -> WhitenedSphere:
    """Whiten all rows, both classes pooled, so that no labels leak into a fold.

    More rows than landmarks are held in float32, in which their products take half the time and
    memory; m is subtracted before, in the precision of the samples.
    """
    exact = len(samples.labels) <= landmarks
    centre, rows = _centred(samples, torch.float64 if exact else torch.float32)
    whitening = whitening_about(centre, rows, p, covariance_rank)
    _to_unit_rows(whitening, rows)
    return WhitenedSphere(whitening, expand(rows, landmarks, seed))


def _centred(samples: Samples, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the mean m [d] of all rows in their precision, and a - m [n, d] in `dtype`."""
    parts = (samples.positive, samples.negative)
    n = sum(len(part) for part in parts)
    centre = sum((part.sum(dim=0) for part in parts), torch.zeros_like(parts[0][0])) / n
    rows = parts[0].new_empty(n, parts[0].shape[1], dtype=dtype)
    done = 0
    for part in parts:
        for chunk in part.split(CHUNK):
            rows[done : done + len(chunk)] = chunk - centre
            done += len(chunk)
    return centre, rows


def _to_unit_rows(whitening: Whitening, rows: Tensor) -> None:
    """Replace a - m by y / ||y||, in place, to hold the rows in memory only once."""
    # Copied, as `to` changes a module in place.
    whitening = copy.deepcopy(whitening).to(rows.dtype)
    for chunk in rows.split(CHUNK):
        y = whitening.power(chunk, -1)
        norm = y.norm(dim=-1, keepdim=True)
        chunk.copy_(y / norm.clamp_min(math.sqrt(torch.finfo(y.dtype).tiny)))


@dataclass(frozen=True)
class ODESteer(Method):
    """Gradient flow of an exact quadratic log density ratio on the centred sphere.

    Fitting takes a second or two for a thousand rows; its memory grows with the rows. Coordinates
    are computed once, and each gamma costs an eigendecomposition of the landmarks' Gram matrix and
    one joint solution for all folds and Cs (perf/fit.py).

    Args:
        gamma: kernel scale, the weight of the quadratic part; None to choose it among `gammas`.
        C: inverse regularisation; None to choose it among `Cs`.
        rank: number of eigenvalues of A kept; None for the smallest with which the field's cosine
            to the full field is at least `fidelity` on held-out rows.
        p: exponent of the whitening: 0 is the plain centred sphere, 1/4 takes the gradient in the
            metric Sigma^1/2, 1/2 whitens fully. The default steered best at equal damage in a
            first study (docs/barriers.md); at p = 0 the barrier is as good, and its field follows
            directions with less variance.
        covariance_rank: eigenvalues of Sigma kept; the others are averaged.
        landmarks: maximum number of rows in the kernel expansion; of more rows, a random subset is
            used, with float32 inside.
        folds: of the cross-validation, by group.
        fidelity: see `rank`.
        gammas, Cs: the grid.
        seed: of the folds and the landmarks.
    """

    name: ClassVar[str] = "odesteer"
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="G grad h / ||G grad h||, G = Sigma^2p",
        barrier="log density ratio, an exact quadratic on the sphere of y = Sigma^-p (a - m)",
        exact="keeps ||y|| (not ||a||); closes in k + 1 dimensions, where it is solved",
        strength="path length",
        source="Zhao et al., ICLR 2026, arXiv 2602.17560; estimated better",
    )
    default_strength: ClassVar[Dose | float] = Angle(0.3)
    default_kl: ClassVar[str | None] = "strong"

    steps: int = 10
    solver: str = "great-circle"
    gamma: float | None = None
    C: float | None = None
    rank: int | None = None
    p: float = 0.25
    covariance_rank: int = 128
    landmarks: int = 2000
    folds: int = 5
    fidelity: float = 0.999
    gammas: tuple[float, ...] = (0.3, 1.0, 3.0)
    Cs: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.p <= 0.5:
            raise ValueError(f"odesteer needs 0 <= p <= 1/2 (1/2 whitens fully); got p={self.p}.")
        if self.landmarks < 1 or self.folds < 2 or not 0.0 < self.fidelity < 1.0:
            raise ValueError(
                f"odesteer needs landmarks >= 1, folds >= 2 and 0 < fidelity < 1; got "
                f"{self.landmarks}, {self.folds} and {self.fidelity}."
            )
        if self.rank is not None and self.rank < 0:
            raise ValueError(f"odesteer needs rank >= 0 or None; got {self.rank}.")
        for name in ("gamma", "C"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"odesteer needs {name} > 0 or None; got {value}.")

    def select_hyperparameters(self, samples: Samples) -> "ODESteer":
        """Choose gamma and C by held-out log-loss, then the rank by held-out fidelity."""
        return self._select(self._sphere(samples), samples, None)[0]

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        samples = Samples(positive, negative)
        sphere = self._sphere(samples)
        fits = fit_folds(sphere.expansion, samples.labels, [], *self._settings, 1.0)
        return self._field(sphere, fits.machine(sphere.expansion, 0), samples)

    def held_out_values(
        self, samples: Samples, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return held-out values, with landmarks, centre and covariance shared by the folds.

        These pool all rows and do not depend on the labels.
        """
        folds = samples.folds(5, seed)
        if not folds:
            return None
        sphere = self._sphere(samples)
        fits = fit_folds(sphere.expansion, samples.labels, folds, *self._settings, 1.0)
        return _density_ratio(held_out_log_odds(fits, folds, 0), samples)

    def fit_and_validate(
        self, samples: Samples, seed: int | None, progress: Progress | None = None
    ) -> FitResult:
        """Fit and validate with one set of coordinates and inner products.

        The folds that chose gamma and C also give the held-out values of that choice, if
        `held_out_values` would draw the same folds.
        """
        sphere = self._sphere(samples)
        method, machine, log_odds = self._select(sphere, samples, seed)
        field = method._field(sphere, machine, samples)
        if seed is None or log_odds is None:
            return FitResult(method, field, None)
        return FitResult(method, field, _density_ratio(log_odds, samples))

    @property
    def _settings(self) -> tuple[float, tuple[float]]:
        """Gamma and C, with the best values on real activations as defaults."""
        return self.gamma or 1.0, (self.C or 1.0,)

    def _sphere(self, samples: Samples) -> WhitenedSphere:
        return whiten(samples, self.p, self.covariance_rank, self.landmarks, self.seed)

    def _select(
        self, sphere: WhitenedSphere, samples: Samples, seed: int | None
    ) -> "tuple[ODESteer, KernelMachine, np.ndarray | None]":
        """Return the choice, its machine on all rows, and held-out log-odds by folds of `seed`."""
        folds, labels = samples.folds(self.folds, self.seed), samples.labels
        if not folds:
            method = replace(self, gamma=self.gamma or 1.0, C=self.C or 1.0)
            fits = fit_folds(sphere.expansion, labels, [], *method._settings, 1.0)
            return method, fits.machine(sphere.expansion, 0), None
        gammas = self.gammas if self.gamma is None else (self.gamma,)
        Cs = self.Cs if self.C is None else (self.C,)
        best = None
        for gamma in gammas:
            fits = fit_folds(sphere.expansion, labels, folds, gamma, Cs, 1.0)
            for choice, C in enumerate(Cs):
                log_odds = held_out_log_odds(fits, folds, choice)
                wrong = np.where(labels == 1, -log_odds, log_odds)
                loss = float(np.nanmean(np.logaddexp(0.0, wrong)))
                if best is None or loss < best.loss:
                    column = choice * (len(folds) + 1)
                    first = fits.machine(sphere.expansion, column)
                    whole = fits.machine(sphere.expansion, column + len(folds))
                    best = _Best(loss, gamma, C, log_odds, first, whole)
        assert best is not None
        method = replace(self, gamma=best.gamma, C=best.C)
        if method.rank is None:
            test = torch.as_tensor(folds[0][1]).to(sphere.expansion.rows.device)
            # Chosen on four fifths of the rows but used with all, which need a slightly higher
            # rank: half of the loss that `fidelity` allows is kept in reserve.
            fidelity = 1.0 - (1.0 - self.fidelity) / 2
            rank = sufficient_rank(
                sphere.expansion, best.first, best.gamma, 1.0, sphere.whitening, test, fidelity
            )
            method = replace(method, rank=rank)
        log_odds = best.log_odds
        if seed is not None and (seed, 5) != (self.seed, self.folds):
            folds = samples.folds(5, seed)
            if not folds:
                return method, best.whole, None
            fits = fit_folds(sphere.expansion, labels, folds, *method._settings, 1.0)
            log_odds = held_out_log_odds(fits, folds, 0)
        return method, best.whole, log_odds

    def _field(
        self, sphere: WhitenedSphere, machine: KernelMachine, samples: Samples
    ) -> VectorField:
        barrier = QuadraticBarrier.from_kernel(
            machine.support,
            machine.weights,
            self._settings[0],
            1.0,
            machine.bias - samples.log_prior_odds,
            sphere.whitening,
            self.rank,
        )
        return GradientField(barrier)


class _Best(NamedTuple):
    """Best held-out log-loss so far, with machines without the first fold and of all rows."""

    loss: float
    gamma: float
    C: float
    log_odds: np.ndarray
    first: KernelMachine
    whole: KernelMachine


def _density_ratio(log_odds: np.ndarray, samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    tested = ~np.isnan(log_odds)
    return log_odds[tested] - samples.log_prior_odds, samples.labels[tested]
