"""The paper's published numbers.

Its numbers stand beside a run's, marked as the paper's: means over three seeds with their
standard deviation, judged by the paper's judges. A column that another judge filled has none.

Source: "ODESteer", ICLR 2026, https://arxiv.org/abs/2602.17560, tables 2, 3 and 5 to 9.
"""

import csv
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files

from odesteer.evaluation.report.measures import Measure
from odesteer.evaluation.report.run import Run
from odesteer.evaluation.report.table import Cell, Line
from odesteer.evaluation.statistics.bootstrap import Interval
from odesteer.evaluation.statistics.paired_tests import NAN

TABLES = (
    "table2_main",
    "table3_ablation",
    "table5_strength_and_layer",
    "table6_distinct",
    "table7_tokens_per_second",
    "table8_transfer",
    "table9_solver",
)
HEADING = "paper (mean ± standard deviation over 3 seeds)"
# The paper's names: ours. Its ODESteer is our configuration `odesteer-paper`.
METHODS = {
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
# column by our judges: (mean, deviation, unit of the mean, unit of the deviation), of table 2
_COLUMNS = {
    "true truth-llama": ("true_percent", "true_percent_std", 0.01, 0.01),
    "info info-llama": ("info_percent", "info_percent_std", 0.01, 0.01),
    "true_x_info truth-llama info-llama": (
        "true_x_info_percent", "true_x_info_percent_std", 0.01, 0.01,
    ),
    "win_rate reward": ("win_percent", "win_percent_std", 0.01, 1.0),
    "reward": ("rm_mean", "rm_mean_std", 1.0, 1.0),
    "reward_90th_percentile reward": ("rm_p90", "rm_p90_std", 1.0, 1.0),
    "toxicity perspective": ("toxicity", "toxicity_std", 1.0, 1.0),
    "perplexity": ("perplexity", "perplexity_std", 1.0, 1.0),
    "distinct_2": ("dist2", "dist2_std", 1.0, 1.0),
}  # fmt: skip
# Perplexity and Dist-n of table 2 are of continuations of RealToxicityPrompts.
_BENCHMARK = {"perplexity": "real-toxicity-prompts", "distinct": "real-toxicity-prompts"}


@lru_cache
def table(name: str) -> tuple[dict[str, str], ...]:
    """The rows of one of `TABLES`, as they are in its file."""
    text = (
        files("odesteer.evaluation.report")
        .joinpath(f"paper/{name}.csv")
        .read_text(encoding="utf-8")
    )
    return tuple(csv.DictReader(text.splitlines()))


def paper_model(run: Run) -> str | None:
    """The paper's name of a run's model, by the model's name on the Hub; None: another one."""
    name = str(run.model.get("name") or "").lower()
    return next(
        (
            row["model"]
            for row in table("table5_strength_and_layer")
            if row["hub_id"].lower() == name
        ),
        None,
    )


def paper_lines(run: Run, measures: Sequence[Measure]) -> tuple[Line, ...]:
    """The paper's rows for the run's columns; none where the model is another one."""
    model = paper_model(run)
    if model is None:
        return ()
    lines = []
    distinct = {row["method"]: row for row in table("table6_distinct") if row["model"] == model}
    for row in table("table2_main"):
        if row["model"] != model:
            continue
        known = {**row, **{key: distinct[row["method"]][key] for key in ("dist1", "dist3")}}
        lines.append(_line(run, measures, row["method"], "", known))
    family = model.split("-")[0]
    ablation = table("table3_ablation")
    for row in (r for r in ablation if r["model"] == family and r["method"].startswith("one-step")):
        known = {
            "win_percent": row["win_percent"], "win_percent_std": row["win_std"],
            "true_x_info_percent": row["true_x_info_percent"],
            "true_x_info_percent_std": row["true_x_info_std"],
            "toxicity": row["toxicity"], "toxicity_std": row["toxicity_std"],
        }  # fmt: skip
        lines.append(_line(run, measures, "ODESteer", "one step (table 3)", known))
    solvers = table("table9_solver")
    for row in (r for r in solvers if r["model"] == model and r["solver"] == "rk4"):
        known = {
            "true_x_info_percent": row["true_x_info_percent"],
            "true_x_info_percent_std": row["std"],
        }
        lines.append(_line(run, measures, "ODESteer", "RK4 (table 9)", known))
    return tuple(line for line in lines if any(line.cells))


def _line(
    run: Run, measures: Sequence[Measure], method: str, setting: str, row: dict[str, str]
) -> Line:
    cells = tuple(_cell(run, measure, row) for measure in measures)
    label = "Unsteered" if method == "Original" else method
    ours = METHODS[method] if setting != "one step (table 3)" else "odesteer-one-step"
    return Line(label, setting, HEADING, cells, source="paper", method=ours)


def _cell(run: Run, measure: Measure, row: dict[str, str]) -> Cell | None:
    kind = "distinct" if measure.grams else measure.name
    if run.benchmark.get("name") != _BENCHMARK.get(kind, run.benchmark.get("name")):
        return None
    if measure.grams in (1, 3):
        mean, std, unit, unit_std = f"dist{measure.grams}", "", 1.0, 1.0
    elif measure.key in _COLUMNS:
        mean, std, unit, unit_std = _COLUMNS[measure.key]
    else:
        return None
    if mean not in row:
        return None
    deviation = unit_std * float(row[std]) if std else None
    return Cell(Interval(unit * float(row[mean]), NAN, NAN, 0), deviation=deviation)
