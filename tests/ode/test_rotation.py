"""Is HPR's flow a rotation in the plane of a and theta, by the predicted angle?"""

import math

import pytest
import torch
from torch import Tensor

from odesteer import Angle, Steering, Target
from odesteer.ode import (
    SOLVERS,
    Dense,
    GradientField,
    Network,
    QuadraticBarrier,
    RotationField,
    Whitening,
    solve,
    trajectory,
)

D = 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


THETA = torch.nn.functional.normalize(normal(D, seed=1), dim=0)
ROWS = 3 * normal(200, D, seed=2)
NEGATIVE, POSITIVE = ROWS[ROWS @ THETA < 0], ROWS[ROWS @ THETA > 0]


def field() -> RotationField:
    network = Network.draw([D, 8, 1], "gelu", torch.Generator().manual_seed(3))
    return RotationField(THETA, network).double()


def turned(a: Tensor, strength: float = 1.0, steps: int = 1) -> Tensor:
    return solve(field(), a, strength, solver=SOLVERS["great-circle"], steps=steps)


def gamma(a: Tensor) -> Tensor:
    return math.pi * torch.sigmoid(field().angle(a)[..., 0])


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    # More exact than acos near 0 and pi.
    a, b = (x / x.norm(dim=-1, keepdim=True) for x in (a, b))
    return 2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1))


@pytest.mark.parametrize("strength", [0.1, 0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("steps", [1, 7])
def test_the_norm_is_kept_to_rounding_at_any_strength(strength: float, steps: int) -> None:
    for a in (ROWS, 1e4 * ROWS, 1e-4 * ROWS):
        moved = turned(a, strength, steps)
        torch.testing.assert_close(moved.norm(dim=-1), a.norm(dim=-1), rtol=1e-13, atol=0)


def test_the_norm_is_kept_next_to_the_axis_in_float32() -> None:
    a = (-THETA + 1e-4 * normal(50, D, seed=4)).float()
    moved = solve(field().float(), a, 0.7, solver=SOLVERS["great-circle"], steps=1)
    assert bool((moved != a).any(dim=-1).all())
    torch.testing.assert_close(moved.norm(dim=-1), a.norm(dim=-1), rtol=5e-7, atol=0)


def test_the_rotation_stays_in_the_plane_of_a_and_theta() -> None:
    moved = turned(NEGATIVE)
    for a, b in zip(NEGATIVE, moved, strict=True):
        plane = torch.linalg.qr(torch.stack([a, THETA], dim=1)).Q
        torch.testing.assert_close(plane @ (plane.mT @ b), b)


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0])
def test_the_strength_is_the_fraction_of_the_predicted_angle(strength: float) -> None:
    moved = turned(NEGATIVE, strength)
    torch.testing.assert_close(angle_between(NEGATIVE, moved), strength * gamma(NEGATIVE))


def test_half_the_strength_and_then_the_other_half_is_the_whole() -> None:
    start, half, whole = trajectory(field(), NEGATIVE, 1.0, solver=SOLVERS["great-circle"], steps=2)
    torch.testing.assert_close(angle_between(start, half), angle_between(half, whole))
    torch.testing.assert_close(whole, turned(NEGATIVE))


def test_a_dose_in_radians_turns_by_it() -> None:
    steering = Steering(field(), Angle(0.4), solver="great-circle")
    turn = angle_between(NEGATIVE, steering(NEGATIVE))
    torch.testing.assert_close(turn, torch.full_like(turn, 0.4))


def test_it_is_the_slerp_from_a_to_its_householder_reflection() -> None:
    # The formula of the paper, with its d x d reflector and its division by sin.
    reflector = torch.eye(D, dtype=torch.float64) - 2 * torch.outer(THETA, THETA)
    mirrored = NEGATIVE @ reflector
    whole, part = angle_between(NEGATIVE, mirrored), gamma(NEGATIVE)
    slerp = (part.sin() / whole.sin()).unsqueeze(-1) * mirrored
    slerp = slerp + ((whole - part).sin() / whole.sin()).unsqueeze(-1) * NEGATIVE
    torch.testing.assert_close(turned(NEGATIVE), slerp)


def test_a_linear_barrier_on_the_sphere_moves_on_the_same_circle() -> None:
    one = torch.ones(1, dtype=torch.float64)
    barrier = QuadraticBarrier(Whitening(0 * THETA), THETA[:, None], 0 * one, 2 * one, 0.0)
    # Up to theta itself, where the gradient flow ends and the rotation goes on.
    part = torch.minimum(gamma(NEGATIVE), 0.9 * angle_between(NEGATIVE, THETA))
    for solver, steps in (("great-circle", 1), ("great-circle", 5), ("dopri5", 1)):
        flowed = solve(
            GradientField(barrier),
            NEGATIVE,
            part * NEGATIVE.norm(dim=-1),
            solver=SOLVERS[solver],
            steps=steps,
        )
        rotated = solve(
            field(), NEGATIVE, part / gamma(NEGATIVE), solver=SOLVERS["great-circle"], steps=1
        )
        torch.testing.assert_close(flowed, rotated, rtol=1e-4, atol=1e-4)


def test_what_the_probe_calls_positive_keeps_every_bit() -> None:
    assert torch.equal(turned(POSITIVE), POSITIVE)
    assert torch.equal(field()(POSITIVE), torch.zeros_like(POSITIVE))


def test_the_reversed_field_is_the_field_in_the_mirror() -> None:
    def mirror(a: Tensor) -> Tensor:
        return a - 2 * (a @ THETA)[:, None] * THETA

    back = field().reversed()
    torch.testing.assert_close(back(POSITIVE), mirror(field()(mirror(POSITIVE))))
    assert torch.equal(back(NEGATIVE), torch.zeros_like(NEGATIVE))
    assert bool(((back(POSITIVE) @ THETA) < 0).all())
    assert torch.equal(back.reversed()(ROWS), field()(ROWS))


def test_a_negative_strength_turns_the_other_class_away() -> None:
    steering = Steering(field(), -0.5, solver="great-circle")
    moved = steering(ROWS)
    assert torch.equal(moved[ROWS @ THETA < 0], NEGATIVE)
    assert bool(((moved - ROWS)[ROWS @ THETA > 0] @ THETA < 0).all())


@pytest.mark.parametrize("length", [-5.0, -1e-3, 0.0, 2.0])
def test_a_parallel_to_theta_stays_where_it_is(length: float) -> None:
    for f in (field(), field().reversed(), field().float(), field().reversed().float()):
        a = (length * THETA).to(f.theta.dtype)
        assert torch.equal(f(a), torch.zeros_like(a))
        assert torch.equal(solve(f, a, 1.0, solver=SOLVERS["great-circle"], steps=1), a)


def test_the_reduced_flow_starts_along_the_field_and_knows_its_barrier() -> None:
    f = field()
    flow, start, lift = f.reduce(ROWS)
    assert torch.equal(lift(start), ROWS)
    torch.testing.assert_close(lift(start + flow(start)) - ROWS, f(ROWS))
    torch.testing.assert_close(flow.length(flow(start))[:, 0], f(ROWS).norm(dim=-1))
    later = flow.rotate(start, torch.full((len(ROWS), 1), 0.3, dtype=torch.float64))
    torch.testing.assert_close(flow.value(later), f.value(lift(later)))
    torch.testing.assert_close(f.value(ROWS), ROWS @ THETA / ROWS.norm(dim=-1))


def test_runge_kutta_arrives_where_the_great_circle_does() -> None:
    moved = solve(field(), ROWS, 1.0, solver=SOLVERS["rk4"], steps=50)
    torch.testing.assert_close(moved, turned(ROWS), rtol=1e-6, atol=1e-6)


def test_a_target_stops_inside_the_turn() -> None:
    steering = Steering(field(), Target(0.55, 1.0), solver="great-circle", steps=20)
    moved = steering(NEGATIVE)
    # All that get there within the budget are at the target, and not beyond it.
    reached = steering.probability(moved) > 0.55 - 1e-6
    assert reached.float().mean() > 0.3
    goal = torch.full_like(moved[reached, 0], 0.55)
    torch.testing.assert_close(steering.probability(moved)[reached], goal, rtol=1e-6, atol=1e-6)


def test_a_theta_that_is_not_of_length_one_is_refused_with_its_length() -> None:
    with pytest.raises(ValueError, match=r"length 2.*\[7\] -> 1"):
        RotationField(2 * THETA, field().angle)
    with pytest.raises(ValueError, match=r"\[3\] -> 2"):
        RotationField(THETA, Network([Dense(torch.ones(2, 3), torch.ones(2))], "gelu"))
