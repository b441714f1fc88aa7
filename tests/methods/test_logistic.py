"""Many regressions at once equal scikit-learn's, one at a time."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from odesteer.methods.odesteer.logistic import regress

CS = torch.tensor([1.0, 3.0, 0.1, 30.0])


def problem(n, m, separation, seed=0):
    """Features of uneven length about a mean that is not 0, labels, and who sees which rows."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, m, generator=generator, dtype=torch.float64)
    features = noise * torch.arange(1, m + 1) ** -0.5 + 1.0
    inner = (features - 1.0)[:, :5].sum(dim=1) * separation
    labels = (inner + torch.randn(n, generator=generator) > 0.3).long()
    used = torch.ones(n, 4, dtype=torch.bool)
    used[: n // 4, 1], used[n // 2 :, 2] = False, False
    return features, labels, used


def sklearn_fit(features, labels, rows, C):
    model = LogisticRegression(C=float(C), solver="newton-cholesky", tol=1e-12, max_iter=1000)
    return model.fit(features.numpy()[rows.numpy()], labels.numpy()[rows.numpy()])


@pytest.mark.parametrize(("n", "m", "separation"), [(60, 30, 3.0), (300, 300, 1.0), (900, 80, 0.5)])
def test_every_column_is_scikit_learns_optimum_on_its_rows(n, m, separation):
    features, labels, used = problem(n, m, separation)
    found = regress(features, torch.eye(m).double(), labels, used, CS)
    for column, C in enumerate(CS):
        model = sklearn_fit(features, labels, used[:, column], C)
        expected = model.decision_function(features.numpy())
        scale = np.abs(expected).max()
        assert np.abs(found.log_odds[:, column].numpy() - expected).max() < 1e-6 * scale
        assert np.abs(found.weight[:, column].numpy() - model.coef_[0]).max() < 1e-6
        assert float(found.bias[column]) == pytest.approx(model.intercept_[0], abs=2e-6)


def test_mixed_features_are_those_of_the_product():
    features, labels, used = problem(100, 20, 1.0)
    mixing = torch.randn(20, 12, generator=torch.Generator().manual_seed(1)).double()
    mixed = regress(features, mixing, labels, used, CS)
    formed = regress(features @ mixing, torch.eye(12).double(), labels, used, CS)
    torch.testing.assert_close(mixed.log_odds, formed.log_odds, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mixed.weight, formed.weight, rtol=1e-6, atol=1e-6)


def test_single_precision_comes_as_close_as_it_can():
    features, labels, used = problem(900, 80, 0.5)
    exact = regress(features, torch.eye(80).double(), labels, used, CS)
    single = regress(features.float(), torch.eye(80), labels, used, CS)
    torch.testing.assert_close(single.log_odds.double(), exact.log_odds, rtol=0, atol=2e-3)


def test_classes_that_a_plane_separates_still_have_an_optimum():
    features, _, used = problem(60, 5, 1.0)
    labels = (features[:, 0] > 1.0).long()
    found = regress(features, torch.eye(5).double(), labels, used, torch.full((4,), 1e4))
    expected = sklearn_fit(features, labels, used[:, 0], 1e4).decision_function(features.numpy())
    np.testing.assert_allclose(found.log_odds[:, 0].numpy(), expected, rtol=1e-4, atol=1e-4)
