"""Training data of a method and their validation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from odesteer.extraction.sensitivities import Sensitivity

Groups = Sequence[Any] | Tensor | np.ndarray
Progress = Callable[[int, int], None]  # steps done, total steps


@dataclass(frozen=True)
class Samples:
    """Activations of two classes at one layer.

    Attributes:
        positive: [n, d].
        negative: [m, d].
        groups: [n + m] integers, positives first; rows of a group (say, one prompt) are never
            split between fitting and testing.
        rewards: [n + m] graded labels, positives first, for methods that use them.
        prompts: [n, d], the last prompt token's activation of each pair, for methods that use it.
        margins, scores, predicted: sensitivities [n + m, d], [n + m, draws, d] and [n + m] of the
            rows, see `odesteer.extraction.sensitivities`, for methods that use them.
    """

    positive: Tensor
    negative: Tensor
    groups: np.ndarray | None = None
    rewards: Tensor | None = None
    prompts: Tensor | None = None
    margins: Tensor | None = None
    scores: Tensor | None = None
    predicted: Tensor | None = None

    @property
    def rows(self) -> Tensor:
        """All rows [n + m, d], positives first."""
        return torch.cat([self.positive, self.negative])

    @property
    def labels(self) -> np.ndarray:
        """Labels [n + m]: 1 for positive, 0 for negative."""
        return np.repeat([1, 0], [len(self.positive), len(self.negative)])

    @property
    def log_prior_odds(self) -> float:
        """log(n / m), to be subtracted from log-odds for a log density ratio."""
        return float(np.log(len(self.positive) / len(self.negative)))

    def folds(self, count: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Split rows by group, stratified: (fit, test) indices; empty if impossible."""
        if self.groups is None:
            return []
        labels = self.labels
        per_class = [len(np.unique(self.groups[labels == label])) for label in (0, 1)]
        count = min(count, *per_class)
        if count < 2:
            return []
        splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
        splits = splitter.split(labels, labels, self.groups)
        return [(fit, test) for fit, test in splits if 0 < labels[fit].sum() < len(fit)]

    def subset(self, index: np.ndarray) -> "Samples":
        """Take the samples at these indices of `rows`."""
        positive = index[index < len(self.positive)]
        negative = index[index >= len(self.positive)] - len(self.positive)
        return Samples(
            self.positive[positive],
            self.negative[negative],
            None if self.groups is None else self.groups[index],
            None if self.rewards is None else self.rewards[index],
            None if self.prompts is None else self.prompts[positive],
            *(
                None if each is None else each[index]
                for each in (self.margins, self.scores, self.predicted)
            ),
        )


def validate(
    name: str,
    needs_pairs: bool,
    positive: Tensor,
    negative: Tensor,
    groups: tuple[Groups, Groups] | None = None,
    rewards: tuple[Tensor, Tensor] | None = None,
    prompts: Tensor | None = None,
) -> Samples:
    """Return the data in float64.

    Raises:
        ValueError: for data that method `name` cannot learn from, with the reason.
    """
    shapes = f"positive {list(positive.shape)} and negative {list(negative.shape)}"
    if positive.dim() != 2 or negative.dim() != 2 or positive.shape[1] != negative.shape[1]:
        raise ValueError(
            f"{name} learns from matrices [n, d] and [m, d] of one width; got {shapes}. "
            f"Take both classes' activations from the same layer of the same model."
        )
    if len(positive) == 0 or len(negative) == 0:
        empty = "positive" if len(positive) == 0 else "negative"
        raise ValueError(
            f"{name} needs rows of both classes; the {empty} class is empty ({shapes}). "
            f"Give at least one example of each."
        )
    parts = [("positive", positive), ("negative", negative)]
    if prompts is not None:
        if prompts.shape != positive.shape or len(positive) != len(negative):
            raise ValueError(
                f"{name} takes one prompt activation a pair of rows; got prompts "
                f"{list(prompts.shape)} for {shapes}."
            )
        parts.append(("prompt", prompts))
    for label, rows in parts:
        count = int((~torch.isfinite(rows)).any(dim=1).sum())
        if count:
            raise ValueError(
                f"{name} needs finite activations; {count} of {len(rows)} {label} rows hold "
                f"NaN or infinity ({shapes}). Drop them, or load the model in float32 or "
                f"bfloat16 if it overflows in float16."
            )
    numbers = _as_groups(len(positive), len(negative), groups, name)
    if needs_pairs and (
        len(positive) != len(negative)
        or not np.array_equal(numbers[: len(positive)], numbers[len(positive) :])
    ):
        raise ValueError(
            f"{name} learns from pairs: row i of both classes answers the same prompt; "
            f"got {shapes}{'' if len(positive) != len(negative) else ' in other groups'}. "
            f"Pair them (Contrast.paired), or use caa, which needs no pairs."
        )
    return Samples(
        positive.detach().double(),
        negative.detach().double(),
        numbers,
        None if rewards is None else _as_rewards(positive, negative, rewards, name),
        None if prompts is None else prompts.detach().double(),
    )


def with_sensitivities(
    name: str, samples: Samples, both: tuple[Sensitivity, Sensitivity]
) -> Samples:
    """Return the samples with the sensitivities of both classes, in float64, for method `name`.

    Raises:
        ValueError: unless there is one for each row, of its width, and finite.
    """
    margins, scores, predicted = (
        torch.cat([getattr(each, name) for each in both]).detach().double()
        for name in ("margins", "scores", "tokens")
    )
    rows, width = len(samples.rows), samples.positive.shape[1]
    if margins.shape != (rows, width) or scores.shape[::2] != (rows, width):
        raise ValueError(
            f"{name} needs sensitivities, one a row [{rows}, {width}]; got margins "
            f"{list(margins.shape)} and scores {list(scores.shape)}."
        )
    if not bool(torch.isfinite(margins).all() and torch.isfinite(scores).all()):
        raise ValueError(
            f"{name} needs finite sensitivities, and these hold NaN or infinity: the model "
            f"overflows where it is differentiated. Load it in float32 or bfloat16."
        )
    return replace(samples, margins=margins, scores=scores, predicted=predicted)


def _as_groups(n: int, m: int, groups: tuple[Groups, Groups] | None, name: str) -> np.ndarray:
    if groups is None:
        both = [*range(n), *range(m)] if n == m else list(range(n + m))
    else:
        if len(groups) != 2 or len(groups[0]) != n or len(groups[1]) != m:
            raise ValueError(
                f"{name} needs one group a row: {n} and {m}; got "
                f"{' and '.join(str(len(part)) for part in groups)}."
            )
        both = [g.item() if isinstance(g, Tensor) else g for part in groups for g in part]
    return np.unique(np.array([str(g) for g in both]), return_inverse=True)[1]


def _as_rewards(
    positive: Tensor, negative: Tensor, rewards: tuple[Tensor, Tensor], name: str
) -> Tensor:
    sizes = [len(part) for part in rewards]
    both = torch.cat([torch.as_tensor(part).detach().double().flatten() for part in rewards])
    if sizes != [len(positive), len(negative)] or not bool(torch.isfinite(both).all()):
        raise ValueError(
            f"{name} takes one finite reward a row: {len(positive)} and {len(negative)}; got "
            f"{' and '.join(map(str, sizes))}."
        )
    return both.to(positive.device)
