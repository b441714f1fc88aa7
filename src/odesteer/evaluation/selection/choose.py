"""Choice among measured trials.

Each is a `Trial`: an effect and a damage. A trial is feasible within the damage budget, and on
the Pareto front where no other has as much effect with less damage or more effect with as
much. With a target the feasible trial that reaches it with the least damage is taken, and
without one the feasible trial of the largest effect. The unsteered model is a trial too, and
always feasible.
"""

from collections.abc import Sequence
from typing import NamedTuple

from odesteer.evaluation.selection.result import Goal, Trial, name_of, pareto_front, worth


class Choice(NamedTuple):
    """The trial taken, whether it does what was asked, and why it was taken."""

    trial: Trial
    met: bool
    reason: str


def judged(trials: Sequence[Trial], wanted: Goal) -> list[Trial]:
    """The trials with `feasible` and `pareto` filled in."""
    front = {id(trial) for trial in pareto_front(trials)}
    return [t._replace(feasible=wanted.affords(t), pareto=id(t) in front) for t in trials]


def choose(trials: Sequence[Trial], wanted: Goal) -> Choice:
    """The feasible trial that reaches the target cheapest, or has the largest effect.

    Args:
        trials: as `judged` left them; at least one is feasible.
        wanted: budget and target.
    """
    choice = _choose(trials, wanted)
    return choice._replace(reason=choice.reason[0].upper() + choice.reason[1:])


def _choose(trials: Sequence[Trial], wanted: Goal) -> Choice:
    feasible = [t for t in trials if t.feasible]
    reached = [t for t in feasible if wanted.excess(t) >= 0]
    if wanted.target is None:
        best = max(feasible, key=lambda t: (t.effect.mean, -t.kl_95))
        if best.effect.mean > 0:
            return Choice(
                best,
                True,
                f"{name_of(best)} has the largest effect ({worth(best, wanted)}) of the "
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
            f"{name_of(best)} reaches {wanted.target} ({worth(best, wanted)}) with the least "
            f"damage (KL p95 {best.kl_95:.3g}, perplexity ratio {best.perplexity_ratio:.3g}) "
            f"within the budget ({wanted.budget}).",
        )
    best = max(feasible, key=lambda t: (wanted.excess(t), -t.kl_95))
    beyond = [t for t in sorted(trials, key=lambda t: t.kl_95) if wanted.excess(t) >= 0]
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
        f"{name_of(best)} ({worth(best, wanted)}); {cure}",
    )
