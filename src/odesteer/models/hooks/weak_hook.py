"""Forward hooks that die with their owner and forbid copying or pickling the model.

Something that goes away with its owner, and that no copy of the model takes along: the copy's
`generate` would run the original model.
"""

import weakref
from collections.abc import Callable
from typing import Any


class Hook:
    """A hook that keeps a model from being copied or pickled."""

    def __init__(self, run: Callable[..., Any]):
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __deepcopy__(self, _memo: object) -> "Hook":
        raise TypeError("A model cannot be copied while it is steered: remove the steering first.")

    def __reduce__(self) -> str:
        raise TypeError("A model cannot be pickled while it is steered: remove the steering first.")


class WeakHook(Hook):
    """One that does not keep the object whose method it runs, and does nothing without it."""

    def __init__(self, method: Callable[..., Any]):
        reference = weakref.WeakMethod(method)

        def run(*args: Any) -> Any:
            alive = reference()
            return None if alive is None else alive(*args)

        super().__init__(run)
