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

Undo = list[Callable[[], None]]
# Held while hooks change. Re-entrant: meanwhile a forgotten handle may be collected, and taken off.
LOCK = threading.RLock()


def undo_all(undo: Undo) -> None:
    """Undo what was done, the latest first.

    Cut off by an exception, such as Ctrl-C, it can be called again: each undo stays in the list
    until it has run, and is harmless a second time.
    """
    with LOCK:
        while undo:
            undo[-1]()
            undo.pop()


def add_hook(undo: Undo, module: nn.Module, kind: str, hook: "Hook", **options: bool) -> None:
    """Register a forward hook (`kind` "forward_hook" or "forward_pre_hook"), and its undo first.

    So it is removed also if the registration is cut off, when there is no handle of torch's yet.
    """
    hooks: dict[int, Any] = getattr(module, f"_{kind}s")
    flags = [getattr(module, f"_{kind}s_with_kwargs"), module._forward_hooks_always_called]

    def remove() -> None:
        for key in [key for key, each in tuple(hooks.items()) if each is hook]:
            for table in (*flags, hooks):
                table.pop(key, None)

    undo.append(remove)
    getattr(module, f"register_{kind}")(hook, **options)


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


# By module: the marks that it carries, and the forward of its own that it had before them.
_marks: "weakref.WeakKeyDictionary[nn.Module, tuple[frozenset[object], Any]]" = (
    weakref.WeakKeyDictionary()
)


def force_recompile(undo: Undo, module: nn.Module) -> None:
    """Recompile graphs that contain this module; the undo recompiles again.

    When the last mark is gone the module has its own forward back, and graphs compiled
    without any mark are used again.
    """
    reference, mark = weakref.ref(module), object()

    def remove() -> None:
        alive = reference()
        if alive is not None:
            _change(alive, lambda marks: marks - {mark})

    undo.append(remove)
    _change(module, lambda marks: marks | {mark})


def _change(module: Any, change: Callable[[frozenset[object]], frozenset[object]]) -> None:
    # Cut off anywhere by an exception of another thread, it can be done again.
    with LOCK:
        before, original = _marks.get(module, (frozenset(), vars(module).get("forward")))
        marks = change(before)
        if marks:
            _marks[module] = (marks, original)
            module.forward = _another(module, original)
        elif before:
            if original is None:
                vars(module).pop("forward", None)
            else:
                module.forward = original
            del _marks[module]


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
