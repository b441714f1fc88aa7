"""What is a steering that is on a model?

A forward hook on one block, with all that has to come off again: by `remove`, at the end of
the `with` block, or when nothing refers to the handle any more.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from odesteer.compiled import mark
from odesteer.hooks import WeakHook
from odesteer.layers import attention_output, block_output, hidden_size, replace_output
from odesteer.ode import Dose, PerRow
from odesteer.positions import Positions, chosen
from odesteer.steering import Steering
from odesteer.tracker import Call, Tracker

Undo = list[Callable[[], None]]


class Handle:
    """A steering on a model. Also a context manager; removing twice is harmless.

    A handle that nothing refers to any more takes its steering off, with a warning.
    """

    def __init__(
        self,
        steering: Steering,
        model: nn.Module,
        block: nn.Module,
        positions: Positions,
        rows: Sequence[int] | None,
        measure: bool,
    ):
        self.steering = steering
        self._positions = positions
        self._rows = None if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
        self._measure = measure
        self._seen = 0
        self._steered = 0
        self._sums: dict[str, Tensor] = {}
        self._width = hidden_size(model)
        self._tracker = Tracker.of(model)
        self._local = threading.local()
        self._undo: Undo = []
        try:
            # Weakly: what hangs on the model must not keep the handle.
            if steering.site == "heads":
                module = attention_output(block)
                hook = module.register_forward_pre_hook(WeakHook(self._on_input))
            else:
                hook = block.register_forward_hook(WeakHook(self._on_output))
            self._undo.append(hook.remove)
            self._undo.append(mark(block))
            self._tracker.acquire()
            self._undo.append(self._tracker.release)
        except BaseException:
            _take_off(self._undo)
            raise
        self._forgotten = weakref.finalize(self, _forget, self._undo)
        self._forgotten.atexit = False

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take everything off the model."""
        if self._forgotten.detach() is not None:
            _take_off(self._undo)

    def set_strength(self, strength: Dose | float) -> None:
        """Change the dose while attached."""
        self.steering = self.steering.with_strength(strength)

    def stats(self) -> dict[str, float]:
        """What happened so far.

        `tokens` the block has seen (padding included), `steered` of them, and with
        `measure=True` means over the steered ones: share `moved`, `displacement`
        ||a(T) - a||, `relative_displacement` to ||a||, `log_odds_before` and
        `log_odds_after` (where the method has a barrier).
        """
        steered = self._steered
        means = {
            name: float(total) / steered if steered else float("nan")
            for name, total in self._sums.items()
        }
        return {"tokens": float(self._seen), "steered": float(steered), **means}

    def _on_output(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = block_output(output)
        steered = self._apply(hidden, self._width)
        return output if steered is hidden else replace_output(output, steered)

    def _on_input(self, _module: nn.Module, args: Any) -> Any:
        steered = self._apply(args[0])
        return None if steered is args[0] else (steered, *args[1:])

    # A break in a compiled graph, on purpose: what the hook does depends on the tokens of the
    # call and on a dose that may change, which a graph would have to be compiled for anew.
    @torch.compiler.disable
    def _apply(self, hidden: Tensor, width: int | None = None) -> Tensor:
        block_output(hidden, self._tracker.tokens, width)  # refuses what is not these tokens'
        call, again = self._tracker.call_of(hidden)
        if not again and call is getattr(self._local, "ran", None):
            raise ValueError(
                "A steered block ran twice in one forward pass: odesteer cannot tell the passes "
                "of a recurrent-depth model apart. Steer a block that runs once."
            )
        self._local.ran = call
        velocity = self._velocity(hidden, call) if self.steering.field.reads_prompt else None
        mask = chosen(self._positions, call, hidden)
        if self._rows is not None:
            mine = self._tracker.expand_rows(self._rows, hidden.shape[0]).to(hidden.device)
            every = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            mask = (every if mask is None else mask) & mine[:, None]
        if velocity is not None:
            velocity = velocity.unsqueeze(1).expand(*hidden.shape[:2], -1)
        if mask is None:
            before, after = hidden, self.steering(hidden, velocity)
            result = after
        else:
            before = hidden[mask]
            dose = self.steering.dose
            if isinstance(dose, PerRow):
                dose = dose.at(mask.nonzero()[:, 0], len(mask))
            after = self.steering(before, None if velocity is None else velocity[mask], dose)
            result = hidden
            if after is not before:
                result = hidden.detach().clone()
                result[mask] = after.detach()
        if not again:
            self._seen += hidden.shape[:-1].numel()
            self._record(before.detach(), after.detach())
        if result is not hidden and torch.is_grad_enabled() and hidden.requires_grad:
            return _Displaced.apply(hidden, result)
        return result

    def _velocity(self, hidden: Tensor, call: Call) -> Tensor:
        """What the field made of each row's prompt, [b, d]; 0 until its last token was read."""
        batch, t, d = hidden.shape
        kept: Tensor | None = getattr(self._local, "velocity", None)
        if kept is None or call.offset == 0 or len(kept) != batch:
            kept = torch.zeros(batch, d, device=hidden.device)
        place = call.prompt_ends(batch, hidden.device) - call.offset
        here = (place >= 0) & (place < t)
        if bool(here.any()):
            rows = torch.arange(batch, device=hidden.device)
            prompts = hidden[rows, place.clamp(0, t - 1)]
            kept = torch.where(here[:, None], self.steering.velocity(prompts), kept)
        self._local.velocity = kept
        return kept

    def _record(self, before: Tensor, after: Tensor) -> None:
        self._steered += before.shape[:-1].numel()
        if not self._measure:
            return

        def add(name: str, total: Tensor) -> None:
            self._sums[name] = self._sums.get(name, torch.zeros_like(total)) + total

        step = (after.float() - before.float()).norm(dim=-1)
        add("moved", (step > 0).float().sum().cpu())
        add("displacement", step.sum().cpu())
        norm = before.float().norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        add("relative_displacement", (step / norm).sum().cpu())
        if self.steering.field.barrier is not None:
            add("log_odds_before", self.steering.log_odds(before).sum().cpu())
            add("log_odds_after", self.steering.log_odds(after).sum().cpu())


class _Displaced(torch.autograd.Function):
    """a(T) in value; in gradient a + constant."""

    @staticmethod
    def forward(_ctx: Any, _hidden: Tensor, steered: Tensor) -> Tensor:
        return steered.clone()  # an input given back as it is would count as a view

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


def _take_off(undo: Undo) -> None:
    while undo:
        undo.pop()()


def _forget(undo: Undo) -> None:
    _take_off(undo)
    warnings.warn(
        "A steering was taken off its model because nothing refers to its handle any more. Use "
        "`with steering.attach(model):`, or keep the handle: handle = steering.attach(model).",
        RuntimeWarning,
        stacklevel=2,
    )
