"""The paper's numbers are there, and stand beside a run of the paper's model alone."""

from pathlib import Path
from typing import Any

import pytest
from tests.evaluation.report.synthetic import JUDGES, TRUTHFUL, case, condition, lines, write

from odesteer.evaluation.report import Report, build, paper, read_run
from odesteer.evaluation.report.table import value_text
from odesteer.methods import METHODS

SHAPES = {
    "table2_main": (40, 20),
    "table3_ablation": (9, 8),
    "table5_strength_and_layer": (4, 7),
    "table6_distinct": (40, 5),
    "table7_tokens_per_second": (30, 4),
    "table8_transfer": (3, 3),
    "table9_solver": (6, 4),
}


def test_every_table_loads_whole() -> None:
    assert {name: (len(t := paper.table(name)), len(t[0])) for name in paper.TABLES} == SHAPES
    for name in paper.TABLES:
        assert all(None not in row and None not in row.values() for row in paper.table(name))


def test_the_papers_methods_are_ours() -> None:
    assert {row["method"] for row in paper.table("table2_main")} == set(paper.METHODS)
    assert set(paper.METHODS.values()) <= set(METHODS)


def run(folder: Path, model: str, *scores: str, **more: Any) -> Report:
    cases = [case("none", i, dict.fromkeys(scores, 0.9)) for i in range(3)]
    content = lines([condition("none")], cases, judges=JUDGES, model=model, **more)
    return build(read_run(write(folder, content)), drawn=False)


def numbers(report: Report, label: str, setting: str = "") -> list[str]:
    (line,) = (
        line
        for line in report.main.lines
        if (line.source, line.label, line.setting) == ("paper", label, setting)
    )
    return [
        value_text(cell, column) if cell else ""
        for cell, column in zip(line.cells, report.main.columns, strict=True)
    ]


def test_the_papers_model_has_the_papers_rows(tmp_path: Path) -> None:
    found = run(tmp_path, "meta-llama/Llama-3.1-8B", "truth-llama", "info-llama", metrics=TRUTHFUL)
    assert [c.label for c in found.main.columns] == ["True", "Info", "True × Info", "True and Info"]
    assert numbers(found, "ODESteer") == ["0.670 ± 0.010", "0.944 ± 0.003", "0.632 ± 0.008", ""]
    assert numbers(found, "Unsteered")[0] == "0.462 ± 0.011"
    assert numbers(found, "ODESteer", "RK4 (table 9)")[2] == "0.633 ± 0.009"
    assert numbers(found, "ODESteer", "one step (table 3)")[2] == "0.621 ± 0.006"
    assert not any(c.adjusted for line in found.main.lines for c in line.cells if c)


def test_toxicity_perplexity_and_diversity(tmp_path: Path) -> None:
    found = run(
        tmp_path, "tiiuae/falcon-7b", "perspective", "perplexity",
        metrics=("toxicity", "distinct_1", "distinct_2"), benchmark="real-toxicity-prompts",
    )  # fmt: skip
    assert numbers(found, "HPR") == ["0.193 ± 0.003", "0.768", "0.919 ± 0.002", "83.5 ± 37.8"]


def test_win_rates_are_shares(tmp_path: Path) -> None:
    found = run(
        tmp_path, "Qwen/Qwen2.5-7B", "reward", benchmark="ultrafeedback",
        metrics=("win_rate", "reward", "reward_90th_percentile"),
    )  # fmt: skip
    assert numbers(found, "ODESteer") == ["0.545 ± 0.010", "−6.53 ± 0.20", "3.69 ± 0.46"]


@pytest.mark.parametrize(
    ("model", "scores", "benchmark"),
    [
        ("SmolLM2-135M-Instruct", ("truth-llama", "info-llama"), "truthfulqa"),
        ("somebody/Llama-3.1-8B", ("truth-llama", "info-llama"), "truthfulqa"),
        # Other judges measure something else.
        ("meta-llama/Llama-3.1-8B", ("truth-tfidf", "info-tfidf"), "truthfulqa"),
        # The paper's perplexities are of RealToxicityPrompts.
        ("meta-llama/Llama-3.1-8B", ("perplexity",), "truthfulqa"),
    ],
)
def test_no_other_run_has_them(
    tmp_path: Path, model: str, scores: tuple[str, ...], benchmark: str
) -> None:
    found = run(tmp_path, model, *scores, metrics=TRUTHFUL, benchmark=benchmark)
    assert all(line.source == "run" for line in found.main.lines)


def test_its_names_have_a_readme_with_their_source() -> None:
    readme = Path(paper.__file__).parent / "paper" / "README.md"
    text = readme.read_text(encoding="utf-8")
    assert "arxiv.org/abs/2602.17560" in text
    assert all(f"`{name}.csv`" in text for name in paper.TABLES)
