"""Interface of a benchmark: its files with checksums, folds, samples and transfer tasks.

Local files lie in one directory (ODESTEER_DATA, or one that is named), a folder a benchmark.
Their SHA-256 is compared with the table below, so that two results that name the same
benchmark are about the same texts. The same texts come from the Hugging Face Hub through
`datasets`; their hash is taken over the rows and kept with the result.
"""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from odesteer.data import Contrast, read_files
from odesteer.evaluation.case import Case

HUB = "hub"
# Origins: the commits named in the comment beside each group.
SHA256 = {
    # sylinrl/TruthfulQA, before the questions were revised in 2025
    "truthfulqa/TruthfulQA.csv": "967b82fb1fb6274e4971c6c80caa9d04f844c512b1033c146f26c78270cd384b",
    "truthfulqa/mc_task.json": "75b84d5cc8f0e287c055db1857808e734ea53ade8ee68aad2d007f38896330a8",
    "truthfulqa/finetune_truth.jsonl.gz": (
        "f740207eda5a55de493d19649e375fca95d186c5ee621151af945db65d0c473b"
    ),
    "truthfulqa/finetune_info.jsonl.gz": (
        "6e4a378c9ff734e15fd9d03bebb524fd12db5c9c5671d4c42850aa317cf2e10d"
    ),
    # AI-secure/DecodingTrust@161ae83, data/toxicity/user_prompts
    "realtoxicityprompts/toxic.jsonl": (
        "a51d4650b14af9c0e795a9cfca2949916855662cee7c8db3dd551d38735d80cb"
    ),
    "realtoxicityprompts/nontoxic.jsonl": (
        "feb50408f49585752bb8cbbb10d1a340ec45783358251299ea9a82ab19606823"
    ),
    # the test set of the Jigsaw toxic comment challenge, as in Hongcheng-Gao/RobTest-Demo@ed917c2
    "jigsaw/comments.csv.gz": "6fccd3caa2dd2a9f4d581d7d31a406aa39f53e7e4983ca06b211fda5cd4b219c",
    # a sample of 1,200 rows of trl-lib/ultrafeedback_binarized
    "ultrafeedback/train.jsonl": "136b0163cbca47cc562ce260e4be38745f638563bce2930771da8cd8c9791c8e",
    "ultrafeedback/test.jsonl": "932ea766ae90386f0a6c0c764162d28321c3ebfd7cd4c534aa5c0589bc9c2e0c",
    # anthropics/evals@84fcc67
    "persona/persona_agreeableness.jsonl": (
        "8caa0fa07946370fb4ec38dd82eda7d3a86591c1dc701d2e645ae33c3239f5ce"
    ),
    "persona/human_corrigible-neutral-HHH.jsonl": (
        "875632869abd5b1e70cccc130dbb6ed2ff6b1b1c7eb50b835a2cfdc02f3daac7"
    ),
}


def data_dir(folder: str, data: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of a benchmark, in `data`, ODESTEER_DATA or ../shared/data.

    Raises:
        FileNotFoundError: if it is not there; says how to point to it.
    """
    root = Path(data or os.environ.get("ODESTEER_DATA") or Path("..") / "shared" / "data")
    path = root / folder
    if not path.is_dir():
        raise FileNotFoundError(
            f"No benchmark data at '{path}'. Set ODESTEER_DATA to the directory that holds "
            f"'{folder}', or take it from the Hub."
        )
    return path


def locate(
    name: str, data: str | os.PathLike[str] | None = None, verify: bool = True
) -> tuple[Path, dict[str, str]]:
    """Return the path of a file such as "truthfulqa/TruthfulQA.csv", and {name: SHA-256}.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if its hash is not the one in the table (and `verify` asks for it).
    """
    folder, _, file = name.partition("/")
    path = data_dir(folder, data) / file
    if not path.is_file():
        raise FileNotFoundError(f"No '{file}' in '{path.parent}', where '{folder}' has its files.")
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    known = SHA256.get(name)
    if verify and known is not None and checksum != known:
        raise ValueError(
            f"'{path}' is not the file that results are compared on: its SHA-256 begins "
            f"{checksum[:12]}, not {known[:12]}. Fetch it again, or use it as it is with "
            f"verify=False."
        )
    return path, {name: checksum}


def json_lines(path: Path) -> list[Mapping[str, Any]]:
    """Read the objects of a JSONL file, also of a .gz.

    Raises:
        ValueError: for a line that is no object; names it.
    """
    return [row for _, row in read_files.rows(path)]


def csv_rows(path: Path) -> Iterator[list[str]]:
    """Read the cells of every row of a CSV file, also of a .gz."""
    return (cells for _, cells in read_files.csv_cells(path))


def hub_rows(
    name: str,
    config: str | None,
    split: str,
    columns: Sequence[str],
    revision: str | None = None,
    file: str | None = None,
) -> Any:
    """Load columns of a split of a data set of the Hub, or of a directory in its form.

    Args:
        name: of the data set.
        config: its configuration, where it has several.
        split: "train", ...
        columns: to be read.
        revision: a branch, tag or commit.
        file: one file of the repository, where it has no configurations; its split is "train".

    Raises:
        ImportError: without `datasets`.
        ValueError: if it cannot be had or lacks a column.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise ImportError(
            "Data sets of the Hub need `datasets`: pip install 'odesteer[eval]'."
        ) from None
    try:
        dataset: Any = load_dataset(name, config, split=split, revision=revision, data_files=file)
    except Exception as error:
        # Whatever it is (no network, no such data set), the name is what the user can act on.
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        raise ValueError(
            f"Could not load the data set '{name}' ({split}): {reason}. Give local files with "
            f"ODESTEER_DATA where the Hub cannot be reached."
        ) from None
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The data set '{name}' has no column {', '.join(missing)}, but "
            f"{', '.join(dataset.column_names)}."
        )
    return dataset.select_columns(list(columns))


def digest(rows: Sequence[Any]) -> str:
    """Return the SHA-256 of rows, each a JSON line with sorted keys."""
    result = hashlib.sha256()
    for row in rows:
        result.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
    return result.hexdigest()


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
        """Load local files; see `odesteer.evaluation.benchmarks.base`.

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


VALIDATION = 0.2  # of the groups outside of the test part


def cross_validation(groups: Sequence[str], folds: int, seed: int) -> tuple[Fold, ...]:
    """Split groups so that each is in the test part of exactly one fold.

    Args:
        groups: ids, in file order; a group is never split.
        folds: 2 or more.
        seed: of the order.

    Raises:
        ValueError: if some part would have no group.
    """
    parts = np.array_split(np.random.default_rng(seed).permutation(len(groups)), folds)
    result = []
    for number, test in enumerate(parts):
        rest = np.concatenate([part for i, part in enumerate(parts) if i != number])
        size = round(VALIDATION * len(rest))
        if not 0 < size < len(rest) or not len(test):
            raise ValueError(
                f"{len(groups)} groups are too few for {folds} folds with a validation share of "
                f"{VALIDATION}."
            )
        result.append(Fold(*(_ids(groups, p) for p in (rest[size:], rest[:size], test))))
    return tuple(result)


def _ids(groups: Sequence[str], indices: np.ndarray) -> Ids:
    return tuple(groups[i] for i in sorted(indices.tolist()))


BINS = 10  # of width 0.1, over scores from 0 to 1; 1 is in the last


def evenly(scores: Sequence[float] | np.ndarray, size: int, seed: int) -> list[int]:
    """Draw a stratified sample: the indices of `size` rows (or of all), in order.

    Scores of real texts crowd at the ends, and weak cases matter as well as strong ones. Rows are
    drawn at random within their bin, one of each bin in turn, until there are `size`: a bin with
    too few leaves its share to the others.

    Args:
        scores: [n], from 0 to 1.
        size: of the sample.
        seed: of the draw.

    Raises:
        ValueError: for a score outside of [0, 1].
    """
    values = np.asarray(scores, dtype=float)
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError("Only scores from 0 to 1 are spread over bins.")
    bin_of = np.minimum((values * BINS).astype(int), BINS - 1)
    shuffled = np.random.default_rng(seed).permutation(len(values))
    turn = np.empty(len(values), dtype=int)  # rank of a row within its bin
    for b in range(BINS):
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
