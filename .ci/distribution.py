"""Is in the wheel and the source archive what belongs there, and nothing else?

    python .ci/distribution.py dist

The wheel holds the package; the archive holds what it takes to build and test it. Neither holds
data sets, caches or anything that is written when the project runs.
"""

import sys
import tarfile
import zipfile
from pathlib import Path

# No file of ours is larger, so one that is has been left there by mistake.
LARGEST = 2**20
IN_WHEEL = {".py", ".pyi", ".typed", ".jsonl", ".css", ".js", ".j2"}
STRANGERS = ("__pycache__", ".pyc", "odesteer-demo", "/site/", "/runs/", ".safetensors", ".gguf")
# Steerings of version 0.1.0, which a test reads.
ALLOWED = "/tests/saved_0_1_0/"
# What the archive's own tests and docs read.
IN_ARCHIVE = (
    "pyproject.toml",
    "constraints.txt",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
    "Makefile",
    "mkdocs.yml",
    ".ci/run",
    "docs/index.md",
    "examples/odesteer-median/pyproject.toml",
    "experiments/smollm2-rtp.toml",
    "src/odesteer/py.typed",
    "tests/conftest.py",
)


def main(folder: Path) -> None:
    [wheel], [archive] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as file:
        files = {each.filename: each.file_size for each in file.infolist()}
    package = [name for name in files if ".dist-info/" not in name]
    wrong = [name for name in package if not name.startswith("odesteer/")]
    wrong += [name for name in package if Path(name).suffix not in IN_WHEEL]
    with tarfile.open(archive) as tar:
        members = [each for each in tar.getmembers() if each.isfile()]
    inside = {each.name.partition("/")[2]: each.size for each in members}
    both = {**files, **inside}
    wrong += [
        name
        for name in both
        if any(mark in f"/{name}" for mark in STRANGERS) and not f"/{name}".startswith(ALLOWED)
    ]
    wrong += [f"{name} ({size:,} bytes)" for name, size in both.items() if size > LARGEST]
    missing = [name for name in IN_ARCHIVE if name not in inside]
    assert not wrong, f"does not belong into {wheel.name} or {archive.name}: {wrong}"
    assert not missing, f"{archive.name} lacks {missing}"
    print(f"{wheel.name}: {len(files)} files; {archive.name}: {len(inside)} files")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
