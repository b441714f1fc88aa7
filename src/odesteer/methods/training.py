"""Training loop shared by learnt methods.

One loop for all learnt methods: shuffled mini-batches from a generator, AdamW, optional
warm-up and cosine decay, a score after each epoch, early stopping, the best epoch restored.

    with learning():                                     # autograd on, whatever the caller did
        generator = torch.Generator().manual_seed(seed)  # for the weights and the shuffling
        fit, test = hold_out(samples, seed=seed)         # row indices; no group on both sides
        rows, labels = samples.rows.float(), ...         # made in here, so autograd takes them
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
    # network is trained in place and needs no gradient any more; give it back as wide as the
    # rows came, network.to(samples.positive.dtype): barriers are asked about those

The same seed gives the same tensors to the bit on one machine, and the global random state
is neither read nor changed. (A loss that draws numbers draws them from `generator` too.)
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
    """How long and how fast.

    Args:
        epochs: at most; each visits every row once.
        batch: rows a step; the last batch of an epoch may be smaller.
        lr: of AdamW at its highest.
        weight_decay: of AdamW, decoupled; 0 makes it Adam.
        warmup: share of all steps, in 0..1, over which the rate climbs linearly from 0.
        cosine: let the rate fall to 0 along a cosine after the warm-up; else it stays.
        patience: stop after so many epochs without a better score; None: never.
        clip: largest norm of a step's gradient; None: any.

    Raises:
        ValueError: for numbers that make no training.
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
        """At least `steps` steps on `rows` rows: more epochs, and as much more patience.

        A paper's epochs are meant for its data; on a few rows they are a few steps.
        """
        epochs = max(self.epochs, math.ceil(steps / math.ceil(rows / self.batch)))
        if self.patience is None or epochs == self.epochs:
            return replace(self, epochs=epochs)
        return replace(self, epochs=epochs, patience=self.patience * epochs // self.epochs)

    def rate(self, step: int, total: int) -> float:
        """The learning rate of step 0 <= step < total."""
        warm = math.ceil(self.warmup * total)
        if step < warm:
            return self.lr * (step + 1) / warm
        if not self.cosine:
            return self.lr
        return self.lr * 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


class Trained(NamedTuple):
    """What happened: the epoch kept (0-based), its score, and the mean loss of every epoch.

    Without a score the last epoch is kept and `score` is None.
    """

    epoch: int
    score: float | None
    losses: list[float]


@contextmanager
def learning() -> Iterator[None]:
    """Autograd is on inside, also under the caller's no_grad or inference_mode.

    A tensor made under inference_mode cannot enter autograd: inside, take a copy of it
    (any operation makes one: `samples.rows`, `.float()` to another type, `.clone()`).
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield


def by_pair(samples: Samples) -> Samples:
    """The samples of a method that learns from pairs: row i of both classes is one group."""
    pairs = np.arange(len(samples.positive))
    return samples if samples.groups is not None else replace(samples, groups=np.tile(pairs, 2))


def hold_out(samples: Samples, share: float = 0.2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(fit rows, validation rows): int64 indices into `samples.rows`, sorted.

    Both classes are on both sides in proportion, and no group is on two. Rows without
    groups are each their own. Where no such split exists (one group in a class) both are all
    rows: then a score is one of fit, and early stopping says nothing of new rows.
    """
    if samples.groups is None:
        own = np.arange(len(samples.positive) + len(samples.negative))
        samples = replace(samples, groups=own)
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
    """Change `tensors` in place until `loss` is small, and leave them without gradients.

    Args:
        tensors: floating-point leaves, such as `list(network.buffers())`; none of them made
            under inference_mode.
        loss: the mean loss [] of the rows at an int64 index [batch].
        rows: the indices to visit, [n] int64; or n, for 0..n-1.
        recipe: how long and how fast.
        generator: of the shuffling, on the CPU.
        score: higher is better; called without autograd after every epoch. The tensors of
            the best epoch are the ones left. None: those of the last.
        progress: called with (epochs done, epochs at most), at last with both equal.

    Raises:
        ValueError: if there are no rows.
        RuntimeError: if the loss or the score is not finite.
    """
    visited = torch.arange(rows) if isinstance(rows, int) else rows
    if len(visited) == 0:
        raise ValueError("Training needs at least one row; got none.")
    batches = math.ceil(len(visited) / recipe.batch)
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
                order = torch.randperm(len(visited), generator=generator).to(visited.device)
                summed = torch.zeros((), device=visited.device, dtype=torch.float32)
                for number, part in enumerate(visited[order].split(recipe.batch)):
                    for group in optimiser.param_groups:
                        group["lr"] = recipe.rate(epoch * batches + number, total)
                    optimiser.zero_grad()
                    now = loss(part)
                    now.backward()
                    if recipe.clip is not None:
                        torch.nn.utils.clip_grad_norm_(tensors, recipe.clip)
                    optimiser.step()
                    summed = summed + now.detach() * len(part)
                losses.append(_finite(float(summed) / len(visited), "loss", epoch, recipe))
                if score is not None:
                    with torch.no_grad():
                        reached = _finite(float(score()), "score", epoch, recipe)
                    if best is None or best.score is None or reached > best.score:
                        best = Trained(epoch, reached, losses)
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
