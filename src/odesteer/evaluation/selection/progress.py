"""Staged progress bar."""

from collections.abc import Callable

from odesteer.extraction.extract import Progress

# Of the time: how long each stage took on SmolLM2-135M, roughly.
_STAGES = {"read": 20, "rank": 10, "fit": 10, "effect": 35, "damage": 25}


class StagedProgress:
    """One progress of (done, 1000) out of stages that count in units of their own."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._reached = 0

    def of(self, stage: str) -> Progress:
        names = list(_STAGES)
        start = sum(_STAGES[name] for name in names[: names.index(stage)])

        def progress(done: int, total: int) -> None:
            now = round(10 * (start + _STAGES[stage] * done / max(total, 1)))
            # A stage of several parts begins again with each; time does not run back.
            self._reached = max(self._reached, now)
            if self._progress is not None:
                self._progress(self._reached, 1000)

        return progress

    def count(self, stage: str, total: int) -> Callable[[int], None]:
        """The same, told how many are new instead of how many are done."""
        progress, done = self.of(stage), 0

        def more(new: int) -> None:
            nonlocal done
            done += new
            progress(done, total)

        return more
