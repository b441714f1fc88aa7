"""Interface of a benchmark, its folds, stratified samples, and transfer tasks."""

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
    """Split of a benchmark into parts, as plain ids that are stored with a result.

    Attributes:
        fit: of the texts that a steering is fitted on.
        validation: of the cases on which layer, dose and every other choice are made.
        test: of the cases that are reported.

    Raises:
        ValueError: if parts share an id, which would be testing on the training data.
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
        """Return a dictionary for JSON, which `Fold.from_dict` reads."""
        return {name: list(ids) for name, ids in asdict(self).items()}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Iterable[str]]) -> "Fold":
        return cls(**{name: tuple(ids) for name, ids in parts.items()})


@dataclass(frozen=True)
class Benchmark(ABC):
    """Texts to fit on and prompts to be judged on.

    `judges` and `offline_judges` are names of `odesteer.evaluation.judges`: those of the protocol,
    and those that run on any machine. `metrics` names the protocol's metrics in the order of its
    tables; `odesteer.evaluation.metrics` computes them. `wanted` maps a judge to "higher" or
    "lower" where the benchmark wants the opposite of the judge's `higher_is`. `template` turns
    prompts into text, `sampling` has the protocol's keyword arguments of `odesteer.Sampling`,
    `stops` end a generation (see `trim`), and `instruction` asks for the behaviour in words: the
    prompt-only baseline.

    Attributes:
        files: SHA-256 of every file that was read, by name.
        notes: differences of these texts from the protocol's, printed in every report.
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
        """Load local files; see `odesteer.evaluation.benchmarks.files`.

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
        """Load from the Hugging Face Hub, through `datasets`.

        Raises:
            ImportError: without `datasets`.
            ValueError: if the data set cannot be had or has other columns.
        """

    @abstractmethod
    def folds(self, seed: int = 0) -> tuple[Fold, ...]:
        """Return the protocol's splits, which depend on the seed and the files alone."""

    @abstractmethod
    def contrast(self, fold: Fold, part: Part = "fit") -> Contrast:
        """Return the texts of a part of a fold, to fit on or to measure a barrier on."""

    @abstractmethod
    def examples(self, fold: Fold, part: Part = "test") -> tuple[Case, ...]:
        """Return the cases of a part of a fold, in file order."""

    def trim(self, generation: str) -> str:
        """Cut a generation at the first of `stops`, where another text begins."""
        ends = [generation.find(stop) for stop in self.stops]
        return generation[: min((end for end in ends if end >= 0), default=None)].rstrip()


def cross_validation(
    groups: Sequence[str], folds: int, seed: int, validation: float = 0.2
) -> tuple[Fold, ...]:
    """Split groups so that each is in the test part of exactly one fold.

    Args:
        groups: ids, in file order; a group is never split.
        folds: 2 or more.
        seed: of the order.
        validation: share of the groups outside of the test part that choices are made on.

    Raises:
        ValueError: if some part would have no group.
    """
    parts = np.array_split(np.random.default_rng(seed).permutation(len(groups)), folds)
    result = []
    for number, test in enumerate(parts):
        rest = np.concatenate([part for i, part in enumerate(parts) if i != number])
        size = round(validation * len(rest))
        if not 0 < size < len(rest) or not len(test):
            raise ValueError(
                f"{len(groups)} groups are too few for {folds} folds with a validation share of "
                f"{validation}."
            )
        result.append(Fold(*(_ids(groups, p) for p in (rest[size:], rest[:size], test))))
    return tuple(result)


def _ids(groups: Sequence[str], indices: np.ndarray) -> Ids:
    return tuple(groups[i] for i in sorted(indices.tolist()))


BINS = 10  # of width 0.1, over scores from 0 to 1


def evenly(
    scores: Sequence[float] | np.ndarray, size: int, seed: int, bins: int = BINS
) -> list[int]:
    """Draw a stratified sample: the indices of `size` rows (or of all), in order.

    Scores of real texts crowd at the ends, and weak cases matter as well as strong ones. Rows are
    drawn at random within their bin, one of each bin in turn, until there are `size`: a bin with
    too few leaves its share to the others.

    Args:
        scores: [n], from 0 to 1.
        size: of the sample.
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
    turn = np.empty(len(values), dtype=int)  # rank of a row within its bin
    for b in range(bins):
        rows = shuffled[bin_of[shuffled] == b]
        turn[rows] = np.arange(len(rows))
    # Ties between bins in the last turn fall to chance, not to the lower bin.
    order = shuffled[np.argsort(turn[shuffled], kind="stable")]
    return sorted(order[:size].tolist())


# Knowledge and reasoning under a steering fitted elsewhere, by lm-evaluation-harness. The choice is
# that of ODESteer's table 8 (a fit on TruthfulQA), https://arxiv.org/abs/2602.17560
# our name: (the harness's task, its metric)
TRANSFER = {
    "mmlu": ("mmlu", "acc"),
    "arc-challenge": ("arc_challenge", "acc_norm"),
    "commonsense-qa": ("commonsense_qa", "acc"),
}
