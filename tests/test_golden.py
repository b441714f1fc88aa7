"""Does the library agree with the paper's reference implementation, on real activations?

The golden outputs are float32, so "agree" is 1e-4 of the displacement; see golden.md.
"""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.methods.caa import CAA
from odesteer.methods.iti import ITI
from odesteer.methods.odesteer.paper import PaperODESteer
from odesteer.ode import SOLVERS, Barrier, FourierBarrier, GradientField, SketchBarrier, solve

Golden = dict[str, Tensor]

SOLVED = {
    "odesteer.euler10.T1": ("euler", 10, 1.0),
    "odesteer.euler10.T5": ("euler", 10, 5.0),
    "odesteer.euler10.T20": ("euler", 10, 20.0),
    "odesteer.midpoint10.T5": ("midpoint", 10, 5.0),
    # torchdiffeq's "rk4" is the 3/8 rule.
    "odesteer.rk410.T5": ("rk4-38", 10, 5.0),
    "odesteer.onestep.T5": ("euler", 1, 5.0),
}


def _relative(x: Tensor, reference: Tensor, query: Tensor) -> float:
    """The worst row's error over its displacement."""
    error = (x - reference).norm(dim=-1) / (reference - query).norm(dim=-1)
    return float(error.max())


@pytest.fixture(scope="module")
def sketch(golden: Golden) -> SketchBarrier:
    return SketchBarrier(
        golden["sketch.index"],
        golden["sketch.sign"],
        golden["sketch.coef"],
        golden["sketch.intercept"][0],
        0.1,
        1.0,
    )


@pytest.fixture(scope="module", params=["fft", "quadratic"])
def barrier(sketch: SketchBarrier, request: pytest.FixtureRequest) -> Barrier:
    """The reference's barrier by FFT, and as a quadratic form solved in k + 1 dimensions."""
    return sketch if request.param == "fft" else sketch.quadratic()


@pytest.fixture(scope="module")
def fourier(golden: Golden) -> GradientField:
    weight, offset = golden["fourier.weight"], golden["fourier.offset"]
    return GradientField(FourierBarrier(weight, offset, golden["fourier.coef"], 0.0))


def test_sketched_features_are_the_references(sketch: SketchBarrier, golden: Golden) -> None:
    torch.testing.assert_close(
        sketch.features(golden["queries"]), golden["sketch.features"], rtol=1e-4, atol=1e-6
    )


def test_log_odds_are_the_references(barrier: Barrier, golden: Golden) -> None:
    torch.testing.assert_close(
        barrier.value(golden["queries"]), golden["sketch.log_odds"], rtol=1e-4, atol=1e-5
    )


def test_the_unit_field_is_the_references(barrier: Barrier, golden: Golden) -> None:
    error = GradientField(barrier)(golden["queries"]) - golden["odesteer.field"]
    assert float(error.norm(dim=-1).max()) < 1e-4


@pytest.mark.parametrize("key", list(SOLVED))
def test_steered_activations_are_the_references(key: str, barrier: Barrier, golden: Golden) -> None:
    name, steps, time = SOLVED[key]
    query = golden["queries"]
    moved = solve(GradientField(barrier), query, time, solver=SOLVERS[name], steps=steps)
    assert _relative(moved, golden[key], query) < 1e-4


@pytest.mark.parametrize("time", [1.0, 5.0, 20.0])
def test_the_references_euler_leaves_the_sphere_as_predicted(time: float, golden: Golden) -> None:
    # Theory 2.2, on the reference's own output: ||a_K||^2 = ||a_0||^2 + T^2 / K.
    squared = golden["queries"].double().square().sum(dim=-1)
    moved = golden[f"odesteer.euler10.T{time:.0f}"].double().square().sum(dim=-1)
    torch.testing.assert_close(
        moved - squared, torch.full_like(squared, time**2 / 10), rtol=1e-2, atol=2e-2
    )


def test_the_fourier_field_is_the_references(fourier: GradientField, golden: Golden) -> None:
    error = fourier(golden["queries"]) - golden["fourier.field"]
    assert float(error.norm(dim=-1).max()) < 1e-4


def test_fourier_steered_activations_are_the_references(
    fourier: GradientField, golden: Golden
) -> None:
    query = golden["queries"]
    moved = solve(fourier, query, 5.0, solver=SOLVERS["euler"], steps=10)
    assert _relative(moved, golden["fourier.euler10.T5"], query) < 1e-4


def test_refitting_on_the_references_hashes_gives_its_log_odds(golden: Golden) -> None:
    positive, negative = golden["positive"].double(), golden["negative"].double()
    index, sign = golden["sketch.index"], golden["sketch.sign"]
    refitted = PaperODESteer().fit_sketch(positive, negative, index, sign)
    # Ours is a density ratio: b + log(n-/n+). The reference's intercept has no prior removed.
    prior = torch.tensor(len(positive) / len(negative)).double().log()
    log_odds = refitted.value(golden["queries"].double()) + prior
    torch.testing.assert_close(log_odds, golden["sketch.log_odds"].double(), rtol=0, atol=1e-2)


def test_refitting_on_the_references_hashes_gives_its_field(golden: Golden) -> None:
    positive, negative = golden["positive"].double(), golden["negative"].double()
    index, sign = golden["sketch.index"], golden["sketch.sign"]
    refitted = GradientField(PaperODESteer().fit_sketch(positive, negative, index, sign))
    cosine = (refitted(golden["queries"].double()) * golden["odesteer.field"]).sum(dim=-1)
    assert float(cosine.min()) > 1 - 1e-4


def test_caa_learns_the_references_vector(golden: Golden) -> None:
    learnt = CAA().fit_field(golden["positive"].double(), golden["negative"].double())
    expected = golden["caa.vector"].double()
    assert float((learnt(golden["queries"].double()[0]) - expected).norm()) < 1e-4 * float(
        expected.norm()
    )


def test_iti_learns_the_references_direction(golden: Golden) -> None:
    # Measured 0.9987, all of it the reference's: its lbfgs stops that far from the optimum.
    learnt = ITI().fit_field(golden["positive"].double(), golden["negative"].double())
    direction = learnt(golden["queries"].double()[0])
    cosine = torch.cosine_similarity(direction, golden["iti.vector"].double(), dim=0)
    assert float(cosine) >= 0.99
    assert float(direction.norm()) == pytest.approx(1.0)


def test_iti_is_the_optimum_of_the_penalised_log_loss(golden: Golden) -> None:
    positive, negative = golden["positive"].double(), golden["negative"].double()
    direction = ITI().fit_field(positive, negative)(positive[0])
    rows = torch.cat([positive, negative]).numpy()
    labels = [1] * len(positive) + [0] * len(negative)
    probe = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(rows, labels)
    theta = probe.coef_[0]
    # The gradient of the log-loss plus ||theta||^2 / 2 vanishes at the optimum and only there.
    assert abs((probe.predict_proba(rows)[:, 1] - labels) @ rows + theta).max() < 1e-8
    cosine = torch.cosine_similarity(direction, torch.as_tensor(theta), dim=0)
    assert float(cosine) > 1 - 1e-5
