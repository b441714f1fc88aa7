"""Reports: from the file of a run to tables, figures and a page."""

from odesteer.evaluation.report.build import Report, build, check
from odesteer.evaluation.report.run import Run, read_run
from odesteer.evaluation.report.writers import FORMATS, write

__all__ = ["FORMATS", "Report", "Run", "build", "check", "read_run", "write"]
