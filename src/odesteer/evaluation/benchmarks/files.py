"""Benchmark files, with checksums.

Local files lie in one directory (ODESTEER_DATA, or one that is named), a folder a benchmark.
Their SHA-256 is compared with the table below, so that two results that name the same
benchmark are about the same texts. The same texts come from the Hugging Face Hub through
`datasets`; their hash is taken over the rows and kept with the result.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from odesteer.data import read_files

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
