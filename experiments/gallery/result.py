"""Results of the gallery: shares, intervals and plotted paths."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from experiments.gallery.toy_data import PLANES

from odesteer.common.files import write_whole
from odesteer.evaluation.statistics import Interval

# Displacements over the mean distance of the held-out negatives to the desired region: with 1
# a perfect method brings all of them there, and 3 shows who goes too far.
DOSES = (1.0, 1.5, 3.0)
SHOWN = 1.5
UNSTEERED, PERFECT = "none", "best possible"


@dataclass(frozen=True)
class Outcome:
    """A method on a plane at a dose.

    Attributes:
        dose: the displacement asked for, in mean distances to the desired region.
        moved: the displacement there is, in the same unit; less than `dose` where the method
            moves no further.
        strength: with which the method moves so far; None where there is no method.
        share: of held-out negatives that end in the desired region, with a 95 % interval.
    """

    method: str
    plane: str
    dose: float
    moved: float
    strength: float | None
    share: Interval

    @property
    def falls_short(self) -> bool:
        """The method does not move the rows as far as the dose asks."""
        return self.strength is not None and self.moved < 0.99 * self.dose


@dataclass(frozen=True)
class Panel:
    """What is drawn of a method on a plane, all of it at height z = +1.

    Attributes:
        log_odds: calibrated h on `grid(*GRID)`; None without a barrier.
        direction: of the field on `grid(*ARROWS)`, of length 1 or 0, [rows, columns, 2].
        tracks: the ways of some held-out negatives at the dose `SHOWN`, [points, TRACKS, 2].
    """

    log_odds: np.ndarray | None
    direction: np.ndarray
    tracks: np.ndarray


@dataclass(frozen=True)
class Gallery:
    """Everything that was measured, and everything that is drawn.

    Attributes:
        points: negatives to learn from, and negatives held out (fewer positives where the
            classes are imbalanced).
        seed: of the data.
        distances: mean distance of the held-out negatives to the desired region, by plane.
        examples: what was learnt from, by plane: positive [n, 2] and negative [m, 2].
        outcomes: of every method, plane and dose.
        panels: of every method and plane.
    """

    points: int
    seed: int
    distances: dict[str, float]
    examples: dict[str, tuple[np.ndarray, np.ndarray]]
    outcomes: list[Outcome]
    panels: dict[tuple[str, str], Panel]

    @property
    def methods(self) -> list[str]:
        """Their names in order: the unsteered row first, the best possible one last."""
        return list(dict.fromkeys(outcome.method for outcome in self.outcomes))

    def outcome(self, method: str, plane: str, dose: float) -> Outcome:
        """The one of that method, plane and dose."""
        wanted = (method, plane, dose)
        return next(o for o in self.outcomes if (o.method, o.plane, o.dose) == wanted)

    def as_json(self) -> dict[str, Any]:
        """The table, without the pictures."""
        return {
            "points": self.points,
            "seed": self.seed,
            "planes": {
                name: {
                    "title": plane.title,
                    "desired": plane.region,
                    "mean_distance": round(self.distances[name], 4),
                }
                for name, plane in PLANES.items()
            },
            "outcomes": [
                asdict(o) | {"share": o.share._asdict(), "falls_short": o.falls_short}
                for o in self.outcomes
            ],
        }

    def markdown(self) -> str:
        """The table: percent that arrive, and half the width of the 95 % interval."""
        columns = [(plane, dose) for plane in PLANES for dose in DOSES]
        lines = [
            "| method | " + " | ".join(f"{plane} {dose:g}×" for plane, dose in columns) + " |",
            "|---|" + "---:|" * len(columns),
        ]
        for method in self.methods:
            cells = []
            for plane, dose in columns:
                one = self.outcome(method, plane, dose)
                half = 50 * (one.share.high - one.share.low)
                short = f" (at {one.moved:.1f}×)" if one.falls_short else ""
                cells.append(f"{100 * one.share.mean:.0f} ± {half:.0f}{short}")
            name = method if method == PERFECT else f"`{method}`"
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        return "\n".join(lines) + "\n"

    def save(self, path: Path) -> None:
        """Write `as_json`; the file is whole or absent."""
        write_whole(
            path,
            (
                json.dumps(self.as_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            ).encode(),
        )
