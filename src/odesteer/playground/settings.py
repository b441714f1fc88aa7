"""Settings chosen on the page, and the steering they define."""

from dataclasses import dataclass
from typing import Any

from odesteer.common.registry import lookup
from odesteer.models.hooks.positions import check_positions
from odesteer.ode import Angle, Dose, Target, Time
from odesteer.playground.library import SharedModel, Source, SteeringLibrary
from odesteer.steering import Steering
from odesteer.steering.expression import NAME, build
from odesteer.steering.solvers import find_solver

ANGLE, STRENGTH, TARGET = DOSES = ("angle", "strength", "target")
AS_LEARNT = "as learnt"


@dataclass(frozen=True)
class Controls:
    """All controls of the page; the defaults are those of a fresh page.

    Attributes:
        expression: a name on the shelf, or names joined by `&`, `|` and `~`.
        method, layer: for contrasts on the shelf; a saved steering has its own.
        dose: one of `DOSES`.
        amount: the angle or the strength; with a target, the angle it may spend.
        probability: where a target stops.
        solver: "as learnt" or a name in `SOLVERS`.
        steps: of that solver; 0: as learnt.
        positions: which tokens, see `odesteer.models.hooks.positions`.
        max_new_tokens, temperature, seed: of both texts.
    """

    expression: str
    method: str = "odesteer"
    layer: int = 0
    dose: str = ANGLE
    amount: float = 0.2
    probability: float = 0.9
    solver: str = AS_LEARNT
    steps: int = 0
    positions: str = "last+generated"
    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0

    def strength(self) -> Dose:
        """The dose; ValueError for a target whose budget is not positive."""
        lookup(dict.fromkeys(DOSES), self.dose, "dose")
        if self.dose == STRENGTH:
            return Time(self.amount)
        angle = Angle(self.amount)
        return Target(self.probability, angle) if self.dose == TARGET else angle

    def used(self, shelf: SteeringLibrary) -> dict[str, Source]:
        """The sources that the expression names, in its order.

        Raises:
            ValueError: for a name that is not on the shelf.
        """
        return {name: lookup(shelf, name, "steering") for name in NAME.findall(self.expression)}

    def place(self, shelf: SteeringLibrary) -> int:
        """The layer at which contrasts are learnt: that of a saved steering they compose with."""
        fixed = [s.layer for s in self.used(shelf).values() if s.layer is not None]
        return fixed[0] if fixed else self.layer

    def steering(self, desk: SharedModel, shelf: SteeringLibrary) -> Steering:
        """What is to be attached.

        Raises:
            ValueError: for what is no expression, names that are not on the shelf, steerings
                that do not compose, or a control that does not fit.
        """
        check_positions(self.positions)
        if not self.expression.strip():
            raise ValueError(f"Choose a steering; there is {', '.join(shelf)}.")
        layer = self.place(shelf)
        parts = {
            name: source.obtain(desk, self.method, layer)
            for name, source in self.used(shelf).items()
        }
        whole = build(self.expression, parts).with_strength(self.strength())
        changes: dict[str, Any] = {}
        if self.solver != AS_LEARNT:
            find_solver(self.solver)
            changes["solver"] = self.solver
        if self.steps:
            changes["steps"] = int(self.steps)
        return whole.replace(**changes)
