"""A figure is drawn where its data is, of the numbers of the table, and for every reader."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from tests.evaluation.report.synthetic import (
    angle,
    case,
    condition,
    lines,
    sweep_run,
    toxicity_run,
    write,
)

from odesteer.evaluation.report import build, read_run
from odesteer.evaluation.report.figures.charts import pareto
from odesteer.evaluation.report.figures.style import _apart, look
from odesteer.evaluation.report.plots import flow_figure
from odesteer.methods import METHODS


def names(folder: Path) -> list[str]:
    return [drawing.name for drawing in build(read_run(folder)).figures]


def test_doses_give_tradeoffs_and_a_dose_response(tmp_path: Path) -> None:
    assert names(toxicity_run(tmp_path, prompts=6)) == [
        "overview", "effect-against-kl", "effect-against-perplexity", "dose", "flow", "calibration",
    ]  # fmt: skip


def test_sweeps_give_the_papers_figures(tmp_path: Path) -> None:
    folder = sweep_run(tmp_path, questions=6)
    report = build(read_run(folder))
    by_name = {drawing.name: drawing.caption for drawing in report.figures}
    assert "Figure 5 of the paper" in by_name["dose"]
    assert "Figures 3 and 6 of the paper" in by_name["layer"]
    assert "Figure 4 of the paper" in by_name["steps"]
    assert "strength 5" in by_name["steps"]


def test_a_run_without_such_data_has_no_figure(tmp_path: Path) -> None:
    conditions = [condition("none"), condition("caa", dose=angle(0.1))]
    cases = [case(one["id"], i, {"truth-tfidf": 0.1}) for one in conditions for i in range(3)]
    assert names(write(tmp_path, lines(conditions, cases))) == []


def test_the_front_holds_what_nobody_beats() -> None:
    points = [(0.0, 0.0), (1.0, 2.0), (0.5, 1.0), (0.7, 0.5), (2.0, 2.0), (1.0, 3.0)]
    assert pareto(points, 1.0) == [(0.0, 0.0), (0.5, 1.0), (1.0, 3.0)]
    assert pareto([(0.0, 0.0), (1.0, -2.0), (2.0, 1.0)], -1.0) == [(0.0, 0.0), (1.0, -2.0)]


def test_no_two_methods_look_the_same() -> None:
    looks = [look(method) for method in {*METHODS, "prompt", "random"}]
    assert len({(one.colour, one.marker, one.line) for one in looks}) == len(looks)


def test_every_colour_can_be_seen_on_both_pages() -> None:
    def luminance(colour: str) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one: str, other: str) -> float:
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for method in METHODS:
        colour = look(method).colour
        assert contrast(colour, "#ffffff") > 1.9, method
        assert contrast(colour, "#14181c") > 2.9, method


def test_labels_do_not_cover_each_other_and_move_no_farther_than_they_must() -> None:
    assert _apart([0.2, 0.5], 0.1) == [0.2, 0.5]
    assert _apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    crowded = _apart([0.9, 0.95, 0.97, 0.99], 0.1)
    assert all(b - a > 0.0999 for a, b in pairwise(crowded))
    assert max(crowded) <= 1.0 + 1e-9


def test_a_figure_of_the_demo_is_the_old_one_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flow.png"
    path.write_bytes(b"old")
    draw = Figure.savefig

    def cut_off(self: Figure, file: Any, **options: Any) -> None:
        draw(self, file, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", cut_off)
    paths = {"odesteer": np.zeros((3, 2))}
    with pytest.raises(KeyboardInterrupt):
        flow_figure(np.arange(3.0), paths, path, 1)
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("flow.png", b"old")]
    monkeypatch.undo()
    flow_figure(np.arange(3.0), paths, path, 1)
    assert path.read_bytes().startswith(b"\x89PNG")
