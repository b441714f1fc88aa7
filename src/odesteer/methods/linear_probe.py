"""Linear probe shared by several methods."""

import torch
from sklearn.linear_model import LogisticRegression

from odesteer.methods.samples import Samples
from odesteer.ode import LinearBarrier


def linear_probe(samples: Samples, C: float = 1.0) -> LinearBarrier:
    """theta . a + b + log(n-/n+): the log density ratio of logistic regression on raw rows.

    Args:
        samples: the two classes.
        C: inverse L2 regularisation.
    """
    # Newton reaches the optimum in a few steps where lbfgs, on raw activations whose
    # scales differ by orders of magnitude, still has not after 1,000.
    model = LogisticRegression(C=C, solver="newton-cholesky", max_iter=100)
    model.fit(samples.rows.cpu().numpy(), samples.labels)
    theta = torch.as_tensor(model.coef_[0]).to(samples.positive)
    return LinearBarrier(theta, float(model.intercept_[0]) - samples.log_prior_odds)
