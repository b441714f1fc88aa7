"""Checks that every steering method passes.

    import pytest
    from odesteer.testing import METHOD_CHECKS, FittedMethod

    @pytest.mark.parametrize("check", METHOD_CHECKS.values(), ids=METHOD_CHECKS)
    def test_my_method(check):
        check(FittedMethod.of(MedianDifference()))

`check_method(MedianDifference())` runs all of them without pytest. The data are two Gaussians in
12 dimensions, 60 rows each; give a slow method cheaper hyperparameters.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from odesteer.extraction.sensitivities import Sensitivity
from odesteer.methods import Method
from odesteer.ode import Angle, Dose, PathLength, as_dose
from odesteer.steering import Steering

WIDTH, ROWS = 12, 60
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

MethodCheck = Callable[["FittedMethod"], None]
METHOD_CHECKS: dict[str, MethodCheck] = {}
"""Checks by name; each raises AssertionError, and its docstring states the requirement."""


@dataclass(frozen=True)
class FittedMethod:
    """Method with a steering fitted to two Gaussians.

    Attributes:
        method: the method with its hyperparameters.
        steering: fitted to `positive` and `negative`.
        positive, negative: [60, 12].
    """

    method: Method
    steering: Steering
    positive: Tensor
    negative: Tensor

    @classmethod
    def of(cls, method: Method) -> "FittedMethod":
        """Fit the method once, for all checks."""
        positive, negative = two_gaussians(ROWS, ROWS, seed=1)
        steering = method.fit(
            positive, negative, layer=1, **more_inputs(method, positive, negative)
        )
        return cls(method, steering, positive, negative)

    @cached_property
    def again(self) -> tuple[Steering, list[str]]:
        """Second fit, made at most once, and the names of the inputs that it changed."""
        positive, negative = self.positive.clone(), self.negative.clone()
        settings = repr(self.method)
        more = more_inputs(self.method, positive, negative)
        steering = self.method.fit(positive, negative, layer=1, **more)
        same = {
            "positive rows": torch.equal(positive, self.positive),
            "negative rows": torch.equal(negative, self.negative),
            "method": repr(self.method) == settings,
        }
        return steering, [name for name, unchanged in same.items() if not unchanged]

    @property
    def rows(self) -> Tensor:
        """Held-out rows of both classes, [400, 12]."""
        return torch.cat(two_gaussians(200, 200, seed=7))

    @property
    def moves(self) -> bool:
        """Whether any row moves, as with every method but "none"."""
        return bool((self.steering.with_strength(0.5)(self.rows) != self.rows).any())

    def moved(self, strength: Dose | float) -> Tensor:
        """Return the held-out rows that a steering moves: all, or one side of its gate, [n, 12]."""
        moved = (self.steering.with_strength(strength)(self.rows) != self.rows).any(dim=-1)
        if not self.steering.field.gated:
            still = int((~moved).sum())
            assert not still, f"strength {strength} leaves {still} rows where they are"
        # A gate that hardly opens would make every check of the moved rows vacuous.
        assert moved.float().mean() > 0.2, f"strength {strength} moves {moved.float().mean():.0%}"
        return self.rows[moved]


def two_gaussians(n: int, m: int, d: int = WIDTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw [n, d] of N(centre + shift, I) and [m, d] of N(centre - shift, I), 1.6 apart."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.linspace(-1.0, 2.0, d)
    shift = 0.8 * torch.nn.functional.normalize(torch.cos(torch.arange(d).float()), dim=0)
    positive = torch.randn(n, d, generator=generator) + centre + shift
    return positive, torch.randn(m, d, generator=generator) + centre - shift


def more_inputs(
    method: Method | type[Method], positive: Tensor, negative: Tensor
) -> dict[str, Any]:
    """Return what a method learns from beside activations [n, d] and [m, d], as arguments of `fit`.

    Sensitivities are those of a model whose log-likelihood of a row is that of its class by a
    logistic readout of the activation, and whose words depend a little on every direction.
    """
    if not method.reads_sensitivities:
        return {}
    readout = positive.mean(dim=0) - negative.mean(dim=0)
    middle = (positive.mean(dim=0) + negative.mean(dim=0)) / 2
    generator = torch.Generator().manual_seed(0)

    def of(rows: Tensor, sign: float) -> Sensitivity:
        norms = rows.norm(dim=-1, keepdim=True)
        surprise = torch.sigmoid(-sign * ((rows - middle) @ readout))[:, None]
        noise = torch.randn(rows.shape, generator=generator, dtype=torch.float64).to(rows)
        scores = norms * (surprise * readout + 0.3 * noise)
        ones = torch.ones(len(rows))
        return Sensitivity(sign * norms * surprise * readout, scores[:, None], rows, ones)

    return {"sensitivities": (of(positive, 1.0), of(negative, -1.0))}


def check_method(method: Method) -> None:
    """Run all checks of a method; raise one AssertionError that lists the failed ones."""
    fitted = FittedMethod.of(method)
    reasons = {name: _failure(check, fitted) for name, check in METHOD_CHECKS.items()}
    failed = [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
    assert not failed, f"{method.name} breaks {len(failed)} promises:\n" + "\n".join(failed)


def _failure(check: MethodCheck, fitted: FittedMethod) -> str | None:
    try:
        check(fitted)
    except Exception as error:  # a method that raises where it should work fails the check
        return str(error) or str(check.__doc__)
    return None


def _check(check: MethodCheck) -> MethodCheck:
    METHOD_CHECKS[check.__name__.replace("_", "-")] = check
    return check


@_check
def shape_and_type(fitted: FittedMethod) -> None:
    """Return finite results of the same shape and type."""
    for dtype in TYPES:
        for shape in ((WIDTH,), (7, WIDTH), (2, 3, WIDTH), (0, WIDTH)):
            count = torch.Size(shape[:-1]).numel()
            a = fitted.rows[:count].reshape(shape).to(dtype)
            out = fitted.steering.with_strength(0.7)(a)
            assert out.shape == a.shape, f"{list(a.shape)} became {list(out.shape)}"
            assert out.dtype == dtype, f"{dtype} became {out.dtype}"
            assert bool(torch.isfinite(out).all()), f"not finite in {dtype}"


@_check
def half_precision(fitted: FittedMethod) -> None:
    """Give in half precision the float32 result, rounded once."""
    for dtype in (torch.float16, torch.bfloat16):
        steering, a = fitted.steering.with_strength(0.7), fitted.rows.to(dtype)
        assert torch.equal(steering(a), steering(a.float()).to(dtype)), f"{dtype} differs"


@_check
def double_precision(fitted: FittedMethod) -> None:
    """Agree in float64 and float32, to rounding."""
    steering, a = fitted.steering.with_strength(0.7), fitted.rows
    torch.testing.assert_close(steering(a.double()).float(), steering(a), atol=2e-4, rtol=1e-4)


@_check
def leading_dimensions(fitted: FittedMethod) -> None:
    """Steer [..., d] row by row, for any leading dimensions."""
    steering, a = fitted.steering.with_strength(0.7), fitted.rows[:24]
    flat = steering(a)
    torch.testing.assert_close(steering(a.reshape(2, 3, 4, WIDTH)).reshape(-1, WIDTH), flat)
    torch.testing.assert_close(steering(a[5]), flat[5])


@_check
def independent_rows(fitted: FittedMethod) -> None:
    """Steer each row independently of its batch, to the bit."""
    steering, a = fitted.steering.with_strength(0.7), fitted.rows[:16]
    others = 100 * torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0))
    others[3] = a[3]
    assert torch.equal(steering(a)[3], steering(others)[3]), "another batch, another result"


@_check
def strength_zero(fitted: FittedMethod) -> None:
    """Return the activation bit for bit at strength zero."""
    for zero in (0, 0.0, -0.0, Angle(0.0), PathLength(0.0)):
        for dtype in TYPES:
            a = fitted.rows.to(dtype)
            assert torch.equal(fitted.steering.with_strength(zero)(a), a), f"{zero!r} in {dtype}"


@_check
def strengths_differ(fitted: FittedMethod) -> None:
    """Move every row further with more strength, in both directions."""
    if not fitted.moves:
        return
    for sign in (1, -1):
        rows = fitted.moved(sign * 0.5)
        lengths = [
            (fitted.steering.with_strength(sign * s)(rows) - rows).norm(dim=-1)
            for s in (0.25, 0.5, 1.0)
        ]
        rising = (lengths[0] > 0) & (lengths[0] < lengths[1]) & (lengths[1] < lengths[2])
        assert bool(rising.all()), f"not at {int((~rising).sum())} of {len(rows)} rows"


@_check
def barrier_rises(fitted: FittedMethod) -> None:
    """Raise the log-odds of every row with a small step; without a barrier give none."""
    if fitted.steering.field.barrier is None:
        try:
            fitted.steering.log_odds(fitted.rows)
        except ValueError:
            return
        raise AssertionError("it has no barrier, and gives log-odds")
    steering = fitted.steering.with_strength(PathLength(0.02))
    rows = fitted.moved(PathLength(0.02)).double()
    rises = steering.log_odds(steering(rows)) > steering.log_odds(rows)
    assert bool(rises.all()), f"not at {int((~rises).sum())} of {len(rows)} rows"


@_check
def deterministic(fitted: FittedMethod) -> None:
    """Fit equal tensors and an equal calibration to the same data and seed."""
    again, _ = fitted.again
    first, second = fitted.steering.field.state_dict(), again.field.state_dict()
    assert first.keys() == second.keys(), f"{sorted(first)} and {sorted(second)}"
    for key in first:
        assert torch.equal(first[key], second[key]), key
    assert fitted.steering.calibration == again.calibration, "the calibrations differ"


@_check
def nothing_is_changed(fitted: FittedMethod) -> None:
    """Leave the inputs and the method, a frozen dataclass, unchanged when fitting."""
    _, changed = fitted.again
    assert not changed, f"fitting changed the {', the '.join(changed)}"
    try:
        fitted.method.steps = 3  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError("its attributes can be set: make it a dataclass with frozen=True")


@_check
def half_precision_data(fitted: FittedMethod) -> None:
    """Fit rows in half precision or with gradients; no fitted tensor has gradients."""
    positive = fitted.positive.half().requires_grad_(True)
    negative = fitted.negative.half()
    steering = fitted.method.fit(
        positive, negative, **more_inputs(fitted.method, positive, negative)
    )
    torch.testing.assert_close(
        steering.with_strength(0.5)(fitted.rows),
        fitted.steering.with_strength(0.5)(fitted.rows),
        atol=0.1,
        rtol=0.1,
    )
    tracked = [k for k, tensor in steering.field.state_dict().items() if tensor.requires_grad]
    assert not tracked, f"{tracked} need gradients"


@_check
def tiny_classes(fitted: FittedMethod) -> None:
    """Fit few rows, one of each class, and unequal classes (unless pairs are needed)."""
    for n, m in ((40, 9), (1, 1), (6, 5)):
        m = n if fitted.method.needs_pairs else m
        positive, negative = fitted.positive[:n], fitted.negative[:m]
        more = more_inputs(fitted.method, positive, negative)
        steering = fitted.method.fit(positive, negative, **more).with_strength(0.5)
        assert bool(torch.isfinite(steering(fitted.rows)).all()), f"not finite from {n} and {m}"


@_check
def saved_and_loaded(fitted: FittedMethod) -> None:
    """Steer to the bit as before after saving and loading; fields are data, not code."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = fitted.steering.save_pretrained(Path(folder) / "it")
        except ValueError as error:
            raise AssertionError(str(error)) from None
        loaded = Steering.from_pretrained(path)
    assert torch.equal(loaded(fitted.rows), fitted.steering(fitted.rows)), "steers otherwise"
    assert as_dose(loaded.strength) == as_dose(fitted.steering.strength), "another dose"
    for name in ("solver", "steps", "layer", "method", "calibration", "coverage", "receipts"):
        value, expected = getattr(loaded, name), getattr(fitted.steering, name)
        assert value == expected, f"{name} is {value!r} instead of {expected!r}"


@_check
def hyperparameters_are_remembered(fitted: FittedMethod) -> None:
    """Keep every hyperparameter in the repr and, as JSON, in the steering."""
    text, saved = repr(fitted.method), fitted.steering.hyperparameters
    for field in dataclasses.fields(fitted.method):
        value = f"{field.name}={getattr(fitted.method, field.name)!r}"
        assert value in text, f"{value} is not in {text}"
        assert field.name in saved, f"{field.name} is not in {sorted(saved)}"
    json.dumps(saved, allow_nan=False)
