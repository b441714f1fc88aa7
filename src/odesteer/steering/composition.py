"""Composition of the parts of several steerings, layer by layer."""

from collections.abc import Callable, Sequence

from odesteer.ode import Barrier, GradientField, SafetyField
from odesteer.steering.layer_steering import LayerSteering

Parts = Sequence[LayerSteering]


def join(
    junction: Callable[..., Barrier], sign: str, steerings: Sequence[Parts], soft: bool
) -> list[LayerSteering]:
    """Join the calibrated barriers of steerings at every layer by `junction`."""

    def joined(parts: Parts) -> LayerSteering:
        first = parts[0]
        barriers = [part.barrier.affine(*part.calibration) for part in parts]
        return LayerSteering(
            field=GradientField(junction(barriers, soft=soft)),
            strength=first.strength,
            solver="heun",
            steps=max(10, *(part.steps for part in parts)),
            layer=first.layer,
            method=f"({f' {sign} '.join(part.method for part in parts)})",
            hyperparameters={"parts": [part.hyperparameters for part in parts], "soft": soft},
            model=first.model,
            site=first.site,
            positions=first.positions,
        )

    return [joined(parts) for parts in _by_layer(steerings)]


def guard(
    steering: Parts, by: Sequence[Parts], alpha: float, margin: float | Sequence[float]
) -> list[LayerSteering]:
    """Guard a steering by others at every layer; see `odesteer.guarded`."""
    shared = margin if isinstance(margin, int | float) else 0.0
    margins = [0.0] * len(by) if isinstance(margin, int | float) else [float(m) for m in margin]
    if not by or len(margins) != len(by):
        raise ValueError(
            f"A steering is guarded by at least one other, with one margin for all or for each; "
            f"got {len(by)} steerings and {len(margins)} margins."
        )

    def guarded(part: LayerSteering, *guards: LayerSteering) -> LayerSteering:
        kept = [
            each.barrier.affine(each.calibration.scale, each.calibration.offset - own)
            for each, own in zip(guards, margins, strict=True)
        ]
        used = [each.hyperparameters for each in guards]
        return LayerSteering(
            field=SafetyField(kept[0] if len(kept) == 1 else kept, alpha, shared, part.field),
            strength=part.strength,
            solver="rk4",
            steps=max(10, part.steps),
            layer=part.layer,
            method=f"({part.method} guarded by {' and '.join(each.method for each in guards)})",
            hyperparameters={
                "steering": part.hyperparameters,
                "by": used[0] if len(used) == 1 else used,
            },
            model=part.model,
            site=part.site,
            positions=part.positions,
        )

    return [guarded(*parts) for parts in _by_layer([steering, *by])]


def _by_layer(steerings: Sequence[Parts]) -> list[tuple[LayerSteering, ...]]:
    """Zip the parts of steerings by layer; ValueError unless the layers agree."""
    if not steerings:
        raise ValueError("Steerings compose to one where there is at least one; got none.")
    sites = [tuple((part.layer, part.site) for part in each) for each in steerings]
    if len(set(sites)) > 1:
        layers = " and ".join(
            ", ".join(
                f"{layer}{'' if site == 'residual' else f' ({site})'}" for layer, site in each
            )
            for each in sites
        )
        raise ValueError(
            f"Steerings compose at the same layers; these are at layers {layers}. Fit them at the "
            f"same layers, or attach them one after another."
        )
    return list(zip(*steerings, strict=True))
