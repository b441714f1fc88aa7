"""Every tutorial runs in a fresh kernel and prints what is stored in it.

    python tests/test_tutorials.py       runs all of them and stores what they print

Words must be equal. A number may differ by 1 % or by one unit of the last digit that is shown,
whichever is more: another processor rounds otherwise. White space and pictures are not compared,
nor what goes to stderr, which is not stored either.
"""

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

# Not from tests.helpers: this file is also run as a script.
REPOSITORY = Path(__file__).resolve().parent.parent
FOLDER = REPOSITORY / "docs/tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 400_000  # bytes: what a clone, a page of GitHub and a phone can bear
NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?")
by_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def execute(path: Path) -> Any:
    """The notebook as a fresh kernel with one thread leaves it."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        )
        # Sums of two threads round differently, and greedy texts then part ways.
        client.execute(
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.fspath(REPOSITORY)}
        )
    for cell in code_cells(notebook):
        cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    return notebook


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    """What a cell printed or returned, as text."""
    texts = [each.text for each in cell.outputs if each.output_type == "stream"]
    texts += [
        each.data["text/plain"] for each in cell.outputs if each.output_type == "execute_result"
    ]
    return "\n".join(texts)


def same(stored: str, new: str) -> bool:
    """Equal words, and numbers within 1 % or one unit of the last digit shown."""
    words = [" ".join(NUMBER.sub(" # ", text).split()) for text in (stored, new)]
    pairs = zip(NUMBER.findall(stored), NUMBER.findall(new), strict=False)
    return words[0] == words[1] and all(_near(one, other) for one, other in pairs)


def _near(one: str, other: str) -> bool:
    unit = 10.0 ** -len(one.partition(".")[2])
    allowed = max(0.01 * abs(float(one)), 1.001 * unit)
    return abs(float(one) - float(other)) <= allowed


@pytest.mark.parametrize(
    ("stored", "new", "equal"),
    [
        ("P = 0.90, 46% arrive", "P = 0.91,  47% arrive", True),
        ("n = 1250", "n = 1262", True),
        ("n = 1250", "n = 1263", False),
        ("P = 0.90", "P = 0.92", False),
        ("gain +1", "gain -1", False),
        ("a dark street", "a bright street", False),
        ("1 and 2", "1", False),
    ],
)
def test_a_stale_output_is_told_from_a_rounded_one(stored: str, new: str, equal: bool) -> None:
    assert same(stored, new) is equal


@by_notebook
def test_the_notebook_is_stored_as_one_run_left_it(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not {each.output_type for each in cell.outputs} & {"error"}
        assert not {each.get("name") for each in cell.outputs} & {"stderr"}
        assert not re.search(r"/(tmp|home|root|Users)/", printed(cell)), "a path of one machine"


@by_notebook
def test_links_lead_somewhere(path: Path) -> None:
    text = "\n".join(
        cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"
    )
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", text)
    assert targets
    for target in targets:
        assert (path.parent / target).exists(), f"{path.name} links to {target}"


@pytest.mark.slow
@by_notebook
def test_the_notebook_prints_what_is_stored(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    new = execute(path)
    for before, after in zip(code_cells(stored), code_cells(new), strict=True):
        assert same(printed(before), printed(after)), (
            f"Cell {before.execution_count} of {path.name} prints something else now:\n"
            f"{printed(after)}\nIf that is meant, store it: python tests/test_tutorials.py"
        )
        kinds = [
            [sorted(each.data) for each in cell.outputs if "data" in each]
            for cell in (before, after)
        ]
        assert kinds[0] == kinds[1], f"cell {before.execution_count}: another kind of output"


if __name__ == "__main__":
    for path in NOTEBOOKS:
        notebook = execute(path)
        notebook.metadata["language_info"] = {"name": "python"}  # not which Python it was
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size // 1024} KiB")
