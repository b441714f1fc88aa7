"""Test processes forked from one that has imported everything."""

import multiprocessing
import os
from collections.abc import Callable
from typing import Any, TextIO

import torch

_CONTEXT = multiprocessing.get_context("forkserver")
# Seconds each time, for whatever loads a model and fits.
_CONTEXT.set_forkserver_preload(
    [
        "odesteer.evaluation.experiment.run",
        "odesteer.evaluation.experiment.run",
        "odesteer.extraction.extract_shards",
        "sklearn.linear_model",
        "sklearn.model_selection",
        "transformers.models.llama.modeling_llama",
        "transformers.models.auto.tokenization_auto",
    ]
)


class Forked:
    """A process that calls `function(*arguments)`, with the part of `subprocess.Popen` tests need.

    It has this process's environment and number of threads. What it prints is in `stdout`.

    Args:
        function: of a module, so that it can be named to the other process.
        arguments: that can be pickled.
    """

    def __init__(self, function: Callable[..., object], *arguments: Any):
        lines, writer = _CONTEXT.Pipe(duplex=False)
        about = (dict(os.environ), torch.get_num_threads(), writer)
        self._process = _CONTEXT.Process(
            target=_call, args=(*about, function, arguments), daemon=True
        )
        self._process.start()
        writer.close()
        self.stdout: TextIO = os.fdopen(os.dup(lines.fileno()), encoding="utf-8")
        lines.close()

    @property
    def returncode(self) -> int | None:
        """The exit code; minus the signal that ended it; None while it runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        return self.returncode

    def communicate(self) -> str:
        """What it printed from now on, until its end."""
        with self.stdout:
            printed = self.stdout.read()
        self.wait()
        return printed

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


def _call(
    environment: dict[str, str],
    threads: int,
    writer: Any,
    function: Callable[..., object],
    arguments: tuple[Any, ...],
) -> None:
    os.dup2(writer.fileno(), 1)
    writer.close()
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(threads)
    function(*arguments)
