"""From the file of a run to tables, figures and a page: `read_run`, `build`, `write`."""

from odesteer.report.build import Report, build, check
from odesteer.report.results import read_run
from odesteer.report.run import Run
from odesteer.report.writing import FORMATS, write

__all__ = ["FORMATS", "Report", "Run", "build", "check", "read_run", "write"]
