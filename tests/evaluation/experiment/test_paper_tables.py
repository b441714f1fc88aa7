"""The paper's numbers are there whole, and its methods are ours."""

import csv

from tests.helpers.paths import REPOSITORY

from odesteer.methods import METHODS

FOLDER = REPOSITORY / "experiments" / "paper"
SHAPES = {
    "table2_main": (40, 20),
    "table3_ablation": (9, 8),
    "table5_strength_and_layer": (4, 7),
    "table6_distinct": (40, 5),
    "table7_tokens_per_second": (30, 4),
    "table8_transfer": (3, 3),
    "table9_solver": (6, 4),
}
# The paper's names: ours. Its ODESteer is our configuration `odesteer-paper`.
NAMES = {
    "Original": "none",
    "RepE": "repe",
    "ITI": "iti",
    "CAA": "caa",
    "MiMiC": "mimic",
    "HPR": "hpr",
    "RE-Control": "re-control",
    "Linear-AcT": "linear-act",
    "TruthFlow": "truthflow",
    "ODESteer": "odesteer-paper",
}


def table(name: str) -> list[dict[str, str]]:
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_table_loads_whole() -> None:
    assert {path.stem for path in FOLDER.glob("*.csv")} == set(SHAPES)
    assert {name: (len(t := table(name)), len(t[0])) for name in SHAPES} == SHAPES
    for name in SHAPES:
        assert all(None not in row and None not in row.values() for row in table(name))


def test_the_papers_methods_are_ours() -> None:
    assert {row["method"] for row in table("table2_main")} == set(NAMES)
    assert set(NAMES.values()) <= set(METHODS)


def test_the_tables_have_a_readme_with_their_source() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert "arxiv.org/abs/2602.17560" in text
    assert all(f"`{name}.csv`" in text for name in SHAPES)
