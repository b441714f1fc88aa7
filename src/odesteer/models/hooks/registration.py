"""Hooks that hold their owner weakly, and recompilation when hooks change.

A hook disappears with its owner, and a model cannot be copied or pickled with it: the copy's
`generate` would run the original model.

torch.compile does not check hooks again once it has compiled a module (torch 2.13,
`skip_nnmodule_hook_guards`): a steering attached later would be ignored silently. It does check
the module's own `forward`, so each change of hooks replaces that.
"""

import functools
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

from torch import nn


class Hook:
    """Hook that keeps a model from being copied or pickled."""

    def __init__(self, run: Callable[..., Any]):
        self._run = run

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)

    def __deepcopy__(self, _memo: object) -> "Hook":
        raise TypeError("A model cannot be copied while it is steered: remove the steering first.")

    def __reduce__(self) -> str:
        raise TypeError("A model cannot be pickled while it is steered: remove the steering first.")


class WeakHook(Hook):
    """Hook that holds the object of its method weakly, and does nothing without it."""

    def __init__(self, method: Callable[..., Any]):
        reference = weakref.WeakMethod(method)

        def run(*args: Any) -> Any:
            alive = reference()
            return None if alive is None else alive(*args)

        super().__init__(run)


# By module: how many marks it carries, and the forward of its own that it had before them.
_marks: "weakref.WeakKeyDictionary[nn.Module, tuple[int, Any]]" = weakref.WeakKeyDictionary()
_lock = threading.RLock()


def force_recompile(module: nn.Module) -> Callable[[], None]:
    """Recompile graphs that contain this module; the undo recompiles again.

    When the last mark is gone the module has its own forward back, and graphs compiled
    without any mark are used again.
    """
    reference = weakref.ref(module)

    def undo() -> None:
        alive = reference()
        if alive is not None:
            _change(alive, -1)

    _change(module, 1)
    return undo


def _change(module: Any, by: int) -> None:
    with _lock:
        count, original = _marks.get(module, (0, vars(module).get("forward")))
        if count + by:
            _marks[module] = (count + by, original)
            module.forward = _another(module, original)
        else:
            del _marks[module]
            if original is None:
                del module.forward
            else:
                module.forward = original


def _another(module: Any, original: Any) -> Callable[..., Any]:
    """Make a new function object that calls the module's original forward."""
    inner = type(module).forward.__get__(module) if original is None else original
    # Somebody else's own (accelerate's offloading) is kept. The class's only weakly: a module
    # that held its own bound method could be freed by the cycle collector alone.
    wrapped = weakref.WeakMethod(inner) if original is None else lambda: original

    @functools.wraps(inner)
    def forward(*args: Any, **kwargs: Any) -> Any:
        run: Any = wrapped()
        return run(*args, **kwargs)

    # Others read it; and `__wrapped__` would hold the module.
    signed: Any = forward
    signed.__signature__ = inspect.signature(inner)
    del signed.__wrapped__
    return forward
