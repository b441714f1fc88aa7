"""Many logistic regressions on the same features, solved jointly.

    minimise over theta, b:  sum_i u_i log(1 + exp(-s_i f_i)) + ||theta||^2 / 2 C
    f = phi theta + b,  s = 2 label - 1,  u in {0, 1}

Each column is one regression, with its rows (u) and its C. Newton's method, with its equations
solved by conjugate gradients, so that all columns share every product with phi: a product with
twenty columns costs little more than with one. The preconditioner is the diagonal of the Hessian
with one common weight for all rows; features should be nearly orthogonal, as those from a kernel's
eigenvectors are.

The optimum is scikit-learn's `LogisticRegression(C)`, which solves one column at a time.

Source: Komarek and Moore, "Making Logistic Regression A Core Data Mining Tool With TR-IRLS",
ICDM 2005, https://doi.org/10.1109/ICDM.2005.90
"""

from typing import NamedTuple

import torch
from torch import Tensor

# sigma (1 - sigma) of a row whose odds are about two to one.
TYPICAL_WEIGHT = 0.2
NEWTON_STEPS, GRADIENT_STEPS = 50, 300
SAMPLE = 512


class Regressions(NamedTuple):
    """Solutions, one in each column: theta [l, c], b [c], and f of every row [n, c]."""

    weight: Tensor
    bias: Tensor
    log_odds: Tensor


class _Problem(NamedTuple):
    """Objective and its derivatives at centred features, f = (phi - mean) theta + b.

    Centring does not change theta, and makes b nearly independent of it.
    """

    features: Tensor  # [n, m]
    mixing: Tensor  # [m, l], phi = features mixing
    mean: Tensor  # [l, 1]
    labels: Tensor  # [n, 1]
    used: Tensor  # u, [n, c]
    C: Tensor  # [c]
    scale: Tensor  # of theta: the inverse of a typical Hessian's diagonal, [l, c]
    bias_scale: Tensor  # of b, []

    def forward(self, theta: Tensor, bias: Tensor) -> Tensor:
        return self.features @ (self.mixing @ theta) + (bias - (self.mean * theta).sum(dim=0))

    def backward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        total = rows.sum(dim=0)
        return self.mixing.mT @ (self.features.mT @ rows) - self.mean * total, total

    def size(self, gradient: Tensor, slope: Tensor) -> Tensor:
        """Return the squared norm of a gradient in the preconditioner's metric, [c]."""
        return (gradient.square() * self.scale).sum(dim=0) + slope.square() * self.bias_scale

    def loss(self, f: Tensor, theta: Tensor) -> Tensor:
        wrong = torch.nn.functional.softplus((1 - 2 * self.labels) * f)
        fit = (self.used * wrong).sum(dim=0, dtype=torch.float64)
        return fit + theta.square().sum(dim=0, dtype=torch.float64) / (2 * self.C)


def regress(
    features: Tensor, mixing: Tensor, labels: Tensor, used: Tensor, C: Tensor
) -> Regressions:
    """Solve all regressions to the optimum, up to rounding.

    phi = features mixing is never formed: n m l products would cost more than all steps.

    Args:
        features: [n, m].
        mixing: [m, l].
        labels: [n], 0 or 1.
        used: u, [n, c], the rows of each column.
        C: [c], inverse regularisation of each column.
    """
    columns = used.shape[1]
    labels, used, C = labels.to(features)[:, None], used.to(features), C.to(features)
    mean = mixing.mT @ features.mean(dim=0)[:, None]
    share = used.mean() * TYPICAL_WEIGHT
    # A sample of rows estimates the features' scales well enough for a preconditioner.
    sample = features[:: max(1, len(features) // SAMPLE)] @ mixing
    spread = len(features) * (sample.square().mean(dim=0)[:, None] - mean.square()).clamp_min(0.0)
    scale = 1.0 / (share * spread + 1.0 / C)
    problem = _Problem(
        features, mixing, mean, labels, used, C, scale, 1.0 / (share * len(features))
    )
    theta, bias = features.new_zeros(mixing.shape[1], columns), features.new_zeros(columns)
    f = features.new_zeros(len(features), columns)
    eps = torch.finfo(features.dtype).eps
    start = None
    for _ in range(NEWTON_STEPS):
        probability = f.sigmoid()
        gradient, slope = problem.backward(used * (labels - probability))
        gradient = gradient - theta / C
        # Twice the expected decrease of the loss, by the preconditioner's Hessian.
        left = problem.size(gradient, slope)
        if bool((left <= 8 * eps * used.sum(dim=0)).all()):
            break
        weight = used * probability * (1 - probability)
        # The closer to the optimum, the more accurate the Newton step.
        start = left.sum() if start is None else start
        accuracy = min(0.1, float(left.sum() / start) ** 0.5)
        d_theta, d_bias, d_f = _newton_step(problem, weight, gradient, slope, accuracy)
        before, length = problem.loss(f, theta), torch.ones_like(bias)
        for _ in range(30):
            after = problem.loss(f + length * d_f, theta + length * d_theta)
            worse = after > before * (1 + 4 * eps)
            if not bool(worse.any()):
                break
            length = torch.where(worse, length / 2, length)
        theta, bias, f = theta + length * d_theta, bias + length * d_bias, f + length * d_f
    return Regressions(theta, bias - (mean * theta).sum(dim=0), f)


def _newton_step(
    problem: _Problem,
    weight: Tensor,
    gradient: Tensor,
    slope: Tensor,
    accuracy: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Solve H step = gradient by preconditioned conjugate gradients: theta, b, change of f."""
    theta, bias = torch.zeros_like(gradient), torch.zeros_like(slope)
    change = torch.zeros_like(weight)
    d_theta, d_bias = problem.scale * gradient, problem.bias_scale * slope
    left = first = problem.size(gradient, slope)
    tiny = torch.finfo(left.dtype).tiny
    for _ in range(GRADIENT_STEPS):
        along = problem.forward(d_theta, d_bias)
        h_theta, h_bias = problem.backward(weight * along)
        h_theta = h_theta + d_theta / problem.C
        length = left / ((d_theta * h_theta).sum(dim=0) + d_bias * h_bias).clamp_min(tiny)
        theta, bias = theta + length * d_theta, bias + length * d_bias
        change = change + length * along
        gradient, slope = gradient - length * h_theta, slope - length * h_bias
        last, left = left, problem.size(gradient, slope)
        if bool((left <= accuracy**2 * first).all()):
            break
        ratio = left / last.clamp_min(tiny)
        d_theta = problem.scale * gradient + ratio * d_theta
        d_bias = problem.bias_scale * slope + ratio * d_bias
    return theta, bias, change
