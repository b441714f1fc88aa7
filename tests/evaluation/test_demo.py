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
        *(
            f"{method}@angle-{dose}"
            for method in ("caa", "odesteer")
            for dose in (0.03, 0.06, 0.09)
        ),
        "random@angle-0.06",
        "odesteer@target-0.9",
    ]
    assert {len(answers) for answers in run.answers.values()} == {len(demo.test_prompts())}
    assert len(run.barriers) == len(run.trajectories) == 2
    drawn = {drawing.name for drawing in result.report.figures}
    assert {"effect-against-perplexity", "flow", "calibration"} <= drawn
    page = result.page.read_text(encoding="utf-8")
    assert "A cheerful model, steered to melancholy" in page
    saved = ods.load(tmp_path / "steerings" / "odesteer")
    assert (saved.layer, saved.positions) == (result.layer, "all")
