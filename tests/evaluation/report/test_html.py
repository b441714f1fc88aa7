"""The page needs nothing from anywhere, runs nothing, and hides what is offensive."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.report.synthetic import (
    angle,
    case,
    condition,
    lines,
    sweep_run,
    toxicity_run,
    write,
)

from odesteer.evaluation.report import build, read_run, writers

VOID = {"meta", "br", "link", "img", "input", "hr"}
ATTACK = "<script>alert(1)</script><img src=https://example.org/x onerror=alert(1)>"


class Structure(HTMLParser):
    """Tags that are opened and closed, ids, links, and the text of every element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute twice in <{tag}>: {attrs}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def toxic(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = toxicity_run(tmp_path_factory.mktemp("toxic"), prompts=10)
    return writers.html([build(read_run(folder))])


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = sweep_run(
        tmp_path_factory.mktemp("sweep"), questions=10, model="meta-llama/Llama-3.1-8B"
    )
    return writers.html([build(read_run(folder))])


def attacked(folder: Path, **more: Any) -> str:
    conditions = [
        condition("none", label=ATTACK),
        condition(ATTACK, "caa", angle(0.1), label=ATTACK),
    ]
    cases = [
        case(one["id"], i, {"truth-tfidf": None, ATTACK: i / 3}, prompt=ATTACK, generation=ATTACK,
             reasons={"truth-tfidf": ATTACK})
        for one in conditions
        for i in range(3)
    ]  # fmt: skip
    choice = {"kind": "choice", "condition": ATTACK, "fold": 0, "layer": 3, "dose": angle(0.1),
              "rule": ATTACK, "trials": []}  # fmt: skip
    content = lines(conditions, cases, (ATTACK,), model=ATTACK, more=[choice], title=ATTACK, **more)
    content[0]["benchmark"]["notes"] = [ATTACK]
    content[0]["benchmark"]["files"] = {ATTACK: ATTACK}
    content[0]["judges"][ATTACK] = {"unit": ATTACK, "higher_is": "better", "agreement": ATTACK}
    return writers.html([build(read_run(write(folder, content)))])


def test_a_page_is_well_formed(toxic: str, sweep: str, tmp_path: Path) -> None:
    for text in (toxic, sweep, attacked(tmp_path)):
        structure = Structure(text)
        ids = [str(attributes["id"]) for _, attributes in structure.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        for link in structure.all("a"):
            assert str(link["href"])[1:] in ids
        for _, attributes in structure.tags:
            for used in re.findall(r"url\(#([^)]*)\)", " ".join(map(str, attributes.values()))):
                assert used in ids
            if str(attributes.get("href", "")).startswith("#"):
                assert str(attributes["href"])[1:] in ids


def test_nothing_is_requested_and_nothing_runs(toxic: str, sweep: str) -> None:
    for text in (toxic, sweep):
        assert "http:" not in text and "https:" not in text and "http-equiv" in text
        structure = Structure(text)
        assert not {"script", "link", "img", "iframe", "object"} & {
            tag for tag, _ in structure.tags
        }
        (policy,) = (m for m in structure.all("meta") if "http-equiv" in m)
        assert str(policy["content"]).startswith("default-src 'none'; style-src 'unsafe-inline'")


def test_whatever_a_run_says_is_text(tmp_path: Path) -> None:
    text = attacked(tmp_path)
    structure = Structure(text)
    assert not structure.all("script") and not structure.all("img")
    assert not any(name.startswith("on") for _, a in structure.tags for name in a)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 10


def test_offensive_texts_are_closed_until_they_are_opened(toxic: str, sweep: str) -> None:
    structure = Structure(toxic)
    assert structure.all("details")
    assert not any("open" in attributes for attributes in structure.all("details"))
    assert "may be offensive" in toxic
    # Every text is within a closed block of its own, prompt included.
    for pair in re.findall(r'<div class="pair">(.*?)</div></details></div>', toxic, re.DOTALL):
        assert pair.startswith("<details><summary>Show the text")
    assert "may be offensive" not in sweep
    assert any("open" in attributes for attributes in Structure(sweep).all("details"))


def test_tables_are_tables_and_can_be_reached_with_keys(toxic: str) -> None:
    structure = Structure(toxic)
    assert len(structure.all("caption")) >= 3
    for head in structure.all("th"):
        assert head.get("scope") in ("col", "row", "rowgroup")
    regions = [a for a in structure.all("div") if a.get("role") == "region"]
    assert regions and all(a["tabindex"] == "0" and a["aria-label"] for a in regions)
    assert all(a["role"] == "img" and a["aria-label"] for a in structure.all("svg"))
    assert structure.all("html")[0]["lang"] == "en"


def test_it_is_made_for_both_themes_and_narrow_screens(toxic: str) -> None:
    assert "prefers-color-scheme: dark" in toxic and "max-width: 40rem" in toxic
    assert "width=device-width" in toxic
    # Figures take the page's colours.
    assert "currentColor" in toxic and "#101112" not in toxic


def test_it_shows_what_was_chosen_who_judged_and_from_which_data(toxic: str) -> None:
    for told in ("largest effect with KL &lt;= 0.2", "AUC 0.931 against Perspective", "ab" * 32,
                 "Invented numbers."):  # fmt: skip
        assert told in toxic


def test_an_unfinished_run_says_so_first(tmp_path: Path) -> None:
    cases = [case("none", 0, {"truth-tfidf": 1.0})]
    folder = write(tmp_path, lines([condition("none")], cases)[:-1])
    text = writers.html([build(read_run(folder))])
    assert text.index("This run is not finished") < text.index("<ul><li>Unsteered, ")


def test_the_largest_changes_stand_first_and_the_unscored_last(tmp_path: Path) -> None:
    after = [0.5, 0.1, None, 0.9]
    conditions = [condition("none"), condition("caa", dose=angle(0.1))]
    cases = [case("none", i, {"truth-tfidf": 0.5}, prompt=f"Q{i}") for i in range(4)]
    cases += [
        case("caa", i, {"truth-tfidf": x}, prompt=f"Q{i}", reasons={"truth-tfidf": "too long"})
        for i, x in enumerate(after)
    ]
    (texts,) = build(read_run(write(tmp_path, lines(conditions, cases)))).texts
    assert [pair.prompt for pair in texts.pairs] == ["Q1", "Q3", "Q0", "Q2"]
    assert texts.pairs[-1].change is None
    assert texts.pairs[-1].why == "right: too long"


def test_several_runs_are_one_page(tmp_path: Path) -> None:
    folders = [toxicity_run(tmp_path / "a", prompts=4), sweep_run(tmp_path / "b", questions=4)]
    text = writers.html([build(read_run(folder)) for folder in folders])
    ids = [str(a["id"]) for _, a in Structure(text).tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert "<h1>2 runs</h1>" in text
