"""Result of a search: trials, goal and the chosen steering.

A `Trial` has an effect and a damage. It is feasible within the damage budget, and on the Pareto
front if no other trial has as much effect with less damage, or more effect with as much. With a
target, the feasible trial that reaches it with the least damage is chosen; without one, the
feasible trial with the largest effect. The unsteered model is a trial too, and always feasible.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from odesteer.evaluation.statistics import Interval
from odesteer.ode import Dose
from odesteer.steering import Steering
from odesteer.steering.serialization.directory import dose_to_json


class Trial(NamedTuple):
    """One layer at one dose, measured on held-out data.

    Attributes:
        layer: steered; several for a steering of several; None for the unsteered model.
        dose: each steered token's.
        value: mean read-out: P(positive) of held-out negatives, or the judge's score.
        effect: difference to the unsteered model towards the positive class, in standard
            deviations of the unsteered read-out (Glass's delta), with 95 % interval.
        kl, kl_95: divergence of next-token distributions from the unsteered model's, nats a
            token: mean and 95th percentile.
        perplexity_ratio: of the unsteered model's own continuations, steered over unsteered.
        feasible: within the budget.
        pareto: on the front of effect against `kl_95`.
    """

    layer: int | tuple[int, ...] | None
    dose: Dose
    value: float
    effect: Interval
    kl: float
    kl_95: float
    perplexity_ratio: float
    feasible: bool = False
    pareto: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; None for numbers that are not finite."""
        layer = list(self.layer) if isinstance(self.layer, tuple) else self.layer
        numbers = {name: _plain(getattr(self, name)) for name in _NUMBERS}
        effect = {key: _plain(value) for key, value in self.effect._asdict().items()}
        return {
            "layer": layer,
            "dose": dose_to_json(self.dose),
            **numbers,
            "effect": effect,
            "feasible": self.feasible,
            "pareto": self.pareto,
        }


_NUMBERS = ("value", "kl", "kl_95", "perplexity_ratio")


@dataclass(frozen=True)
class Goal:
    """Target and budget of a search.

    Attributes:
        max_kl: budget of `Trial.kl_95`, nats a token.
        max_perplexity_ratio: budget of `Trial.perplexity_ratio`.
        value: the read-out to reach, or None.
        effect: the effect to reach, or None.
        judge: the name of what reads; None for the probe, whose values are probabilities.
        sign: 1 where a higher value is better, -1 where a lower one is.

    Raises:
        ValueError: for two targets, a probability outside (0, 1), or an impossible budget.
    """

    max_kl: float
    max_perplexity_ratio: float
    value: float | None = None
    effect: float | None = None
    judge: str | None = None
    sign: int = 1

    def __post_init__(self) -> None:
        if self.value is not None and self.effect is not None:
            raise ValueError(
                f"A target read-out ({self.value:g}) and a target effect ({self.effect:g}) both "
                f"say what to reach; give one of them."
            )
        if self.value is not None and self.judge is None and not 0.0 < self.value < 1.0:
            raise ValueError(
                f"The target is the probability of the positive class to reach, between 0 and 1 "
                f"(exclusive); got {self.value:g}. For standard deviations give a target effect."
            )
        if not self.max_kl >= 0.0 or not self.max_perplexity_ratio >= 1.0:
            raise ValueError(
                f"A budget needs a max KL of at least 0 nats and a max perplexity ratio of at "
                f"least 1, which is no damage at all; got {self.max_kl:g} and "
                f"{self.max_perplexity_ratio:g}."
            )

    @property
    def label(self) -> str:
        """Name of the value."""
        return "P(positive)" if self.judge is None else self.judge

    def to_json(self) -> dict[str, Any]:
        """Return target and budget as JSON values; no bound is None."""
        return {
            "target": self.value,
            "target_effect": self.effect,
            "max_kl": _plain(self.max_kl),
            "max_perplexity_ratio": _plain(self.max_perplexity_ratio),
        }

    @property
    def budget(self) -> str:
        return f"KL p95 <= {self.max_kl:g}, perplexity ratio <= {self.max_perplexity_ratio:g}"

    @property
    def target(self) -> str | None:
        """The target in words; None without one."""
        if self.value is not None:
            return f"{self.label} {'>=' if self.sign > 0 else '<='} {self.value:g}"
        return None if self.effect is None else f"effect >= {self.effect:g}"

    def within_budget(self, trial: Trial) -> bool:
        damage = (trial.kl_95, trial.perplexity_ratio)
        within = trial.kl_95 <= self.max_kl and damage[1] <= self.max_perplexity_ratio
        return within and all(map(math.isfinite, (*damage, trial.value, trial.effect.mean)))

    def margin(self, trial: Trial) -> float:
        """Return the distance beyond the target (negative: short of it), or the effect."""
        if self.value is not None:
            return self.sign * (trial.value - self.value)
        return trial.effect.mean - (self.effect or 0.0)


def pareto_front(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials that no other beats in effect and in `kl_95`, by damage."""
    front: list[Trial] = []
    known = [t for t in trials if math.isfinite(t.effect.mean) and math.isfinite(t.kl_95)]
    for trial in sorted(known, key=lambda t: (t.kl_95, -t.effect.mean)):
        if not front or trial.effect.mean > front[-1].effect.mean:
            front.append(trial)
    return front


@dataclass(frozen=True)
class Tuned:
    """Trials of `tune`, and the steering that it chose.

    Attributes:
        steering: the chosen one at its dose, as it was measured: fitted on the fit part alone.
            `receipts["tune"]` holds everything below as JSON values.
        rows: every trial, the unsteered model first.
        chosen: the trial of `steering`.
        met: whether the target was reached within the budget; without a target, whether
            anything within it has a positive effect.
        reason: why this trial was chosen, in one sentence.
        wanted: target and budget.
        facts: what was held out, how good the read-out is, and all settings (JSON values).
    """

    steering: Steering
    rows: tuple[Trial, ...]
    chosen: Trial
    met: bool
    reason: str
    wanted: Goal
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def pareto(self) -> list[Trial]:
        """The trials on the Pareto front, by damage."""
        return pareto_front(self.rows)

    def table(self, every: bool = False) -> str:
        """Format the Pareto front (or `every` trial); ">" is chosen, "!" beyond the budget."""
        heading = ("", "layer", "dose", self.wanted.label, "effect [95 %]", "KL", "KL p95", "ppl x")
        shown = self.rows if every else [t for t in self.rows if t.pareto or t == self.chosen]
        cells = [heading, *(self._cells(trial) for trial in shown)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heading))]
        lines = (
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            for row in cells
        )
        return "\n".join(line.rstrip() for line in lines)

    def _cells(self, trial: Trial) -> tuple[str, ...]:
        mark = ">" if trial == self.chosen else "" if trial.feasible else "!"
        low, high = (f"{bound:+.2f}" for bound in trial.effect[1:3])
        steered = trial.layer is not None
        return (
            mark,
            layer_name(trial.layer) if steered else "-",
            str(trial.dose) if steered else "unsteered",
            f"{trial.value:.3f}",
            f"{trial.effect.mean:+.2f} [{low}, {high}]" if steered else "0",
            f"{trial.kl:.3f}",
            f"{trial.kl_95:.3f}",
            f"{trial.perplexity_ratio:.2f}",
        )

    def plot(self, path: str | Path) -> Path:
        """Draw effect against damage, the front, the budget and the choice, as a PNG file."""
        from odesteer.evaluation.selection.plot import draw  # matplotlib only where it is used

        return draw(self, Path(path))


def layer_name(layer: int | tuple[int, ...] | None) -> str:
    """Format one layer or several, briefly."""
    if not isinstance(layer, tuple):
        return str(layer)
    return ",".join(map(str, layer)) if len(layer) <= 3 else f"{layer[0]}..{layer[-1]}"


def name_of(trial: Trial) -> str:
    if trial.layer is None:
        return "the unsteered model"
    plural = "s" if isinstance(trial.layer, tuple) else ""
    return f"layer{plural} {layer_name(trial.layer)} at {trial.dose}"


def describe(trial: Trial, wanted: Goal) -> str:
    return f"effect {trial.effect.mean:+.2f}, {wanted.label} {trial.value:.3f}"


def _plain(value: float) -> float | int | None:
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


class Choice(NamedTuple):
    """Chosen trial, whether it meets the goal, and the reason."""

    trial: Trial
    met: bool
    reason: str


def judged(trials: Sequence[Trial], wanted: Goal) -> list[Trial]:
    """Fill in `feasible` and `pareto` of the trials."""
    front = {id(trial) for trial in pareto_front(trials)}
    return [t._replace(feasible=wanted.within_budget(t), pareto=id(t) in front) for t in trials]


def best_within(
    effects: Sequence[float], damages: Sequence[float], feasible: Sequence[bool]
) -> int:
    """Return the index of the largest effect within the budget, else of the least damage.

    Of equal effects the one with less damage; an effect that is nan is less than any other.
    """
    indices = [i for i, within in enumerate(feasible) if within]
    if not indices:
        return min(range(len(damages)), key=damages.__getitem__)
    return max(indices, key=lambda i: (np.nan_to_num(effects[i], nan=-np.inf), -damages[i]))


def choose(trials: Sequence[Trial], wanted: Goal) -> Choice:
    """Choose the feasible trial that reaches the target cheapest, or has the largest effect.

    Args:
        trials: as returned by `judged`; at least one is feasible.
        wanted: budget and target.
    """
    choice = _choose(trials, wanted)
    return choice._replace(reason=choice.reason[0].upper() + choice.reason[1:])


def _choose(trials: Sequence[Trial], wanted: Goal) -> Choice:
    feasible = [t for t in trials if t.feasible]
    reached = [t for t in feasible if wanted.margin(t) >= 0]
    if wanted.target is None:
        effects, damages = [t.effect.mean for t in feasible], [t.kl_95 for t in feasible]
        best = feasible[best_within(effects, damages, [True] * len(feasible))]
        if best.effect.mean > 0:
            return Choice(
                best,
                True,
                f"{name_of(best)} has the largest effect ({describe(best, wanted)}) of the "
                f"{len(feasible)} of {len(trials)} trials within the budget ({wanted.budget}).",
            )
        return Choice(
            best,
            False,
            f"no steered trial within the budget ({wanted.budget}) has a positive effect, so "
            f"{name_of(best)} is what is left: try smaller doses, other layers, or a larger "
            f"budget.",
        )
    if reached:
        best = min(reached, key=lambda t: (t.kl_95, -t.effect.mean))
        return Choice(
            best,
            True,
            f"{name_of(best)} reaches {wanted.target} ({describe(best, wanted)}) with the least "
            f"damage (KL p95 {best.kl_95:.3g}, perplexity ratio {best.perplexity_ratio:.3g}) "
            f"within the budget ({wanted.budget}).",
        )
    best = max(feasible, key=lambda t: (wanted.margin(t), -t.kl_95))
    beyond = [t for t in sorted(trials, key=lambda t: t.kl_95) if wanted.margin(t) >= 0]
    cure = (
        f"{name_of(beyond[0])} would, at KL p95 {beyond[0].kl_95:.3g} and perplexity ratio "
        f"{beyond[0].perplexity_ratio:.3g}: raise the budget, or lower the target."
        if beyond
        else "no trial does at any damage: try larger doses, other layers, or a lower target."
    )
    return Choice(
        best,
        False,
        f"no trial within the budget ({wanted.budget}) reaches {wanted.target}; the closest is "
        f"{name_of(best)} ({describe(best, wanted)}); {cure}",
    )
