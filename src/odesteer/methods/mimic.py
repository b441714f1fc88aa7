"""MiMiC: match the mean and the covariance of the positives (Gaussian optimal transport).

    M(a) = mu+ + A (a - mu-),  A = S-^-1/2 (S-^1/2 S+ S-^1/2)^1/2 S-^-1/2
    v(a) = M(a) - a where a linear probe says negative, else 0
    h(a) = x^T (A - I) x / 2 + (mu+ - mu-) . x + const,  x = a - mu-;  grad h = M(a) - a

M carries N(mu-, S-) onto N(mu+, S+) along the shortest way. S+- are shrunk (Ledoit-Wolf), so
that A exists with fewer rows than dimensions.

Source: Singh et al., "Representation Surgery: Theory and Practice of Affine Steering", ICML
2024, https://arxiv.org/abs/2402.09631
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.estimators import class_covariances, linear_probe
from odesteer.methods.samples import Samples
from odesteer.ode import FormBarrier, TransportField, VectorField


@dataclass(frozen=True)
class MiMiC(Method):
    """Carries what a probe calls negative to where positives are, mean and covariance.

    Strength s moves a to a + s (M(a) - a): 1 is the whole map. A negative strength moves
    what the probe calls positive, along the same displacement backwards. At several layers,
    later ones are fitted on activations that the earlier ones have moved.

    Args:
        C: inverse L2 regularisation of the probe that opens the gate.
        gated: move only what the probe calls negative; False moves every row.
        ridge: added to the diagonal of the sample covariances in place of Ledoit-Wolf
            shrinkage; needs more rows than dimensions to be worth anything.
    """

    name: ClassVar[str] = "mimic"
    incremental: ClassVar[bool] = True
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="M(a) - a where a probe says negative, else 0; M Gaussian optimal transport",
        barrier="quadratic potential of the map, grad h = M(a) - a",
        exact="straight line a + s (M(a) - a), one Euler step",
        strength="s, 1 is the whole map",
        source="Singh et al., ICML 2024, arXiv 2402.09631",
    )

    C: float = 1.0
    gated: bool = True
    ridge: float | None = None

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        above, below = positive.mean(dim=0), negative.mean(dim=0)
        if self.ridge is None:
            target, source = class_covariances(positive, negative)
        else:
            extra = self.ridge * torch.eye(positive.shape[1]).to(positive)
            target, source = (rows.mT.cov(correction=0) + extra for rows in (positive, negative))
        matrix = transport_matrix(source, target)
        curvature = matrix - torch.eye(len(matrix)).to(matrix)
        potential = FormBarrier(below, curvature, above - below)
        middle = potential.value((above + below) / 2)
        gate = None
        if self.gated:
            samples = Samples(positive, negative)
            # What the classifier predicts at the training data's own class shares.
            gate = linear_probe(samples, self.C).affine(1.0, samples.log_prior_odds)
        return TransportField(potential.affine(1.0, -float(middle)), gate)


def transport_matrix(source: Tensor, target: Tensor) -> Tensor:
    """A = S^-1/2 (S^1/2 T S^1/2)^1/2 S^-1/2 of positive definite S, T [d, d]: A S A = T."""
    root, inverse = _powers(source, 0.5), _powers(source, -0.5)
    middle = _powers(root @ target @ root, 0.5)
    matrix = inverse @ middle @ inverse
    return (matrix + matrix.mT) / 2


def _powers(matrix: Tensor, exponent: float) -> Tensor:
    """A symmetric positive definite matrix to a real power."""
    eigenvalues, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    smallest = torch.finfo(matrix.dtype).eps * eigenvalues[-1].clamp_min(
        torch.finfo(matrix.dtype).tiny
    )
    return (vectors * eigenvalues.clamp_min(smallest).pow(exponent)) @ vectors.mT
