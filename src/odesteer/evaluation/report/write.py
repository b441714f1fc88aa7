"""Files of a report."""

from collections.abc import Sequence
from pathlib import Path

from odesteer.common.files import write_whole
from odesteer.evaluation.report import csv, latex, markdown
from odesteer.evaluation.report import html as page
from odesteer.evaluation.report.build import Report

FORMATS = {"md": "report.md", "csv": "results.csv", "latex": "tables.tex", "html": "report.html"}
_FIGURES = {"md": "png", "latex": "pdf"}  # the page has them inside


def write(reports: Sequence[Report], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write the files, each whole or absent; figures before what refers to them.

    Args:
        reports: one or more.
        folder: made if it is not there.
        formats: of `FORMATS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    documents = {
        "md": markdown.document,
        "csv": csv.document,
        "latex": latex.document,
        "html": page.document,
    }
    written = []
    for kind in formats:
        for report in reports if kind in _FIGURES else ():
            for drawing in report.figures:
                name = f"{markdown.file_name(report, drawing.name)}.{_FIGURES[kind]}"
                (folder / "figures").mkdir(exist_ok=True)
                write_whole(folder / "figures" / name, drawing.file(_FIGURES[kind]))
        target = folder / FORMATS[kind]
        write_whole(target, documents[kind](reports).encode())
        written.append(target)
    return written
