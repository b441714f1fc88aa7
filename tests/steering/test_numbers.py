"""Numbers at the edges of their types: rows that overflow, fits without a P, default types.

The classes of finding 12 that failed; each method is fitted once, in few steps.
"""

import warnings
from functools import cache

import pytest
import torch

import odesteer as ods
from odesteer import METHODS, Angle, PathLength, Steering, Target, Time
from odesteer.ode import Dose
from odesteer.ode.reduced import kernels
from odesteer.testing.method_checks import more_inputs, two_gaussians

D = 8
CLASSES = two_gaussians(20, 20, d=D, seed=1)
QUICK = {
    "hpr": {"min_steps": 30},
    "re-control": {"min_steps": 20, "epochs": 5},
    "truthflow": {"min_steps": 20, "epochs": 5, "k": 4, "points": 4, "depth": 2},
    "odesteer-network": {"epochs": 4, "hidden": (8,)},
    "odesteer-paper": {"components": 128},
    "odesteer-one-step": {"components": 128},
    "odesteer-fourier": {"components": 64},
    "safety-filter": {"estimate": ods.ODESteer(gamma=1.0, C=1.0, p=0.0)},
    "odesteer": {"gamma": 1.0, "C": 1.0, "p": 0.25},
}
DOSES = [Time(1.0), Angle(0.2), Angle(-0.2), PathLength(2.0), Target(0.9, Angle(0.3))]


def _fit(name: str, scale: float = 1.0, calibrate: bool = True) -> Steering:
    positive, negative = CLASSES
    method = METHODS[name](**QUICK.get(name, {}))  # type: ignore[arg-type]
    classes = positive * scale, negative * scale
    return method.fit(*classes, calibrate=calibrate, **more_inputs(method, *classes))


@pytest.fixture(autouse=True)
def _quietly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


fitted = cache(_fit)


def _normal(n: int, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, D, generator=generator, dtype=torch.float32) * scale


def _doses(steering: Steering) -> list[Dose]:
    return [dose for dose in DOSES if dose.stop_at is None or steering.field.barrier is not None]


@pytest.mark.parametrize("name", METHODS)
def test_finding_12_finite_rows_stay_finite_and_leave_the_others_alone(name):
    steering = fitted(name)
    ordinary, edge = _normal(3), torch.cat([_normal(3, s) for s in (1e20, 1e30, 1e37)])
    for dose in _doses(steering):
        steer = steering.with_strength(dose)
        moved = steer(torch.cat([ordinary, edge]))
        assert bool(torch.isfinite(moved).all())
        torch.testing.assert_close(moved[:3], steer(ordinary))
        assert bool(torch.isfinite(steer(edge[4:5])).all())  # one row has a way of its own
        assert bool(torch.isfinite(steer(edge.bfloat16())).all())


@pytest.mark.parametrize("name", METHODS)
def test_finding_12_float16_does_not_overflow(name):
    steering = fitted(name)
    a = torch.cat([_normal(2), 6e4 * _normal(4).sign()]).half()
    for dose in _doses(steering):
        moved = steering.with_strength(dose)(a)
        assert moved.dtype == torch.float16
        assert bool(torch.isfinite(moved).all())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_finding_12_rows_that_are_not_finite_stay_so_and_alone(name, value):
    steering = fitted(name)
    a = _normal(6)
    a[1], a[4, 2] = value, value
    bad = torch.tensor([False, True, False, False, True, False])
    for dose in _doses(steering):
        steer = steering.with_strength(dose)
        moved = steer(a)
        torch.testing.assert_close(moved[~bad], steer(a[~bad]))
        assert torch.equal(moved.isfinite(), a.isfinite())
        # A vector added for one time looks at no row: the other coordinates get their share.
        vector = dose.uniform_time(steering.field) is not None and dose.stop_at is None
        if not (vector and steering.field.closed_form(a, 1.0) is not None):
            torch.testing.assert_close(moved[bad], a[bad], rtol=0, atol=0, equal_nan=True)


def test_finding_12_a_trajectory_and_an_adaptive_solver_do_so_too():
    steering = fitted("odesteer-gaussian").replace(solver="dopri5")
    a = torch.cat([_normal(2), _normal(1, 1e30), torch.full((1, D), float("nan"))])
    moved = steering.with_strength(Angle(0.2))(a)
    torch.testing.assert_close(moved[2:], a[2:], rtol=0, atol=0, equal_nan=True)
    assert bool((moved[:2] != a[:2]).any(dim=-1).all())
    path = fitted("odesteer").with_strength(Angle(0.2)).trajectory(a[:3])
    assert bool(torch.isfinite(path).all())


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("none", "random")])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_finding_12_a_fit_knows_p_of_its_rows_or_is_refused(name, scale):
    try:
        steering = _fit(name, scale)
    except ValueError as error:
        assert str(error).startswith(name)
        assert "\n" not in str(error)
        return
    rows = torch.cat(CLASSES) * scale
    if steering.field.barrier is not None:
        assert bool(torch.isfinite(steering.probability(rows)).all())


@pytest.mark.parametrize("name", ["caa", "iti-heads", "mimic", "linear-act", "odesteer-mixture"])
def test_finding_12_a_p_that_is_nan_says_what_to_do(name):
    with pytest.raises(ValueError, match=rf"^{name} cannot be used in float32.*between 1e-15 and"):
        _fit(name, 1e-30)


def test_finding_12_rows_that_do_not_differ_are_refused_by_mimic():
    same = torch.ones(10, D)
    try:
        steering = ods.MiMiC().fit(2 * same, same)
    except ValueError as error:
        assert "mimic cannot be used in float32" in str(error)
    else:
        assert bool(torch.isfinite(steering.probability(torch.cat([2 * same, same]))).all())


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_finding_12_the_default_type_of_torch_changes_nothing(name, default, tmp_path):
    expected = fitted(name, calibrate=False)
    a = _normal(4)
    torch.set_default_dtype(default)
    try:
        steering = _fit(name, calibrate=False)
        steering.save_pretrained(tmp_path / "s")
        moved = [each(a) for each in (steering, ods.load(tmp_path / "s"))]
    finally:
        torch.set_default_dtype(torch.float32)
    for each in moved:
        torch.testing.assert_close(each, expected(a))


@pytest.mark.parametrize("name", ["mimic", "hpr", "safety-filter"])
def test_finding_12_a_negative_dose_of_a_gate_says_that_it_does_not_go_back(name):
    steering = fitted(name)
    with pytest.warns(UserWarning, match=f"negative strength of '{name}' does not go back"):
        steering.with_strength(-0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steering.with_strength(0.5)
        steering.with_strength(-0.0)
        fitted("caa").with_strength(-0.5)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("name", ["odesteer", "hpr", "re-control", "odesteer-gaussian", "caa"])
def test_finding_12_a_target_that_is_reached_is_reached_in_p(name, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(kernels, "solve", lambda *_: None)
        monkeypatch.setattr(kernels, "integrator", lambda *_: None)
    steering, a = fitted(name), _normal(200)
    spent = steering.with_strength(Angle(0.6))(a)
    for p in (0.4, 0.6, 0.9):
        moved = steering.with_strength(Target(p, Angle(0.6)))(a)
        there = steering.probability(a) >= p
        assert torch.equal(moved[there], a[there])
        stopped = ~there & (moved != spent).any(dim=-1)
        assert bool((steering.probability(moved)[stopped] >= p).all())
