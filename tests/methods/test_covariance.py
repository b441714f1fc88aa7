"""The covariance is Ledoit and Wolf's, and its whitening uses all eigenvectors."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf as sklearn_ledoit_wolf

from odesteer.methods import estimators as covariance
from odesteer.methods.estimators import pooled_whitening, shrunk_covariance
from odesteer.ode import Whitening


def rows(n, d, seed=0, mean=3.0):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.arange(1, d + 1).double() ** -0.7
    return mean + torch.randn(n, d, generator=generator, dtype=torch.float64) * scale


@pytest.mark.parametrize(("n", "d"), [(50, 8), (8, 50), (30, 30), (20, 1), (2, 5)])
def test_the_shrunk_covariance_is_scikit_learns(n, d):
    x = rows(n, d)
    expected, _ = sklearn_ledoit_wolf(x.numpy())
    np.testing.assert_allclose(shrunk_covariance(x).numpy(), expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize(("n", "d"), [(300, 40), (40, 300), (500, 200), (200, 500)])
@pytest.mark.parametrize("dense", [1, 10**6])
def test_the_thin_whitening_is_that_of_the_whole_covariance(monkeypatch, n, d, dense):
    monkeypatch.setattr(covariance, "DENSE", dense)
    x = rows(n, d)
    whitening = pooled_whitening(x, 0.25, 12)
    whole = Whitening.from_covariance(x.mean(dim=0), shrunk_covariance(x), 0.25, 12)
    a = rows(20, d, seed=1)
    # The residual that is allowed, over the gap between neighbours.
    loose = {"rtol": 0.0, "atol": 1e-9 if dense > 1 else 2e-3}
    torch.testing.assert_close(whitening(a), whole(a), **loose)
    torch.testing.assert_close(
        whitening.stretch.sort().values, whole.stretch.sort().values, **loose
    )


def test_more_directions_than_rows_are_the_directions_of_the_rows():
    x = rows(9, 50)
    whitening = pooled_whitening(x, 0.5, 40)
    whole = Whitening.from_covariance(x.mean(dim=0), shrunk_covariance(x), 0.5, 40)
    assert whitening.stretch.shape == (8,)
    a = rows(20, 50, seed=1)
    torch.testing.assert_close(whitening(a), whole(a))


@pytest.mark.parametrize(("n", "d"), [(5, 9), (9, 5), (1, 4)])
def test_rows_that_do_not_differ_leave_the_plain_sphere(n, d):
    assert pooled_whitening(torch.ones(n, d).double(), 0.25, 3).is_plain
