"""Interface of a benchmark.

Stratified samples: rows spread evenly over a score.

Scores of real texts crowd at the ends. To learn from (or be judged on) weak as well as strong
cases, as many rows are taken of every bin of the score as it has, up to an equal share.

Transfer tasks: knowledge and reasoning under a steering learnt elsewhere.

They run through lm-evaluation-harness, which has its own texts, prompts and metrics: a steered
model is handed to it as any other.

Source of the choice: ODESteer's table 8 (a fit on TruthfulQA), https://arxiv.org/abs/2602.17560
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np

from odesteer.data import Contrast
from odesteer.evaluation.case import Case

Part = Literal["fit", "validation", "test"]
Ids = tuple[str, ...]


@dataclass(frozen=True)
class Fold:
    """Who learns from what, as ids of a benchmark: plain data, to be stored with a result.

    Attributes:
        fit: what a steering learns from.
        validation: what layer, dose and every other choice are made on.
        test: what is reported; looked at once.

    Raises:
        ValueError: if parts share an id, which would be testing on what was learnt.
    """

    fit: Ids
    validation: Ids
    test: Ids

    def __post_init__(self) -> None:
        parts = [set(self.fit), set(self.validation), set(self.test)]
        if sum(map(len, parts)) != len(set().union(*parts)):
            raise ValueError("The parts of a fold share ids; what is tested on must be unseen.")

    def ids(self, part: Part) -> frozenset[str]:
        return frozenset(getattr(self, part))

    def as_dict(self) -> dict[str, list[str]]:
        """For JSON; `Fold.from_dict` reads it."""
        return {name: list(ids) for name, ids in asdict(self).items()}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Iterable[str]]) -> "Fold":
        return cls(**{name: tuple(ids) for name, ids in parts.items()})


@dataclass(frozen=True)
class Benchmark(ABC):
    """Texts to learn from and texts to be judged on.

    `judges` and `offline_judges` are names of `odesteer.evaluation.judges`: those of the paper's
    protocol,
    and those that run on any machine. `metrics` names what the protocol reports, in the order of
    its tables; `odesteer.evaluation.metrics` and `multiple_choice` compute it. `wanted` says
    "higher" or
    "lower" of a judge where the benchmark wants otherwise than the judge's own `higher_is` has
    it. `template` is how prompts become text, `sampling` the protocol's keyword arguments of
    `odesteer.Sampling`, `stops` where a generation ends (see `trim`), and `instruction` asks for
    the behaviour in words: the prompt-only baseline.

    Attributes:
        files: SHA-256 of everything that was read, by name.
        notes: where these texts differ from the protocol's, for every report.
    """

    name: ClassVar[str]
    source: ClassVar[str]
    judges: ClassVar[tuple[str, ...]]
    offline_judges: ClassVar[tuple[str, ...]]
    metrics: ClassVar[tuple[str, ...]]
    wanted: ClassVar[Mapping[str, Literal["higher", "lower"]]] = {}
    template: ClassVar[str] = "auto"
    sampling: ClassVar[Mapping[str, Any]] = {}
    stops: ClassVar[tuple[str, ...]] = ()
    instruction: ClassVar[str]

    files: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)

    @classmethod
    @abstractmethod
    def load(cls, data: Any = None, verify: bool = True) -> "Benchmark":
        """From local files; see `odesteer.evaluation.benchmarks.files`.

        Args:
            data: the directory that holds the benchmarks' folders; None: ODESTEER_DATA.
            verify: refuse files that are not the ones whose checksums are known.

        Raises:
            FileNotFoundError: if there is no such file; says how to point to it.
            ValueError: if a checksum differs.
        """

    @classmethod
    @abstractmethod
    def from_hub(cls, *, revision: str | None = None) -> "Benchmark":
        """From the Hugging Face Hub, through `datasets`.

        Raises:
            ImportError: without `datasets`.
            ValueError: if the data set cannot be had or has other columns.
        """

    @abstractmethod
    def folds(self, seed: int = 0) -> tuple[Fold, ...]:
        """The protocol's splits; the same for the same seed and files."""

    @abstractmethod
    def contrast(self, fold: Fold, part: Part = "fit") -> Contrast:
        """What a part of a fold holds to learn from (or to measure a barrier on)."""

    @abstractmethod
    def examples(self, fold: Fold, part: Part = "test") -> tuple[Case, ...]:
        """What a part of a fold asks, in file order."""

    def trim(self, generation: str) -> str:
        """A generation up to where it would go on with a text of its own (`stops`)."""
        ends = [generation.find(stop) for stop in self.stops]
        return generation[: min((end for end in ends if end >= 0), default=None)].rstrip()


def cross_validation(
    groups: Sequence[str], folds: int, seed: int, validation: float = 0.2
) -> tuple[Fold, ...]:
    """Every group is in the test part of exactly one fold.

    Args:
        groups: ids of what is never split, in file order.
        folds: 2 or more.
        seed: of the order.
        validation: the share of the groups left to learn from that choices are made on.

    Raises:
        ValueError: if some part would have no group.
    """
    parts = np.array_split(np.random.default_rng(seed).permutation(len(groups)), folds)
    made = []
    for number, test in enumerate(parts):
        rest = np.concatenate([part for i, part in enumerate(parts) if i != number])
        size = round(validation * len(rest))
        if not 0 < size < len(rest) or not len(test):
            raise ValueError(
                f"{len(groups)} groups are too few for {folds} folds with a validation share of "
                f"{validation}."
            )
        made.append(Fold(*(_named(groups, some) for some in (rest[size:], rest[:size], test))))
    return tuple(made)


def _named(groups: Sequence[str], places: np.ndarray) -> Ids:
    return tuple(groups[i] for i in sorted(places.tolist()))


BINS = 10  # of width 0.1, over scores from 0 to 1


def evenly(
    scores: Sequence[float] | np.ndarray, size: int, seed: int, bins: int = BINS
) -> list[int]:
    """Places of `size` rows (or of all, if there are fewer), in order.

    Rows are drawn at random within their bin, one of every bin in turn, until there are enough:
    a bin that has too few leaves its share to the others.

    Args:
        scores: [n], from 0 to 1.
        size: how many rows.
        seed: of the draw.
        bins: of equal width over [0, 1]; 1 is in the last.

    Raises:
        ValueError: for a score outside of [0, 1].
    """
    values = np.asarray(scores, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("Only scores from 0 to 1 are spread over bins.")
    bin_of = np.minimum((values * bins).astype(int), bins - 1)
    shuffled = np.random.default_rng(seed).permutation(len(values))
    turn = np.empty(len(values), dtype=int)  # which of its bin's rows it is
    for one in range(bins):
        own = shuffled[bin_of[shuffled] == one]
        turn[own] = np.arange(len(own))
    # Ties between bins in the last turn fall to chance, not to the lower bin.
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    return sorted(order[:size].tolist())


# our name: (the harness's task, its metric)
TRANSFER = {
    "mmlu": ("mmlu", "acc"),
    "arc-challenge": ("arc_challenge", "acc_norm"),
    "commonsense-qa": ("commonsense_qa", "acc"),
}
