"""Every Python block of the README and the docs runs, and prints what stands below it."""

import contextlib
import io
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
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
def test_the_block_runs_and_prints_what_is_shown(code: str, expected: str | None) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "<docs>", "exec"), {"__name__": "__main__"})
    if expected is not None:
        assert printed.getvalue().strip() == expected.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_methods_page_lists_every_method() -> None:
    import odesteer as ods

    listed = set(
        re.findall(r"^\| `([a-z-]+)` \|", (REPOSITORY / "docs/methods.md").read_text(), re.M)
    )
    assert listed == set(ods.METHODS)
