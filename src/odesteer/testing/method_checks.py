"""Checks that every steering method passes.

    import pytest
    from odesteer.testing import PROMISES, Trial

    @pytest.mark.parametrize("promise", PROMISES.values(), ids=PROMISES)
    def test_my_method_keeps(promise):
        promise(Trial.of(MedianDifference()))

Or all at once, without pytest: `check_method(MedianDifference())`. The data are two Gaussians in
12 dimensions, 60 rows each; a method that needs minutes for them is made cheaper by its own
hyperparameters.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from odesteer.methods import Method
from odesteer.ode import Angle, Dose, PathLength, as_dose
from odesteer.steering import Steering

WIDTH, ROWS = 12, 60
TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Promise = Callable[["FittedMethod"], None]
METHOD_CHECKS: dict[str, Promise] = {}
"""By name: each raises AssertionError where it is broken. Its docstring says what is promised."""


@dataclass(frozen=True)
class FittedMethod:
    """A method, and what it learnt from two Gaussians.

    Attributes:
        method: with its hyperparameters.
        steering: what it learnt from `positive` and `negative`.
        positive, negative: [60, 12].
    """

    method: Method
    steering: Steering
    positive: Tensor
    negative: Tensor

    @classmethod
    def of(cls, method: Method) -> "FittedMethod":
        """Fit the method once, for all promises."""
        positive, negative = two_gaussians(ROWS, ROWS, seed=1)
        return cls(method, method.fit(positive, negative, layer=1), positive, negative)

    @cached_property
    def again(self) -> tuple[Steering, list[str]]:
        """A second fit, made at most once, and which of its inputs it changed."""
        positive, negative = self.positive.clone(), self.negative.clone()
        settings = repr(self.method)
        steering = self.method.fit(positive, negative, layer=1)
        same = {
            "positive rows": torch.equal(positive, self.positive),
            "negative rows": torch.equal(negative, self.negative),
            "method": repr(self.method) == settings,
        }
        return steering, [name for name, kept in same.items() if not kept]

    @property
    def rows(self) -> Tensor:
        """[400, 12]: rows that it has not seen, of both classes."""
        return torch.cat(two_gaussians(200, 200, seed=7))

    @property
    def moves(self) -> bool:
        """Whether it moves anything at all, as all methods but "none" do."""
        return bool((self.steering.with_strength(0.5)(self.rows) != self.rows).any())

    def moved(self, strength: Dose | float) -> Tensor:
        """[n, 12]: the unseen rows that a steering moves: all, or those on one side of its gate."""
        moved = (self.steering.with_strength(strength)(self.rows) != self.rows).any(dim=-1)
        if not self.steering.field.gated:
            still = int((~moved).sum())
            assert not still, f"strength {strength} leaves {still} rows where they are"
        # A gate that hardly opens would make every promise about the moved rows empty.
        assert moved.float().mean() > 0.2, f"strength {strength} moves {moved.float().mean():.0%}"
        return self.rows[moved]


def two_gaussians(n: int, m: int, d: int = WIDTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """[n, d] of N(centre + shift, I) and [m, d] of N(centre - shift, I), 1.6 apart."""
    generator = torch.Generator().manual_seed(seed)
    centre = torch.linspace(-1.0, 2.0, d)
    shift = 0.8 * torch.nn.functional.normalize(torch.cos(torch.arange(d).float()), dim=0)
    positive = torch.randn(n, d, generator=generator) + centre + shift
    return positive, torch.randn(m, d, generator=generator) + centre - shift


def check_method(method: Method) -> None:
    """Raise AssertionError, with every promise that the method breaks."""
    trial = FittedMethod.of(method)
    reasons = {name: _why_broken(promise, trial) for name, promise in METHOD_CHECKS.items()}
    broken = [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
    assert not broken, f"{method.name} breaks {len(broken)} promises:\n" + "\n".join(broken)


def _why_broken(promise: Promise, trial: FittedMethod) -> str | None:
    try:
        promise(trial)
    except AssertionError as error:
        return str(error) or str(promise.__doc__)
    return None


def _promise(promise: Promise) -> Promise:
    METHOD_CHECKS[promise.__name__.replace("_", "-")] = promise
    return promise


@_promise
def shape_and_type(trial: FittedMethod) -> None:
    """What comes out has the shape and type of what goes in, and is finite."""
    for dtype in TYPES:
        for shape in ((WIDTH,), (7, WIDTH), (2, 3, WIDTH), (0, WIDTH)):
            count = torch.Size(shape[:-1]).numel()
            a = trial.rows[:count].reshape(shape).to(dtype)
            out = trial.steering.with_strength(0.7)(a)
            assert out.shape == a.shape, f"{list(a.shape)} became {list(out.shape)}"
            assert out.dtype == dtype, f"{dtype} became {out.dtype}"
            assert bool(torch.isfinite(out).all()), f"not finite in {dtype}"


@_promise
def half_precision(trial: FittedMethod) -> None:
    """Half precision is the float32 result, rounded once."""
    for dtype in (torch.float16, torch.bfloat16):
        steering, a = trial.steering.with_strength(0.7), trial.rows.to(dtype)
        assert torch.equal(steering(a), steering(a.float()).to(dtype)), f"{dtype} differs"


@_promise
def double_precision(trial: FittedMethod) -> None:
    """float64 agrees with float32 to rounding."""
    steering, a = trial.steering.with_strength(0.7), trial.rows
    torch.testing.assert_close(steering(a.double()).float(), steering(a), atol=2e-4, rtol=1e-4)


@_promise
def leading_dimensions(trial: FittedMethod) -> None:
    """[..., d] is steered row by row, whatever stands before d."""
    steering, a = trial.steering.with_strength(0.7), trial.rows[:24]
    flat = steering(a)
    torch.testing.assert_close(steering(a.reshape(2, 3, 4, WIDTH)).reshape(-1, WIDTH), flat)
    torch.testing.assert_close(steering(a[5]), flat[5])


@_promise
def independent_rows(trial: FittedMethod) -> None:
    """A row does not depend on the other rows of its batch, to the bit."""
    steering, a = trial.steering.with_strength(0.7), trial.rows[:16]
    others = 100 * torch.randn(16, WIDTH, generator=torch.Generator().manual_seed(0))
    others[3] = a[3]
    assert torch.equal(steering(a)[3], steering(others)[3]), "another batch, another result"


@_promise
def strength_zero(trial: FittedMethod) -> None:
    """Strength zero returns the activation bit for bit."""
    for zero in (0, 0.0, -0.0, Angle(0.0), PathLength(0.0)):
        for dtype in TYPES:
            a = trial.rows.to(dtype)
            assert torch.equal(trial.steering.with_strength(zero)(a), a), f"{zero!r} in {dtype}"


@_promise
def strengths_differ(trial: FittedMethod) -> None:
    """More strength moves every row further, in both directions."""
    if not trial.moves:
        return
    for sign in (1, -1):
        mine = trial.moved(sign * 0.5)
        way = [
            (trial.steering.with_strength(sign * s)(mine) - mine).norm(dim=-1)
            for s in (0.25, 0.5, 1.0)
        ]
        rising = (way[0] > 0) & (way[0] < way[1]) & (way[1] < way[2])
        assert bool(rising.all()), f"not at {int((~rising).sum())} of {len(mine)} rows"


@_promise
def barrier_rises(trial: FittedMethod) -> None:
    """A short way raises the log-odds of every row it moves; without a barrier there are none."""
    if trial.steering.field.barrier is None:
        try:
            trial.steering.log_odds(trial.rows)
        except ValueError:
            return
        raise AssertionError("it has no barrier, and gives log-odds")
    steering = trial.steering.with_strength(PathLength(0.02))
    mine = trial.moved(PathLength(0.02)).double()
    rises = steering.log_odds(steering(mine)) > steering.log_odds(mine)
    assert bool(rises.all()), f"not at {int((~rises).sum())} of {len(mine)} rows"


@_promise
def deterministic(trial: FittedMethod) -> None:
    """The same data and seed give equal tensors and an equal calibration."""
    again, _ = trial.again
    one, two = trial.steering.field.state_dict(), again.field.state_dict()
    assert one.keys() == two.keys(), f"{sorted(one)} and {sorted(two)}"
    for key in one:
        assert torch.equal(one[key], two[key]), key
    assert trial.steering.calibration == again.calibration, "the calibrations differ"


@_promise
def nothing_is_changed(trial: FittedMethod) -> None:
    """Fitting leaves its inputs and the method, a frozen dataclass, unchanged."""
    _, changed = trial.again
    assert not changed, f"fitting changed the {', the '.join(changed)}"
    try:
        trial.method.steps = 3  # type: ignore[misc]
    except dataclasses.FrozenInstanceError:
        return
    raise AssertionError("its attributes can be set: make it a dataclass with frozen=True")


@_promise
def half_precision_data(trial: FittedMethod) -> None:
    """Rows in half precision, or with gradients, can be learnt from; nothing learnt has any."""
    positive = trial.positive.half().requires_grad_(True)
    steering = trial.method.fit(positive, trial.negative.half())
    torch.testing.assert_close(
        steering.with_strength(0.5)(trial.rows),
        trial.steering.with_strength(0.5)(trial.rows),
        atol=0.1,
        rtol=0.1,
    )
    tracked = [k for k, tensor in steering.field.state_dict().items() if tensor.requires_grad]
    assert not tracked, f"{tracked} need gradients"


@_promise
def tiny_classes(trial: FittedMethod) -> None:
    """A few rows, one of each class, and unequal classes (unless pairs are needed) are enough."""
    for n, m in ((40, 9), (1, 1), (6, 5)):
        m = n if trial.method.needs_pairs else m
        steering = trial.method.fit(trial.positive[:n], trial.negative[:m]).with_strength(0.5)
        assert bool(torch.isfinite(steering(trial.rows)).all()), f"not finite from {n} and {m}"


@_promise
def saved_and_loaded(trial: FittedMethod) -> None:
    """What was saved steers, when loaded, to the bit as before; its fields are data, not code."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = trial.steering.save_pretrained(Path(folder) / "it")
        except ValueError as error:
            raise AssertionError(str(error)) from None
        loaded = Steering.from_pretrained(path)
    assert torch.equal(loaded(trial.rows), trial.steering(trial.rows)), "steers otherwise"
    assert as_dose(loaded.strength) == as_dose(trial.steering.strength), "another dose"
    for name in ("solver", "steps", "layer", "method", "calibration", "receipts"):
        one, other = getattr(loaded, name), getattr(trial.steering, name)
        assert one == other, f"{name} is {one!r} instead of {other!r}"


@_promise
def hyperparameters_are_remembered(trial: FittedMethod) -> None:
    """Every hyperparameter is in the repr and, as JSON, in what was learnt."""
    shown, kept = repr(trial.method), trial.steering.hyperparameters
    for field in dataclasses.fields(trial.method):
        value = f"{field.name}={getattr(trial.method, field.name)!r}"
        assert value in shown, f"{value} is not in {shown}"
        assert field.name in kept, f"{field.name} is not in {sorted(kept)}"
    json.dumps(kept, allow_nan=False)
