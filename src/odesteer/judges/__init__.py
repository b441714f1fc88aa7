"""One file a judge; `JUDGES` is the table that everything else reads."""

from odesteer.judges.base import Judge, Score
from odesteer.judges.vader import VaderMood

JUDGES: dict[str, type[Judge]] = {judge.name: judge for judge in (VaderMood,)}

__all__ = ["JUDGES", "Judge", "Score", "VaderMood"]
