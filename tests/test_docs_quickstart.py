"""The shell commands of README.md and of the quickstart run in order, as printed.

They run in one fresh folder that holds what a clone holds, so a command finds only what the
repository or a command before it wrote. Behind the name `smollm2` is a far narrower model: `make
demo` and `test_real_model.py` run SmolLM2 itself. A line that cannot run here is in `ELSEWHERE`,
with what stands for it.
"""

import re
import shlex
import shutil
from pathlib import Path

import pytest
from tests.helpers import narrow_smollm2
from tests.helpers.paths import REPOSITORY
from typer.testing import CliRunner

from odesteer.cli.app import app

# In the order in which a newcomer reads them.
PAGES = ("README.md", "docs/start.md")
# Lines that install something, need a network or wait for a browser; and what runs them.
ELSEWHERE = {
    "make demo": ".ci/run",
    "make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu": ".ci/run, from any index",
    "make test": ".ci/run, as `make test-all`",
    "source .venv/bin/activate": "the interpreter of these tests",
    "pip install -c constraints.txt -e '.[playground]'": ".ci/run, with more extras",
    "odesteer playground smollm2 --steering formal=formal": "tests/playground",
}
# Typed into `odesteer chat`, which also reads a pipe.
TYPED = "/angle 0.1\nHow are you?\n/quit\n"


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of a kind on a page."""
    return re.findall(rf"```{kind}\n(.*?)```", (REPOSITORY / page).read_text("utf-8"), re.DOTALL)


def lines(page: str) -> list[str]:
    """The lines of the page's shell blocks, without comments."""
    printed = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in printed]
    return [shlex.join(line) for line in words if line]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder with what the repository holds, which is the current one."""
    for name in ("src", "experiments"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ODESTEER_DATA", raising=False)
    return tmp_path


@pytest.fixture
def smollm2(monkeypatch: pytest.MonkeyPatch) -> None:
    narrow_smollm2.replace(monkeypatch)


@pytest.mark.slow
def test_the_commands_run_in_order_as_printed(clone: Path, smollm2: None) -> None:
    done = set()
    for page in PAGES:
        for pairs in blocks(page, "jsonl"):
            (clone / "pairs.jsonl").write_text(pairs, encoding="utf-8")
        for line in lines(page):
            if line in done or line in ELSEWHERE:
                continue
            done.add(line)
            program, *words = shlex.split(line)
            if program == "cp":
                shutil.copy(*words)
                continue
            assert program == "odesteer", f"{page}: run '{line}', or say what stands for it"
            result = CliRunner().invoke(app, words, input=TYPED)
            assert result.exit_code == 0, f"{page}: {line}\n{result.output}"
            if "--out" in words:
                assert (clone / words[words.index("--out") + 1]).exists(), line


def test_what_stands_for_a_line_stands_for_one_that_is_printed() -> None:
    assert {*ELSEWHERE} <= {line for page in PAGES for line in lines(page)}
