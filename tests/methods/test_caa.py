"""CAA is the flow of a log density ratio: of two Gaussians with the identity as covariance."""

import torch
from tests.helpers.models import two_gaussians
from torch.distributions import MultivariateNormal

from odesteer import CAA, GaussianODESteer

POSITIVE, NEGATIVE = (rows.double() for rows in two_gaussians(50, 30, 8, seed=3))


def test_its_field_is_the_gradient_of_the_log_ratio_of_the_two_gaussians():
    a = torch.cat([POSITIVE, NEGATIVE]).requires_grad_(True)
    identity = torch.eye(8).double()
    above, below = (MultivariateNormal(rows.mean(dim=0), identity) for rows in (POSITIVE, NEGATIVE))
    ratio = above.log_prob(a) - below.log_prob(a)
    (gradient,) = torch.autograd.grad(ratio.sum(), a)
    field = CAA().fit_field(POSITIVE, NEGATIVE)
    torch.testing.assert_close(field(a), gradient)
    torch.testing.assert_close(field.barrier.value(a), ratio)


def test_it_is_the_discriminant_without_a_covariance():
    field = CAA().fit_field(POSITIVE, NEGATIVE)
    lda = GaussianODESteer(shared=True, shrinkage=1.0, p=0.0).fit_field(POSITIVE, NEGATIVE)
    assert float(torch.cosine_similarity(field(POSITIVE), lda(POSITIVE)).min()) > 1 - 1e-9
