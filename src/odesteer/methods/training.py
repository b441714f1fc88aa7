"""Training loop shared by learnt methods.

Shuffled mini-batches from a generator, AdamW, optional
warm-up and cosine decay, a score after each epoch, early stopping, the best epoch restored.

    with learning():                                     # autograd on, also under no_grad
        generator = torch.Generator().manual_seed(seed)  # for the weights and the shuffling
        fit, test = hold_out(samples, seed=seed)         # row indices; no group on both sides
        rows, labels = samples.rows.float(), ...         # made inside, for autograd
        network = Network.draw([d, 64, 1], "silu", generator).to(rows.device)
        train(
            list(network.buffers()),
            lambda index: criterion(network(rows[index]), labels[index]),
            fit,
            Recipe(epochs=100, batch=64, patience=10),
            generator,
            score=lambda: -float(criterion(network(rows[test]), labels[test])),
            progress=progress,
        )
    # The network is trained in place. Return it in the precision of the rows,
    # network.to(samples.positive.dtype), in which barriers are evaluated.

The same seed gives the same tensors to the bit on one machine, and the global random state is
neither read nor changed. (A loss that draws numbers should use `generator` too.)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from odesteer.methods.samples import Progress, Samples


@dataclass(frozen=True)
class Recipe:
    """Settings of a training run.

    Args:
        epochs: at most; each visits every row once.
        batch: rows in a step; the last batch of an epoch may be smaller.
        lr: maximum learning rate of AdamW.
        weight_decay: of AdamW, decoupled; 0 makes it Adam.
        warmup: fraction of all steps, in 0..1, over which the rate increases linearly from 0.
        cosine: decay the rate to 0 along a cosine after the warm-up; else it is constant.
        patience: stop after this number of epochs without a better score; None: never.
        clip: maximum norm of a step's gradient; None for no clipping.

    Raises:
        ValueError: for values out of range.
    """

    epochs: int = 100
    batch: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.0
    warmup: float = 0.0
    cosine: bool = False
    patience: int | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch < 1 or not self.lr > 0:
            raise ValueError(
                f"Training needs epochs >= 1, batch >= 1 and lr > 0; got {self.epochs}, "
                f"{self.batch} and {self.lr}."
            )
        if self.weight_decay < 0 or not 0.0 <= self.warmup <= 1.0:
            raise ValueError(
                f"Training needs weight_decay >= 0 and 0 <= warmup <= 1; got {self.weight_decay} "
                f"and {self.warmup}."
            )

    def for_steps(self, steps: int, rows: int) -> "Recipe":
        """Raise epochs, and patience in proportion, to at least `steps` steps on `rows` rows.

        A paper's epochs are meant for its data; on few rows they are few steps.
        """
        epochs = max(self.epochs, math.ceil(steps / math.ceil(rows / self.batch)))
        if self.patience is None or epochs == self.epochs:
            return replace(self, epochs=epochs)
        return replace(self, epochs=epochs, patience=self.patience * epochs // self.epochs)

    def rate(self, step: int, total: int) -> float:
        """Return the learning rate of step 0 <= step < total."""
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / warm
        if not self.cosine:
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class Trained(NamedTuple):
    """Epoch kept (0-based), its score, and the mean loss of every epoch.

    Without a score the last epoch is kept and `score` is None.
    """

    epoch: int
    score: float | None
    losses: list[float]


@contextmanager
def learning() -> Iterator[None]:
    """Enable autograd, also under the caller's no_grad or inference_mode.

    A tensor made under inference_mode cannot enter autograd: copy it inside (any operation does:
    `samples.rows`, `.float()` to another type, `.clone()`).
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


def by_pair(samples: Samples) -> Samples:
    """Group samples by pairs, row i of both classes, unless they have groups."""
    pairs = np.arange(len(samples.positive))
    return samples if samples.groups is not None else replace(samples, groups=np.tile(pairs, 2))


def hold_out(samples: Samples, share: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Split into (fit rows, validation rows): sorted int64 indices into `samples.rows`.

    The split is stratified by class and keeps groups together; without groups each row is one. If
    no such split exists (one group in a class), both are all rows: scores and early stopping then
    measure the fit, not generalisation.
    """
    if samples.groups is None:
        groups = np.arange(len(samples.positive) + len(samples.negative))
        samples = replace(samples, groups=groups)
    folds = samples.folds(max(2, round(1.0 / share)), seed)
    everything = np.arange(len(samples.labels))
    fit, test = folds[0] if folds else (everything, everything)
    if len(np.unique(samples.labels[test])) < 2:
        fit = test = everything
    device = samples.positive.device
    return torch.as_tensor(fit, device=device), torch.as_tensor(test, device=device)


def train(
    tensors: Sequence[Tensor],
    loss: Callable[[Tensor], Tensor],
    rows: Tensor | int,
    recipe: Recipe,
    generator: torch.Generator,
    *,
    score: Callable[[], float] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Minimise `loss` over `tensors` in place; leave them without gradients.

    Args:
        tensors: floating-point leaves, such as `list(network.buffers())`, not made under
            inference_mode.
        loss: mean loss [] of the rows at an int64 index [batch].
        rows: indices of the training rows, [n] int64; or n, for 0..n-1.
        recipe: settings of the run.
        generator: of the shuffling, on the CPU.
        score: called without autograd after every epoch, higher is better. The tensors of the best
            epoch are restored; without a score, those of the last are kept.
        progress: called with (epochs done, maximum epochs), at the end with both equal.

    Raises:
        ValueError: if there are no rows.
        RuntimeError: if the loss or the score is not finite.
    """
    index = torch.arange(rows) if isinstance(rows, int) else rows
    if len(index) == 0:
        raise ValueError("Training needs at least one row; got none.")
    batches = math.ceil(len(index) / recipe.batch)
    total = recipe.epochs * batches
    losses: list[float] = []
    best: Trained | None = None
    kept: list[Tensor] = []
    with learning():
        for tensor in tensors:
            tensor.requires_grad_(True)
        try:
            optimiser = torch.optim.AdamW(tensors, recipe.lr, weight_decay=recipe.weight_decay)
            for epoch in range(recipe.epochs):
                order = torch.randperm(len(index), generator=generator).to(index.device)
                summed = torch.zeros((), device=index.device, dtype=torch.float32)
                for batch, part in enumerate(index[order].split(recipe.batch)):
                    for group in optimiser.param_groups:
                        group["lr"] = recipe.rate(epoch * batches + batch, total)
                    optimiser.zero_grad()
                    batch_loss = loss(part)
                    batch_loss.backward()
                    if recipe.clip is not None:
                        torch.nn.utils.clip_grad_norm_(tensors, recipe.clip)
                    optimiser.step()
                    summed = summed + batch_loss.detach() * len(part)
                losses.append(_finite(float(summed) / len(index), "loss", epoch, recipe))
                if score is not None:
                    with torch.no_grad():
                        epoch_score = _finite(float(score()), "score", epoch, recipe)
                    if best is None or best.score is None or epoch_score > best.score:
                        best = Trained(epoch, epoch_score, losses)
                        kept = [tensor.detach().clone() for tensor in tensors]
                if progress is not None:
                    progress(epoch + 1, recipe.epochs)
                if best and recipe.patience is not None and epoch - best.epoch >= recipe.patience:
                    break
        finally:
            for tensor in tensors:
                tensor.requires_grad_(False)
                tensor.grad = None
        for tensor, value in zip(tensors, kept, strict=bool(kept)):
            tensor.copy_(value)
    if progress is not None and len(losses) < recipe.epochs:
        progress(recipe.epochs, recipe.epochs)
    return best or Trained(len(losses) - 1, None, losses)


def _finite(number: float, what: str, epoch: int, recipe: Recipe) -> float:
    if not math.isfinite(number):
        raise RuntimeError(
            f"The {what} of epoch {epoch + 1} is {number}: training diverged at lr {recipe.lr}. "
            f"A smaller lr, a longer warm-up or gradient clipping (clip=1.0) may help."
        )
    return number
