"""Every Python block of the README and the docs runs, and prints what stands below it.

Behind the name `smollm2` is a far narrower model for blocks that show nothing of what it says.
"""

import contextlib
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.helpers import narrow_smollm2
from tests.helpers.paths import REPOSITORY
from typer.main import get_command

from odesteer.cli.app import app

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT: Any = get_command(app)

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "examples/README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
BLOCK = re.compile(r"```python\n(.*?)```(?:\s*```text\n(.*?)```)?", re.DOTALL)


def _blocks() -> list[object]:
    found = []
    for page in PAGES:
        for number, match in enumerate(BLOCK.finditer(page.read_text(encoding="utf-8")), start=1):
            code, expected = match.groups()
            marks = [pytest.mark.slow] if "load_model" in code else []
            name = f"{page.name}-{number}"
            found.append(pytest.param(code, expected, id=name, marks=marks))
    return found


@pytest.mark.parametrize(("code", "expected"), _blocks())
def test_the_block_runs_and_prints_what_is_shown(
    code: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "load_model" in code and expected is None:
        narrow_smollm2.replace(monkeypatch)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<docs>", "exec"), {"__name__": "__main__"})
    if expected is not None:
        assert printed.getvalue().strip() == expected.strip()


def _fenced(kind: str) -> list[object]:
    """The blocks of a kind, on all pages."""
    pattern = re.compile(rf"```{kind}\n(.*?)```", re.DOTALL)
    return [
        pytest.param(match[1], id=f"{page.name}-{number}")
        for page in PAGES
        for number, match in enumerate(pattern.finditer(page.read_text("utf-8")), start=1)
    ]


def _commands(block: str) -> list[list[str]]:
    """The words of each `odesteer ...` of a shell block."""
    lines = re.split(r"\n|&&", block.replace("\\\n", " "))
    words = (shlex.split(line, comments=True) for line in lines)
    return [line[1:] for line in words if line[:1] == ["odesteer"]]


@pytest.mark.parametrize("block", _fenced("sh"))
def test_every_command_shown_is_one_and_takes_what_it_is_given(block: str) -> None:
    for words in _commands(block):
        context = ROOT.make_context("odesteer", list(words), resilient_parsing=True)
        name, command, rest = ROOT.resolve_command(context, words)
        while hasattr(command, "resolve_command"):
            name, command, rest = command.resolve_command(context, rest)
        # A word that is no option is refused here, with its name.
        with command.make_context(name, list(rest), parent=context):
            pass


def test_a_command_with_an_option_that_is_none_is_refused() -> None:
    with pytest.raises(Exception, match="--angel"):
        test_every_command_shown_is_one_and_takes_what_it_is_given(
            "odesteer chat smollm2 \\\n  --angel 0.2  # a comment"
        )


@pytest.mark.parametrize("block", _fenced("toml"))
def test_every_toml_block_is_toml(block: str) -> None:
    tomllib.loads(block)


@pytest.mark.parametrize("block", _fenced("jsonl"))
def test_every_line_of_a_jsonl_block_is_json(block: str) -> None:
    for line in block.splitlines():
        json.loads(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def _method_row(method: type) -> str:
    facts, pairs = method.facts, "yes" if method.needs_pairs else "no"
    cells = (facts.field, facts.barrier, facts.strength, pairs, facts.source)
    escaped = " | ".join(cell.replace("|", "\\|").replace("*", "\\*") for cell in cells)
    return f"| `{method.name}` | {escaped} |"


def test_the_methods_page_says_of_every_method_what_the_code_says() -> None:
    import odesteer as ods

    page = (REPOSITORY / "docs/methods.md").read_text(encoding="utf-8")
    expected = [_method_row(method) for method in ods.METHODS.values()]
    listed = [line for line in page.splitlines() if line.startswith("| `")]
    assert listed == expected, "the table should be:\n" + "\n".join(expected)


def test_the_evaluation_page_says_of_every_judge_and_benchmark_what_the_code_says() -> None:
    from odesteer.evaluation.benchmarks import BENCHMARKS
    from odesteer.evaluation.judges import JUDGES

    page = (REPOSITORY / "docs/evaluation.md").read_text(encoding="utf-8")
    for judge in JUDGES.values():
        cells = (judge.unit.replace("|", "\\|"), judge.higher_is, judge.agreement)
        row = f"| `{judge.name}` | {' | '.join(cells)} |"
        assert row in page, f"the row should be:\n{row}"
    for name in BENCHMARKS:
        assert f"| `{name}` | " in page


def test_the_page_on_extending_lists_every_promise_in_the_words_of_the_code() -> None:
    from odesteer.testing import METHOD_CHECKS

    page = (REPOSITORY / "docs/extending.md").read_text(encoding="utf-8")
    for name, promise in METHOD_CHECKS.items():
        row = f"| `{name}` | {promise.__doc__} |"
        assert row in page, f"the row should be:\n{row}"


def test_the_python_page_lists_every_public_name_once() -> None:
    import odesteer as ods

    page = (REPOSITORY / "docs/api.md").read_text(encoding="utf-8")
    listed = re.findall(r"^ +- (\w+)$|^::: odesteer\..*?(\w+)$", page, re.MULTILINE)
    assert sorted(one or other for one, other in listed) == sorted(ods.__all__)
