"""Steered model for lm-evaluation-harness, and its paired comparison with the unsteered one.

    python -m odesteer.integrations.lm_eval run --model odesteer \\
        --model_args pretrained=smollm2,steering=DIR,angle=0.2,positions=continuation \\
        --tasks arc_challenge

A request is a context and a continuation, and which tokens are steered depends on the boundary
between them. So likelihoods are computed here, with that boundary for every row and the padding
masked, and not by the harness's own pass, which knows neither:

    positions=continuation   the last token of the context and the continuation (the paper's)
    positions=all            every token of both
    neither                  the steering's own positions

The first two differ (by up to 0.3 nats a request in our measurements), so the choice is an argument
and stands among the results. Everything else is the harness's `HFLM`.

Source: Gao et al., "The Language Model Evaluation Harness",
https://doi.org/10.5281/zenodo.12608602
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from odesteer.common.registry import lookup
from odesteer.evaluation.benchmarks import TRANSFER
from odesteer.evaluation.statistics import Interval, interval
from odesteer.models.batching import batches, pad
from odesteer.models.hooks.attach import scoring
from odesteer.models.loading import SMOLLM2, load_model
from odesteer.ode import Angle, Dose
from odesteer.steering import Steering, load

POSITIONS = {"continuation": "last+generated", "all": "all"}
Request = tuple[Any, list[int], list[int]]


@register_model("odesteer")
class SteeredLM(HFLM):
    """Hugging Face model with a steering on it.

    Args:
        pretrained: a loaded model, or what `HFLM` takes, or "smollm2".
        steering: a steering, or a directory that `Steering.save_pretrained` has written; None: the
            unsteered model.
        strength: its dose, in integration time; None: its own.
        angle: its dose, as an angle; instead of `strength`.
        positions: "continuation" or "all", see above; None: the steering's own.
        arguments: of `HFLM`.

    Raises:
        ValueError: for unknown positions, two doses, a steering of another model, or an
            encoder-decoder model.
    """

    def __init__(
        self,
        pretrained: Any,
        steering: Steering | str | None = None,
        strength: Dose | float | None = None,
        angle: float | None = None,
        positions: str | None = None,
        **arguments: Any,
    ):
        if strength is not None and angle is not None:
            raise ValueError("strength and angle both say how far; give one of them.")
        if positions is not None:
            lookup(POSITIONS, positions, "positions")
        self.positions = positions
        if pretrained == SMOLLM2:
            pretrained, arguments["tokenizer"] = load_model(SMOLLM2)
        super().__init__(pretrained=pretrained, **arguments)
        if self.backend != "causal":
            raise ValueError("A steering is for a decoder; this is an encoder-decoder model.")
        chosen = load(steering) if isinstance(steering, str) else steering
        dose = Angle(angle) if angle is not None else strength
        self.steering = chosen if chosen is None or dose is None else chosen.with_strength(dose)
        with self._steered():
            pass  # a steering of another model fails before a task is read

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes beside its results, and the steering."""
        steering = self.steering
        return {
            **super().get_model_info(),
            "steering": None
            if steering is None
            else f"{steering.method} at layer {steering.layer}, {steering.dose}",
            "steered_positions": self.positions
            or (None if steering is None else steering.positions),
        }

    def _steered(self) -> AbstractContextManager[Any]:
        if self.steering is None:
            return nullcontext()
        return self.steering.attach(self.model, positions=POSITIONS.get(self.positions or ""))

    def _model_generate(self, *arguments: Any, **keywords: Any) -> Tensor:
        with self._steered():
            tokens: Tensor = super()._model_generate(*arguments, **keywords)
        return tokens

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        """Return (log p(continuation | context), whether greedy decoding writes it) by request."""
        from tqdm import tqdm

        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        size = override_bs or (self.batch_size if isinstance(self.batch_size, int) else 1)
        bar = tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0)
        lengths = [len(context) + len(continuation) for _, context, continuation in requests]
        for batch in batches(lengths, rows=size, longest_first=True):
            for i, result in zip(batch, self._score([requests[i] for i in batch]), strict=True):
                results[i] = result
                if requests[i][0] is not None:
                    self.cache_hook.add_partial("loglikelihood", requests[i][0], result)
            bar.update(len(batch))
        bar.close()
        return results

    def _score(self, requests: Sequence[Request]) -> Iterator[tuple[float, bool]]:
        rows, ends = [], []
        for _, context, continuation in requests:
            # The last token predicts nothing. Texts longer than the model's lose their beginning.
            rows.append((context + continuation)[-(self.max_length + 1) : -1])
            ends.append(min(len(continuation), len(rows[-1])))
        ids, mask = pad(rows, left=False, device=self.device)
        # The length of the context: all that was fed but the continuation.
        contexts = torch.tensor([len(row) + 1 - end for row, end in zip(rows, ends, strict=True)])
        with self._steered(), scoring(self.model, contexts.to(self.device)), torch.no_grad():
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row_logits, row, end, request in zip(logits, rows, ends, requests, strict=True):
            logp = row_logits[len(row) - end : len(row)].float().log_softmax(dim=-1)
            tokens = torch.tensor(request[2][-end:], device=logp.device)
            chosen = logp.gather(-1, tokens[:, None]).sum()
            yield float(chosen), bool((logp.argmax(dim=-1) == tokens).all())


class Delta(NamedTuple):
    """Metric of a task: both means, the paired difference, and whether higher is better."""

    task: str
    metric: str
    unsteered: float
    steered: float
    delta: Interval
    better: str

    @property
    def significant(self) -> bool:
        return self.delta.low > 0 or self.delta.high < 0


def paired(
    model: SteeredLM,
    tasks: Sequence[str],
    limit: int | None = None,
    shots: int | None = None,
    folder: str | None = None,
    seed: int = 0,
) -> list[Delta]:
    """Compare every metric of every task that has a value for each document.

        delta = mean_i (steered_i - unsteered_i),   95 % percentile bootstrap over documents

    Args:
        model: has the steering.
        tasks: names of the harness, or "transfer" for the three of the paper's table 8.
        limit: the number of documents of each task.
        shots: examples in the prompt, instead of the task's own number.
        folder: with task files of your own.
        seed: of the bootstrap, and of the harness.

    Raises:
        ValueError: for tasks that the harness does not have, or a model without a steering.
    """
    from lm_eval.tasks import TaskManager

    if model.steering is None:
        raise ValueError("Without a steering there is nothing to compare: give steering=DIR.")
    names = [name for task in tasks for name in _task_names(task)]
    manager = TaskManager(include_path=folder)
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise ValueError(
            f"lm-evaluation-harness has no task '{unknown[0]}'; "
            f"`python -m odesteer.integrations.lm_eval ls tasks` lists them."
        )
    steering = model.steering
    try:
        model.steering = None
        before = _evaluate(model, names, manager, limit, shots, seed)
        model.steering = steering
        after = _evaluate(model, names, manager, limit, shots, seed)
    finally:
        model.steering = steering
    return list(_compare(before, after, seed))


def _task_names(task: str) -> list[str]:
    return [name for name, _ in TRANSFER.values()] if task == "transfer" else [task]


def _evaluate(
    model: SteeredLM,
    tasks: list[str],
    manager: Any,
    limit: int | None,
    shots: int | None,
    seed: int,
) -> Mapping[str, Any]:
    from lm_eval import simple_evaluate

    results: Mapping[str, Any] = simple_evaluate(
        model=model,
        tasks=tasks,
        task_manager=manager,
        limit=limit,
        num_fewshot=shots,
        bootstrap_iters=0,  # the intervals are ours
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return results


def _compare(before: Mapping[str, Any], after: Mapping[str, Any], seed: int) -> Iterator[Delta]:
    for task, samples in before["samples"].items():
        pairs = {_key(sample): sample for sample in after["samples"][task]}
        higher = before["higher_is_better"].get(task, {})
        for metric in dict.fromkeys(name for sample in samples for name in sample["metrics"]):
            rows = [
                (sample[metric], pairs[_key(sample)][metric])
                for sample in samples
                if _is_number(sample.get(metric)) and _is_number(pairs[_key(sample)].get(metric))
            ]
            if not rows:
                continue  # a metric of all documents together, such as a corpus BLEU
            values = np.array(rows, dtype=float)
            yield Delta(
                task,
                metric,
                float(values[:, 0].mean()),
                float(values[:, 1].mean()),
                interval(values[:, 1] - values[:, 0], seed),
                "lower" if higher.get(metric) is False else "higher",
            )


def _key(sample: Mapping[str, Any]) -> tuple[Any, Any]:
    return sample["doc_id"], sample.get("filter")


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
