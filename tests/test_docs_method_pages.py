"""The page of each method holds its facts, and its example runs."""

import re

import pytest
from docs.method_pages import method_page
from tests.helpers.quick_methods import quick

import odesteer as ods
from odesteer import METHODS


@pytest.mark.parametrize("name", METHODS)
def test_the_page_holds_the_facts_and_its_example_runs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = METHODS[name]
    page = method_page(method)
    assert page.startswith(f"# {method.__name__}\n\n`{name}`")
    [code] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.setattr(ods, method.__name__, quick(name))
    made: dict[str, object] = {}
    exec(compile(code, f"<{name}>", "exec"), made)
    assert made["steered"].shape == made["negative"].shape  # type: ignore[attr-defined]
    assert (made["steered"] == made["negative"]).all() == (name == "none")  # type: ignore[attr-defined]


def test_symbols_are_no_markup() -> None:
    page = method_page(METHODS["linear-act"], "images/linear-act.png")
    assert "w\\*a + b - a" in page and "![LinearAcT" in page
