"""Difference between two methods over several runs, case by case.

    python experiments/paired.py odesteer caa runs/smollm2-rtp runs/smollm2-rtp-again

Runs are pooled as if they were one: the cases of each are others. A method's only condition is
taken; scores are differences first minus second with 95 % percentile-bootstrap intervals that
draw whole groups (a prompt with its samples), and n is the number of groups.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from odesteer.evaluation.report import read_run
from odesteer.evaluation.statistics import interval


def main(one: str, other: str, *paths: str) -> None:
    tables = [dict(scores(Path(path), method)) for path in paths for method in (one, other)]
    firsts, seconds = tables[::2], tables[1::2]
    keys = [(run, key) for run, table in enumerate(firsts) for key in table]
    names = sorted({name for table in firsts for row in table.values() for name in row})
    print(f"{one} - {other}, {', '.join(paths)}")
    for name in names:
        pairs = [
            (run, key[0], firsts[run][key].get(name), seconds[run][key].get(name))
            for run, key in keys
        ]
        kept = [
            (run, group, x - y) for run, group, x, y in pairs if x is not None and y is not None
        ]
        if not kept:
            continue
        groups = [f"{run}/{group}" for run, group, _ in kept]
        found = interval(np.array([value for *_, value in kept]), groups=groups)
        lost = len(pairs) - len(kept)
        print(
            f"{name:<14} {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]  "
            f"n = {len(set(groups))} groups, {found.n} cases"
            + (f", {lost} unscored in one of them" if lost else "")
        )


def scores(path: Path, method: str) -> Iterator[tuple[tuple[str, str, int], dict[str, Any]]]:
    """(group, case, sample) and scores of the method's only condition."""
    run = read_run(path)
    ids = [name for name in run.conditions if name.split("@")[0] == method]
    if len(ids) != 1:
        raise SystemExit(f"error: '{path}' has {len(ids)} conditions of {method}: {', '.join(ids)}")
    for answer in run.answers[ids[0]]:
        yield (answer.group, answer.case, answer.sample), dict(answer.scores)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
