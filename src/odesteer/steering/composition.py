"""Composition of several steerings into one ODE.

    all_of(a, b)       h = -log(e^-h_a + e^-h_b), or min(h_a, h_b)
    any_of(a, b)       h =  log(e^h_a + e^h_b),   or max(h_a, h_b)
    guarded(a, by=b)   a's field with the least change that keeps dh_b/dt >= -alpha (h_b - margin)

h are the calibrated barriers, in nats of log-odds, so that one aim does not drown another.
"""

from collections.abc import Callable

from odesteer.ode import AndBarrier, Barrier, GradientField, OrBarrier, SafetyField
from odesteer.steering.steering import Calibration, Steering


def all_of(*steerings: Steering, soft: bool = True) -> Steering:
    """Every aim at once; `a & b` for two.

    Args:
        steerings: at least one, all at one layer, each with a barrier. The dose is the first
            one's; `with_strength` changes it.
        soft: the smooth form, or the minimum of the barriers.

    Raises:
        ValueError: for none, for steerings of several layers, or one without a barrier.
    """
    return _joined(AndBarrier, "&", steerings, soft)


def any_of(*steerings: Steering, soft: bool = True) -> Steering:
    """Either aim; `a | b` for two. Arguments and errors as of `all_of`."""
    return _joined(OrBarrier, "|", steerings, soft)


def guarded(
    steering: Steering, *, by: Steering, alpha: float = 1.0, margin: float = 0.0
) -> Steering:
    """`steering`, changed as little as keeps the log-odds of `by` from falling below `margin`.

    A row that starts above the margin stays above it however far it is steered, and a row
    below comes up as fast as alpha asks (see `odesteer.ode.SafetyField`). `steering` needs
    no barrier of its own; the barrier and the calibration of the result are those of `by`.

    Args:
        steering: where to go, and how far.
        by: whose region is kept.
        alpha: > 0, per unit of the strength's time.
        margin: in nats of calibrated log-odds.

    Raises:
        ValueError: for steerings of two layers, `by` without a barrier, or alpha <= 0.
    """
    _check_one_place((steering, by))
    barrier = by.barrier.affine(*by.calibration)
    return Steering(
        field=SafetyField(barrier, alpha, margin, steering.field),
        strength=steering.strength,
        solver="rk4",
        steps=max(10, steering.steps),
        layer=steering.layer,
        method=f"({steering.method} guarded by {by.method})",
        hyperparameters={"steering": steering.hyperparameters, "by": by.hyperparameters},
        model=steering.model,
        site=steering.site,
    )


def _joined(
    junction: Callable[..., Barrier], sign: str, steerings: tuple[Steering, ...], soft: bool
) -> Steering:
    _check_one_place(steerings)
    first = steerings[0]
    parts = [s.barrier.affine(*s.calibration) for s in steerings]
    names = (" " + sign + " ").join(s.method for s in steerings)
    return Steering(
        field=GradientField(junction(parts, soft=soft)),
        strength=first.strength,
        solver="heun",
        steps=max(10, *(s.steps for s in steerings)),
        layer=first.layer,
        method=f"({names})",
        hyperparameters={"parts": [s.hyperparameters for s in steerings], "soft": soft},
        calibration=Calibration(),
        model=first.model,
        site=first.site,
    )


def _check_one_place(steerings: tuple[Steering, ...]) -> None:
    if not steerings:
        raise ValueError("Steerings compose to one where there is at least one; got none.")
    if not all(isinstance(s, Steering) for s in steerings):
        raise ValueError(
            "Steerings of several layers do not compose: join their parts layer by layer."
        )
    places = [(s.layer, s.site) for s in steerings]
    if len(set(places)) > 1:
        layers = " and ".join(
            f"{layer}{'' if site == 'residual' else f' ({site})'}" for layer, site in places
        )
        raise ValueError(
            f"Steerings compose at one layer; these are at layers {layers}. Fit them at the same "
            f"layer, or attach them one after another."
        )
