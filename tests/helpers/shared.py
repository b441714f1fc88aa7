"""What several processes of one run of tests need, and only one makes."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this run, filled by `make` in whichever process asks first."""
    base = factory.getbasetemp()
    # Of xdist's workers each has a folder of its own, in one of the run.
    run = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = run / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = Path(tempfile.mkdtemp(prefix=name, dir=run))
            make(partial)
            partial.rename(folder)
    return folder
