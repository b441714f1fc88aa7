"""Training of a field through the model, with a checkpoint an epoch.

A checkpoint holds everything that an epoch changes, until the run is done: one safetensors file,
with the numbers as JSON in its header, in the folder of the model's cached activations. Its name
is a hash of all that the run depends on, so that nothing else is resumed.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from odesteer import __version__
from odesteer.common.files import write_whole
from odesteer.extraction.cache import CacheChoice
from odesteer.extraction.cache_index import SUFFIX, activations_dir
from odesteer.extraction.extract import Progress, default_batch_tokens
from odesteer.extraction.packing import AnswerSlot, PromptWithAnswers, make_batch
from odesteer.extraction.score_texts import (
    LayerCache,
    kl,
    log_probabilities,
    vocabulary_size,
)
from odesteer.extraction.sensitivities import BATCH_LOGITS, frozen
from odesteer.methods.samples import Samples
from odesteer.methods.trained import OBJECTIVES, FieldParameters, Likelihoods, TrainedODESteer
from odesteer.models.batching import batches
from odesteer.models.capture import evaluating
from odesteer.models.fingerprint import fingerprint, obstacle
from odesteer.models.hooks.attach import scoring
from odesteer.models.layers import find_layers, input_device
from odesteer.ode import Angle, VectorField
from odesteer.steering import Steering


class Epoch(NamedTuple):
    """State after an epoch: held-out margin and KL, nats a token, and the margin at the budget."""

    margin: float
    kl: float
    at_budget: float


@dataclass
class TrainingState:
    """Everything that an epoch changes.

    Attributes:
        parameters: of the field.
        optimiser: Adam.
        generator: of the order, the directions and the angles.
        weight: of the KL, lambda.
        record: of the start and each epoch done.
        best: the parameters of the best of them.
    """

    parameters: nn.Module
    optimiser: torch.optim.Optimizer
    generator: np.random.Generator
    weight: float
    record: list[Epoch]
    best: dict[str, Tensor]

    def save(self, path: Path) -> None:
        """Write the state; a full disk is only a warning."""
        groups = {"now": self.parameters.state_dict(), "best": self.best}
        groups |= {str(i): each for i, each in self.optimiser.state_dict()["state"].items()}
        tensors = {f"{name}.{key}": x for name, each in groups.items() for key, x in each.items()}
        numbers = json.dumps([self.weight, self.record, self.generator.bit_generator.state])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, save(tensors, {"numbers": numbers}))
        except OSError as error:
            warnings.warn(f"An interrupted training cannot be resumed: {error}.", stacklevel=3)

    def load(self, path: Path) -> None:
        """Restore what `save` wrote; without such a file, or with a damaged one, do nothing."""
        with suppress(OSError, SafetensorError, ValueError), safe_open(path, "pt") as file:
            weight, record, drawn = json.loads((file.metadata() or {}).get("numbers", ""))
            groups: dict[str, dict[str, Tensor]] = {}
            for name in file.keys():  # noqa: SIM118
                group, key = name.split(".", 1)
                groups.setdefault(group, {})[key] = file.get_tensor(name).clone()
            self.parameters.load_state_dict(groups.pop("now"))
            self.best = groups.pop("best")
            adam = {int(i): each for i, each in groups.items()}
            self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": adam})
            self.generator.bit_generator.state = drawn
            self.weight, self.record = weight, [Epoch(*each) for each in record]


def checkpoint_path(choice: CacheChoice, model: nn.Module, run: Mapping[str, Any]) -> Path | None:
    """Return where a run is kept; None without a cache, or for a model without a fingerprint.

    Args:
        choice: of the cache.
        model: what the run trains through.
        run: everything else that it depends on, as JSON values.
    """
    if choice is False or obstacle(model) is not None:
        return None
    try:
        folder = activations_dir() if choice is True else Path(choice)
    except OSError:
        return None  # the activations have said why
    content = json.dumps({**run, "version": __version__}, sort_keys=True)
    key = hashlib.sha256(content.encode()).hexdigest()[:40]
    return folder / fingerprint(model) / "training" / f"{key}{SUFFIX}"


WARM_UP = 10  # steps
SPREAD = (0.6, 1.4)  # of the angle of a step, relative to that of the budget
DUAL_RATE = 0.1
# At most; a budget that no small angle has is found when the dose is.
LARGEST_ANGLE = 0.5


class Pair(NamedTuple):
    """A wanted and an unwanted text."""

    wanted: PromptWithAnswers
    unwanted: PromptWithAnswers


class _Batch:
    """Rows of some pairs, with what the blocks below the steered one compute kept.

    Row 2i is the wanted text of pair i, row 2i + 1 its unwanted one.
    """

    def __init__(self, model: Any, pairs: Sequence[Pair], layer: int):
        self.model, self.layer, self.size = model, layer, len(pairs)
        rows = [text for pair in pairs for text in pair]
        self.batch = make_batch(rows, [[AnswerSlot(i, 0)] for i in range(len(rows))], packed=False)
        self.tokens = torch.tensor(self.batch.lengths).unflatten(0, (self.size, 2))
        self.cache = LayerCache(find_layers(model), {layer - 1})
        with self.cache.recorded():
            log_probabilities(model, self.batch)

    def compare(
        self, field: VectorField, method: TrainedODESteer, angle: float, at: str
    ) -> tuple[Likelihoods, Tensor]:
        """Return the likelihoods of the texts, wanted first, and the sum of KL(p || q), in nats."""
        steering = Steering(field, Angle(angle), method.solver, method.steps, self.layer)
        with self.cache.replayed(self.layer):
            log_p = log_probabilities(self.model, self.batch)
            with (
                scoring(self.model, self.batch.prompts.to(log_p.device)),
                steering.attach(self.model, positions=at, differentiable=True),
            ):
                log_q = log_probabilities(self.model, self.batch, torch.is_grad_enabled())
        texts = Likelihoods(self._sums(log_q), self._sums(log_p), self.tokens)
        return texts, kl(log_p, log_q).sum().cpu()

    def _sums(self, log_probabilities_: Tensor) -> Tensor:
        """Return each row's log-likelihood, [pairs, 2]."""
        targets = self.batch.targets.to(log_probabilities_.device)
        chosen = log_probabilities_.gather(-1, targets[:, None])[:, 0].cpu()
        rows = torch.stack([part.sum() for part in chosen.split(self.batch.lengths)])
        return rows.unflatten(0, (self.size, 2))


def train(
    model: nn.Module,
    method: TrainedODESteer,
    samples: Samples,
    texts: Sequence[PromptWithAnswers],
    layer: int,
    budget: float,
    positions: str = "last+generated",
    seed: int = 0,
    progress: Progress | None = None,
    cache: CacheChoice = False,
) -> tuple[VectorField, list[int], list[Epoch]]:
    """Train a field; return it, the rows that it has not seen, and a record of the epochs.

    Args:
        model: a transformers causal language model.
        method: its hyperparameters.
        samples: activations and sensitivities of the texts.
        texts: of the samples' rows, positives first.
        layer: the steered block.
        budget: KL in nats a token.
        positions: which tokens are steered.
        seed: of the folds, the pairs, their order and the angles.
        progress: called with (steps done, steps in all).
        cache: True or a folder keeps the state after each epoch on disk: an interrupted training
            that is started again continues there, and gives the tensors of one that was not
            interrupted to the bit.
    """
    generator = np.random.default_rng(seed)
    folds = samples.folds(5, seed)
    rows = np.arange(len(texts))
    learn, held_out = folds[0] if folds else (rows, rows)
    parameters = method.parameters(samples.subset(learn), seed).float()
    angle = _angle(samples, parameters.field(), budget)
    parameters.to(next(find_layers(model)[layer].parameters()).device)
    n = len(samples.positive)
    run = {
        "method": [method.name, asdict(method)],
        "texts": [texts, n, None if samples.groups is None else samples.groups.tolist()],
        "settings": [layer, budget, positions, seed],
    }
    path = checkpoint_path(cache, model, run)
    optimiser = torch.optim.Adam(parameters.parameters(), lr=method.lr)
    state = TrainingState(parameters, optimiser, generator, method.kl_weight, [], {})
    bidirectional = OBJECTIVES[method.objective].bidirectional
    with evaluating(model), frozen(model):
        order = sorted(_pairs(texts, learn, n, generator), key=lambda pair: sum(_lengths(pair)))
        steps = [
            _batches(model, order[i : i + method.batch], layer)
            for i in range(0, len(order), method.batch)
        ]
        tests = _batches(model, _pairs(texts, held_out, n, generator), layer)
        total = method.epochs * len(steps)
        if path is not None:
            state.load(path)
        if not state.record:
            _finish_epoch(state, _evaluate(parameters, method, tests, angle, budget, positions))
        for epoch in range(len(state.record) - 1, method.epochs):
            for number, i in enumerate(generator.permutation(len(steps))):
                done = epoch * len(steps) + number
                rate = min(1.0, (done + 1) / WARM_UP) * (1.0 - done / total)
                for group in optimiser.param_groups:
                    group["lr"] = rate * method.lr
                sign = generator.choice([1.0, -1.0]) if bidirectional else 1.0
                size = sign * angle * generator.uniform(*SPREAD)
                optimiser.zero_grad()
                divergence = _accumulate(
                    parameters, method, steps[i], size, state.weight, positions
                )
                optimiser.step()
                # KL grows with the square of the angle.
                excess = divergence * (angle / size) ** 2 / budget - 1.0
                state.weight *= math.exp(DUAL_RATE * min(max(excess, -1.0), 1.0))
                if progress is not None:
                    progress(done + 1, total)
            _finish_epoch(state, _evaluate(parameters, method, tests, angle, budget, positions))
            if path is not None:
                state.save(path)
    if path is not None:
        path.unlink(missing_ok=True)
    parameters.load_state_dict(state.best)
    field = parameters.cpu().requires_grad_(False).field()
    return field, held_out.tolist(), state.record


def _finish_epoch(state: TrainingState, epoch: Epoch) -> None:
    """Record an epoch, and keep its parameters if it is the best so far."""
    if not state.record or epoch.at_budget > max(each.at_budget for each in state.record):
        state.best = {key: x.clone() for key, x in state.parameters.state_dict().items()}
    state.record.append(epoch)


def _accumulate(
    parameters: FieldParameters,
    method: TrainedODESteer,
    step: Sequence[_Batch],
    angle: float,
    weight: float,
    positions: str,
) -> float:
    """Add up the gradients of a step's loss, batch by batch; return its KL, nats a token."""
    objective = OBJECTIVES[method.objective]
    pairs = sum(batch.size for batch in step)
    tokens = sum(int(batch.tokens.sum()) for batch in step)
    divergence = 0.0
    with torch.enable_grad():
        for batch in step:
            texts, nats = batch.compare(parameters.field(), method, angle, positions)
            losses = objective.loss(texts if angle > 0 else texts.swapped(), method.preference)
            (losses.sum() / pairs + weight * nats / tokens).backward()
            divergence += float(nats.detach()) / tokens
    return divergence


def _evaluate(
    parameters: FieldParameters,
    method: TrainedODESteer,
    tests: Sequence[_Batch],
    angle: float,
    budget: float,
    positions: str,
) -> Epoch:
    margins, divergence, tokens = [], 0.0, 0
    with torch.no_grad():
        field = parameters.field()
        for batch in tests:
            texts, nats = batch.compare(field, method, angle, positions)
            above, below = ((texts.log_q - texts.log_p) / texts.tokens).unbind(dim=1)
            margins += (above - below).tolist()
            divergence += float(nats)
            tokens += int(batch.tokens.sum())
    margin, divergence = float(np.mean(margins)), divergence / tokens
    return Epoch(margin, divergence, margin * math.sqrt(budget / max(divergence, 1e-9)))


def _angle(samples: Samples, field: VectorField, budget: float) -> float:
    """Return the angle at which the start has the budget, to second order."""
    assert samples.scores is not None and samples.predicted is not None
    middle = samples.rows.mean(dim=0, keepdim=True).float()
    with torch.no_grad():
        direction = field(middle + 1e-3 * middle.norm()).flatten().double()
    scores = samples.scores.flatten(0, 1) @ direction
    tokens = float(samples.predicted.sum()) * samples.scores.shape[1]
    curvature = float(scores.square().sum()) / tokens
    return min(math.sqrt(2.0 * budget / max(curvature, 1e-12)), LARGEST_ANGLE)


def _pairs(
    texts: Sequence[PromptWithAnswers], rows: np.ndarray, n: int, generator: np.random.Generator
) -> list[Pair]:
    """Pair the wanted texts among the rows with unwanted ones: of the same row, or by lot."""
    wanted, unwanted = [i for i in rows if i < n], [i for i in rows if i >= n]
    if [i + n for i in wanted] != unwanted:
        size = max(len(wanted), len(unwanted))
        wanted, unwanted = (
            np.resize(generator.permutation(side), size).tolist() for side in (wanted, unwanted)
        )
    return [Pair(texts[i], texts[j]) for i, j in zip(wanted, unwanted, strict=True)]


def _lengths(pair: Pair) -> list[int]:
    """Return the number of tokens of both texts."""
    return [len(text.prompt) + len(text.answers[0]) for text in pair]


def _batches(model: Any, pairs: Sequence[Pair], layer: int) -> list[_Batch]:
    """Cut pairs into batches that bound the memory of a backward pass, as `sensitivities` does."""
    parts = batches(
        [2 * max(_lengths(pair)) for pair in pairs],
        tokens=default_batch_tokens(input_device(model)),
        weights=[vocabulary_size(model) * sum(len(t.answers[0]) for t in pair) for pair in pairs],
        weight=BATCH_LOGITS,
        longest_first=True,
    )
    return [_Batch(model, [pairs[i] for i in part], layer) for part in parts]
