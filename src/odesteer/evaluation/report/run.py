"""Run: conditions and their outcomes for every case."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Condition:
    """One way to steer (or not): what its cases have in common.

    Attributes:
        id: names it within the run.
        method: "none", "prompt", "random" or a method's name.
        label: for people.
        dose: {"type": "angle", "amount": 0.1}, say; None without one, or where it was chosen.
        layer: a block, several, or None.
        chosen: layer and dose come from a `choice` line of each fold.
        steps: of the solver, where the run sets them.
        seed: of fit and generation.
    """

    id: str
    method: str
    label: str
    dose: Mapping[str, Any] | None = None
    layer: Any = None
    chosen: bool = False
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """What one condition made of one case.

    `scores` are by judge or metric, None where unscored, with the reason in `reasons`.
    """

    condition: str
    fold: int
    case: str
    group: str
    sample: int
    prompt: Any
    generation: str | None
    choices: Mapping[str, float] | None
    scores: Mapping[str, float | None]
    reasons: Mapping[str, str]

    @property
    def place(self) -> tuple[int, str, int]:
        """What it shares with other conditions' answers to the same question."""
        return self.fold, self.case, self.sample


@dataclass(frozen=True)
class Run:
    """A run as it is on disk.

    Attributes:
        path: the file.
        config: everything it was asked to do.
        model: what is known of the model; benchmark: likewise, with the checksums of its files.
        judges: unit, higher_is and agreement of each.
        conditions: by id, in the file's order.
        answers: by condition, in the file's order.
        fits, choices, barriers, trajectories: those lines as they are.
        finished: whether its last line says so.
        notes: what the benchmark and the run itself tell of how it was done.
        remarks: what a reader should know of the file, such as that it is not finished.
    """

    path: Path
    config: Mapping[str, Any]
    version: str
    model: Mapping[str, Any]
    benchmark: Mapping[str, Any]
    folds: tuple[Mapping[str, Any], ...]
    judges: Mapping[str, Mapping[str, str]]
    conditions: Mapping[str, Condition]
    answers: Mapping[str, tuple[Answer, ...]]
    fits: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[Mapping[str, Any], ...] = ()
    barriers: tuple[Mapping[str, Any], ...] = ()
    trajectories: tuple[Mapping[str, Any], ...] = ()
    finished: bool = True
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The directory it is in."""
        return self.path.resolve().parent.name

    @property
    def title(self) -> str:
        model = str(self.model.get("name") or "unknown model").rstrip("/").split("/")[-1]
        return str(self.config.get("title") or f"{self.benchmark.get('name', 'run')}, {model}")
