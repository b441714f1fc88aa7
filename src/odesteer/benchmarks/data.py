"""Where are the benchmarks' files?"""

import os
from pathlib import Path


def data_dir(folder: str) -> Path:
    """The folder of a benchmark, below ODESTEER_DATA or, without it, ../shared/data.

    Raises:
        FileNotFoundError: if it is not there; says how to point to it.
    """
    root = Path(os.environ.get("ODESTEER_DATA") or Path("..") / "shared" / "data")
    path = root / folder
    if not path.is_dir():
        raise FileNotFoundError(
            f"No benchmark data at '{path}'. Set ODESTEER_DATA to the directory that holds "
            f"'{folder}'."
        )
    return path
