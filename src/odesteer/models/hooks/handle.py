"""Handle of a steering that is attached to a model.

A handle owns the forward hooks of a steering and undoes them: by `remove`, at the end of the
`with` block, or when nothing refers to the handle any more.
"""

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from odesteer.models.hooks.condition import Condition, Threshold
from odesteer.models.hooks.positions import PositionRule, check_packed, select_tokens
from odesteer.models.hooks.registration import (
    Undo,
    WeakHook,
    add_hook,
    force_recompile,
    undo_all,
)
from odesteer.models.hooks.stats import (
    Callback,
    Counts,
    RunningStats,
    StepStats,
    TokenTrace,
    exposition,
    measure,
)
from odesteer.models.hooks.token_tracker import ForwardCall, TokenTracker
from odesteer.models.layers import attention_output, block_output, hidden_size, replace_output
from odesteer.models.steers import Steers
from odesteer.ode import Dose, PerRow


class LayerHandle:
    """Handle of a steering at one layer; removing twice is harmless.

    A handle that nothing refers to any more removes its steering, with a warning.
    """

    def __init__(
        self,
        steering: Steers,
        model: nn.Module,
        block: nn.Module,
        positions: PositionRule | Tensor,
        rows: Sequence[int] | None,
        measure: bool,
        differentiable: bool = False,
        reader: "ConditionReader | None" = None,
    ):
        if not hasattr(LayerHandle, "_apply"):
            LayerHandle._apply = torch.compiler.disable(LayerHandle._steer)
        self.steering = steering
        self._differentiable = differentiable
        self._positions = positions
        self._rows = None if rows is None else torch.as_tensor(list(rows), dtype=torch.long)
        self._reader = reader
        self._measure = measure
        self._record = RunningStats()
        # Replaced, never changed: a pass in another thread keeps the callbacks it began with.
        self._callbacks: tuple[Callback, ...] = ()
        self._width = hidden_size(model)
        self._tracker = TokenTracker.of(model)
        self._local = threading.local()
        self._undo: Undo = []
        if reader is not None:
            self._undo.append(reader.remove)
        # Before the hooks: another thread may run them as soon as they are there.
        self._finalizer = weakref.finalize(self, _abandon, self._undo)
        self._finalizer.atexit = False
        try:
            # Weakly: what hangs on the model must not keep the handle.
            if steering.site == "heads":
                module = attention_output(block)
                add_hook(self._undo, module, "forward_pre_hook", WeakHook(self._on_input))
            else:
                add_hook(self._undo, block, "forward_hook", WeakHook(self._on_output))
            force_recompile(self._undo, block)
            tracker, user = self._tracker, object()
            self._undo.append(lambda: tracker.release(user))
            tracker.acquire(user, inside=steering.site == "heads")
        except BaseException:
            self.remove()
            raise

    @property
    def is_attached(self) -> bool:
        """Whether it is still on the model."""
        return self._finalizer.alive

    def remove(self) -> None:
        """Remove everything from the model."""
        if self._finalizer.alive:
            undo_all(self._undo)
            # Last: the finalizer does what is left to do if this is cut off.
            self._finalizer.detach()

    def set_strength(self, strength: Dose | float) -> None:
        """Change the dose while attached."""
        self.steering = self.steering.with_strength(strength)

    def stats(self) -> dict[str, float]:
        """Return running statistics; see `Handle.stats`."""
        seen, steered, sums = self._record.totals()
        means = {name: total / steered if steered else float("nan") for name, total in sums.items()}
        return {"tokens": float(seen), "steered": float(steered), **means}

    def trace(self) -> Tensor:
        """Return the steered tokens of the latest text; see `Handle.trace`."""
        return self._trace.mask()

    @property
    def _trace(self) -> TokenTrace:
        if not hasattr(self._local, "trace"):
            self._local.trace = TokenTrace()
        trace: TokenTrace = self._local.trace
        return trace

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` with a `StepStats` after each pass; return the unsubscriber.

        It is called in the thread that runs the model, before the next block, so it should be
        quick; what it raises ends the forward pass. Everything is measured while there is a
        callback, as with `measure=True`.
        """
        # Its own object, so that a callback that subscribes twice is told twice and ends once.
        entry: Callback = lambda stats: callback(stats)  # noqa: E731
        self._callbacks = (*self._callbacks, entry)

        def unsubscribe() -> None:
            self._callbacks = tuple(each for each in self._callbacks if each is not entry)

        return unsubscribe

    def counts(self, name: str | None = None) -> Counts:
        """Return the totals so far under `name`, or the method's; see `Handle.prometheus`."""
        return Counts(name or self.steering.method, self.steering.layer, *self._record.totals())

    def _on_output(self, _module: nn.Module, _args: Any, output: Any) -> Any:
        hidden = block_output(output)
        steered = self._apply(hidden, self._width)
        return output if steered is hidden else replace_output(output, steered)

    def _on_input(self, _module: nn.Module, args: Any) -> Any:
        steered = self._apply(args[0])
        return None if steered is args[0] else (steered, *args[1:])

    # `_steer` as a break in a compiled graph, on purpose: what the hook does depends on the tokens
    # of the call and on a dose that may change, which a graph would have to be compiled for anew.
    # Set by the first handle: `disable` imports torch._dynamo, which takes longer than torch, and
    # commands that attach nothing do not need it.
    _apply: ClassVar[Callable[..., Tensor]]

    def _steer(self, hidden: Tensor, width: int | None = None) -> Tensor:
        if not self._finalizer.alive:
            return hidden  # a copy of the hook, as quantising a steered module in place makes
        block_output(hidden, self._tracker.tokens, width)  # refuses what is not these tokens'
        call, again = self._tracker.call_of(hidden)
        if not again and call is getattr(self._local, "ran", None):
            raise ValueError(
                "A steered block ran twice in one forward pass: odesteer cannot tell the passes "
                "of a recurrent-depth model apart. Steer a block that runs once."
            )
        self._local.ran = call
        if call.obstacle:
            conditional = self._rows is not None or self._reader is not None
            rows = conditional or isinstance(self.steering.dose, PerRow)
            prompt_conditioned = self.steering.field.prompt_conditioned
            check_packed(call.obstacle, self._positions, rows, prompt_conditioned)
        velocity = self._velocity(hidden, call) if self.steering.field.prompt_conditioned else None
        mask = select_tokens(self._positions, call, hidden)
        mine: list[Tensor] = []
        if self._rows is not None:
            mine.append(self._tracker.expand_rows(self._rows, hidden.shape[0]))
        if self._reader is not None:
            mine.append(self._reader.rows(hidden.shape[0]))
        for each in mine:
            every = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
            mask = (every if mask is None else mask) & each.to(hidden.device)[:, None]
        if velocity is not None:
            velocity = velocity.unsqueeze(1).expand(*hidden.shape[:2], -1)
        if mask is None:
            dose = self.steering.dose
            before, after = hidden, self.steering(hidden, velocity, dose, self._differentiable)
            result = after
        else:
            before = hidden[mask]
            dose = self.steering.dose
            if isinstance(dose, PerRow):
                dose = dose.at(mask.nonzero()[:, 0], len(mask))
            velocity = None if velocity is None else velocity[mask]
            after = self.steering(before, velocity, dose, self._differentiable)
            result = hidden
            if after is not before and self._differentiable:
                result = hidden.masked_scatter(mask.unsqueeze(-1), after)
            elif after is not before:
                result = hidden.detach().clone()
                result[mask] = after.detach()
        if not again:
            of_row = None if mask is None else mask.nonzero()[:, 0]
            seen = hidden.shape[:-1].numel()
            self._trace.add(call.offset, hidden.shape[0], hidden.shape[1], mask)
            self._tell(before.detach(), after.detach(), of_row, seen, velocity, dose)
        if self._differentiable:
            return result
        if result is not hidden and torch.is_grad_enabled() and hidden.requires_grad:
            return _Displaced.apply(hidden, result)
        return result

    def _velocity(self, hidden: Tensor, call: ForwardCall) -> Tensor:
        """Return the field at each prompt's last token, [b, d]; 0 until it was read."""
        batch, t, d = hidden.shape
        kept: Tensor | None = getattr(self._local, "velocity", None)
        if kept is None or call.offset <= 0 or len(kept) != batch:
            kept = torch.zeros(batch, d, device=hidden.device)
        last = call.prompt_ends(batch, hidden.device) - call.offset
        here = (last >= 0) & (last < t)
        if bool(here.any()):
            rows = torch.arange(batch, device=hidden.device)
            prompts = hidden[rows, last.clamp(0, t - 1)]
            kept = torch.where(here[:, None], self.steering.velocity(prompts), kept)
        self._local.velocity = kept
        return kept

    def _tell(
        self,
        before: Tensor,
        after: Tensor,
        rows: Tensor | None,
        seen: int,
        velocity: Tensor | None,
        dose: Dose,
    ) -> None:
        """Count tokens and, on demand, measure them; `rows` [n], None for every token."""
        callbacks = self._callbacks
        steered = before.shape[:-1].numel()
        self._record.count(seen, steered)
        if not (self._measure or callbacks):
            return
        if rows is None:
            rows = torch.arange(before.shape[0]).repeat_interleave(before.shape[1])
        stats = measure(self.steering, seen, rows, before, after, velocity, dose)
        self._record.add(stats)
        for callback in callbacks:
            callback(stats)


class ConditionReader:
    """Reader of a condition in a model's running text, by handles that move nothing.

    Args:
        condition: what is read.
        model: that runs.
        blocks: of each of the condition's thresholds.
    """

    def __init__(self, condition: Condition, model: nn.Module, blocks: Sequence[nn.Module]):
        self._condition, self._readings, self._handles = condition, [], []
        last = PositionRule.parse("last")
        for threshold, block in zip(condition.thresholds, blocks, strict=True):
            part = threshold.part.with_strength(0.0)
            handle = LayerHandle(part, model, block, last, None, False)
            reading = threading.local()
            handle.subscribe(_reading_into(reading, threshold))
            self._readings.append(reading)
            self._handles.append(handle)

    def rows(self, batch: int) -> Tensor:
        """Return the rows of the text whose prompts satisfy the condition, [batch]."""
        masks = []
        for reading in self._readings:
            mask = torch.zeros(batch, dtype=torch.bool)
            rows: Tensor = getattr(reading, "rows", torch.empty(0, dtype=torch.long))
            mask[rows[rows < batch]] = True
            masks.append(mask)
        return self._condition.combine(masks)

    def remove(self) -> None:
        """Remove everything from the model."""
        for handle in self._handles:
            handle.remove()


def _reading_into(reading: threading.local, threshold: Threshold) -> Callback:
    """Return a callback that keeps the rows at which a threshold holds.

    It knows the store alone: a reference to the reader would keep its handles alive.
    """

    def read(stats: StepStats) -> None:
        if len(stats.rows):
            assert stats.log_odds_before is not None  # it has a barrier
            reading.rows = stats.rows[threshold.holds(stats.log_odds_before)]

    return read


class Handle:
    """Handle of a steering at all its layers, also a context manager.

    Removing it twice is harmless. A handle that nothing refers to any more removes its steering,
    with a warning.
    """

    def __init__(self, parts: Sequence[LayerHandle]):
        self.parts = tuple(parts)

    def __enter__(self) -> "Handle":
        if not all(part.is_attached for part in self.parts):
            raise ValueError(
                "This steering was taken off its model, and its handle cannot put it back: attach "
                "it anew with steering.attach(model)."
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove everything from the model."""
        for part in reversed(self.parts):
            part.remove()

    def set_strength(self, strength: Dose | float) -> None:
        """Change the dose of every layer while attached."""
        for part in self.parts:
            part.set_strength(strength)

    def stats(self) -> dict[str, float]:
        """Return running statistics, averaged over the layers.

        `tokens` the block has seen (padding included), `steered` of them, and with
        `measure=True` means over the steered ones: share `moved`, `displacement`
        ||a(T) - a||, `relative_displacement` to ||a||, `log_odds_before` and
        `log_odds_after` (where the method has a barrier), and the share that ended in each way:
        `reached`, `already_there`, `budget_spent`, `stuck`, `infeasible`, `not_finite`
        (`odesteer.ode.Result`).
        """
        stats = [part.stats() for part in self.parts]
        shared = [key for key in stats[0] if all(key in each for each in stats)]
        return {key: sum(each[key] for each in stats) / len(stats) for key in shared}

    def trace(self) -> Tensor:
        """Return which tokens of the latest text the steering acted on, [rows, positions].

            with steering.attach(model, positions="prompt[-4:]+generated[:32]") as handle:
                model.generate(**inputs)
            handle.trace().sum(dim=1)

        Positions count from the first token of the padded prompt, so that the mask chooses the same
        tokens as the `positions` of `attach`. The last token that is generated is never read, and
        has none. With beams, rows are beams. The latest text is what this thread read since the
        last call that began a text; it is kept after the handle is removed.

        Raises:
            ValueError: before the model has run in this thread.
        """
        return self.parts[0].trace()

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call `callback` with a `StepStats` after each pass; return the unsubscriber.

        It is called in the thread that runs the model, before the next block, so it should be
        quick; what it raises ends the forward pass. Everything is measured while there is a
        callback, as with `measure=True`.
        """
        ends = [part.subscribe(callback) for part in self.parts]

        def unsubscribe() -> None:
            for end in ends:
                end()

        return unsubscribe

    def counts(self, name: str | None = None) -> list[Counts]:
        """Return the totals of every layer under `name`, or the method's where it is None."""
        return [part.counts(name) for part in self.parts]

    def prometheus(self, name: str | None = None) -> str:
        """Return the totals in Prometheus' text format, with `name` as their label.

        Tokens seen and steered; with `measure=True` also displacement and log-odds, whose means
        are sums over `odesteer_steered_tokens_total`, and how many ended in each way.
        """
        return exposition(self.counts(name))


class _Displaced(torch.autograd.Function):
    """Autograd function with the value a(T) and the gradient of a + constant."""

    @staticmethod
    def forward(_ctx: Any, _hidden: Tensor, steered: Tensor) -> Tensor:
        return steered.clone()  # an input given back as it is would count as a view

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


def _abandon(undo: Undo) -> None:
    undo_all(undo)
    warnings.warn(
        "A steering was taken off its model because nothing refers to its handle any more. Use "
        "`with steering.attach(model):`, or keep the handle: handle = steering.attach(model).",
        RuntimeWarning,
        stacklevel=2,
    )
