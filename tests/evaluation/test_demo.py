"""The demo is a run like any other: what it writes is read back by the report."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.evaluation import demo
from odesteer.evaluation.report import read_run
from odesteer.extraction.extract import Progress


@contextmanager
def stage(_: str) -> Iterator[Progress]:
    yield lambda done, total: None


def test_the_demo_is_a_run_that_the_report_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("vaderSentiment")
    monkeypatch.setattr(demo, "NEW_TOKENS", 4)
    result = demo.run(tiny.model(), tiny.tokenizer(chat=True), tmp_path, stage)
    run = read_run(tmp_path)
    assert run.finished and not run.remarks
    assert list(run.conditions) == [
        "none",
        *(f"{m}@angle-{a}" for m in ("caa", "iti", "odesteer") for a in (0.1, 0.2, 0.3)),
    ]
    assert {len(answers) for answers in run.answers.values()} == {len(demo.test_prompts())}
    assert len(run.barriers) == len(run.trajectories) == len(demo.METHODS)
    drawn = {drawing.name for drawing in result.report.figures}
    assert {"effect-against-perplexity", "flow", "calibration"} <= drawn
    page = result.page.read_text(encoding="utf-8")
    assert "A cheerful model, steered to melancholy" in page
    assert ods.load(tmp_path / "steerings" / "odesteer").layer == result.layer
