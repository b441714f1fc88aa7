"""The steered rows are those of the right tokens, however an engine cuts them."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tests.helpers.position_rules import meant

from odesteer.backends.vllm.batch import ScheduledRequest, StepBatch, group_by_dose
from odesteer.backends.vllm.request import ask
from odesteer.backends.vllm.runner_hooks import RunnerSteering, scheduled_v1, scheduled_v2
from odesteer.ode import Angle, ConstantField, DoseBatch, Time
from odesteer.steering import LayerSteering

RULES = ["all", "last", "generated", 3, 14, "prompt[1:3]+generated[2:5]", "all-prompt[-2:]"]


def first(requests: list[dict]) -> list[ScheduledRequest]:
    """A batch in the form of the first runner."""
    counts = [one["count"] for one in requests]
    states = {
        one["id"]: SimpleNamespace(
            sampling_params=SimpleNamespace(extra_args=one["extra"]),
            num_prompt_tokens=one["prompt"],
        )
        for one in requests
    }
    runner = SimpleNamespace(
        input_batch=SimpleNamespace(
            req_ids=[one["id"] for one in requests],
            # Longer than the batch, as it is.
            num_computed_tokens_cpu=np.array([*(one["computed"] for one in requests), 99, 99]),
        ),
        query_start_loc=SimpleNamespace(np=np.cumsum([0, *counts, 0, 0])),
        requests=states,
    )
    return scheduled_v1(runner)


def second(requests: list[dict]) -> list[ScheduledRequest]:
    """A batch in the form of the second runner."""
    served = RunnerSteering([])
    for one in requests:
        served.remember(one["id"], SimpleNamespace(extra_args=one["extra"]), one["prompt"])
    batch = SimpleNamespace(
        req_ids=[one["id"] for one in requests],
        query_start_loc_np=np.cumsum([0, *(one["count"] for one in requests)]),
        num_computed_tokens_np=np.array([one["computed"] for one in requests]),
    )
    return scheduled_v2(batch, served)


def request(name: str, count: int, computed: int, prompt: int, rule: str | int | None) -> dict:
    where = "start" if isinstance(rule, int) else "positions"
    extra = None if rule is None else ask("s", **{where: rule})
    return {"id": name, "count": count, "computed": computed, "prompt": prompt, "extra": extra}


@pytest.mark.parametrize("runner", [first, second])
def test_a_mixed_batch_has_the_rows_of_its_tokens(runner) -> None:
    batch = [
        request("prefill", 10, 0, 10, "last+generated"),  # rows 0-9: 9
        request("plain", 4, 0, 4, None),  # 10-13: none
        request("decode", 1, 12, 10, "generated"),  # 14
        request("chunk", 6, 6, 20, "last+generated"),  # 15-20: position 19 is not there yet
        request("last chunk", 8, 12, 20, "last+generated"),  # 21-28: position 19 is row 28
        request("recompute", 15, 0, 10, "generated"),  # 29-43: positions 10-14 are 39-43
        request("guesses", 4, 11, 10, "all"),  # 44-47, all of them
        request("read only", 5, 5, 10, "generated"),  # 48-52: none yet
    ]
    step = StepBatch.of(runner(batch))
    rows = {share.scheduled.request_id: list(share.rows) for share in step.spans["s"]}
    assert rows == {
        "prefill": [9],
        "decode": [14],
        "last chunk": [28],
        "recompute": [39, 40, 41, 42, 43],
        "guesses": [44, 45, 46, 47],
    }
    assert step.prompt_ends["s"] == [
        ("prefill", 9),
        ("last chunk", 28),
        ("recompute", 38),
        ("read only", 52),
    ]


@pytest.mark.parametrize("runner", [first, second])
@pytest.mark.parametrize("seed", range(40))
def test_however_a_sequence_is_cut_each_position_is_steered_as_in_one_pass(runner, seed) -> None:
    """Chunks, preemption with recompute, guesses that are refused: the same positions."""
    rng = random.Random(seed)
    prompt, length = rng.randint(1, 12), rng.randint(12, 20)
    rule = rng.choice(RULES)
    text = list(range(length))
    wanted = text[rule:] if isinstance(rule, int) else meant(rule, text[:prompt], text[prompt:])
    computed = 0
    while computed < length:
        if rng.random() < 0.15:
            computed = 0  # preempted: everything is read again
        count = rng.randint(1, length - computed)
        before = rng.randint(0, 5)  # rows of another request
        others = [request("other", before, 3, 5, None)] if before else []
        step = StepBatch.of(runner([*others, request("r", count, computed, prompt, rule)]))
        rows = [row for share in step.spans.get("s", []) for row in share.rows]
        positions = [row - before + computed for row in rows]
        assert positions == [p for p in range(computed, computed + count) if p in wanted]
        computed += rng.randint(1, count) if prompt <= computed else count


def test_a_request_that_names_no_positions_gets_those_of_its_steering() -> None:
    batch = first([{**request("r", 10, 0, 10, None), "extra": ask("s")}])
    for own, rows in (("all", [*range(10)]), ("prompt[:2]", [0, 1])):
        [span] = StepBatch.of(batch, {"s": own}).spans["s"]
        assert list(span.rows) == rows


def test_pooling_requests_and_others_arguments_are_none_of_ours() -> None:
    batch = [request("r", 3, 0, 3, None)]
    batch[0]["extra"] = {"somebody else's": 1}
    assert StepBatch.of(first(batch)).spans == {}


def test_a_request_that_ended_is_forgotten() -> None:
    served = RunnerSteering([])
    served.remember("r", SimpleNamespace(extra_args=ask("s")), 3)
    assert served.remembered("r")[1] == 3
    served.forget({"r"})
    assert served.remembered("r") == ((), 0)


UNIT = LayerSteering(ConstantField(torch.ones(2)), Time(1.0))


def shares(*extras: dict) -> list:
    batch = [request(str(i), 2, 5, 5, "all") for i in range(len(extras))]
    for one, extra in zip(batch, extras, strict=True):
        one["extra"] = extra
    return StepBatch.of(first(batch)).spans["s"]


def test_rows_of_one_dose_have_it_and_rows_of_many_have_a_table() -> None:
    ((dose, some),) = group_by_dose(shares(ask("s", angle=0.2), ask("s", angle=0.2)), UNIT)
    assert dose == Angle(0.2) and len(some) == 2
    ((dose, some),) = group_by_dose(
        shares(ask("s", angle=0.2), ask("s"), ask("s", target=0.9)), UNIT
    )
    assert isinstance(dose, DoseBatch) and len(some) == 3
    assert dose.numbers.tolist() == [
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
        [0.2, 0.2, 0, 0, 0, 0],
        [1, 1, 1, 1, 0.9, 0.9],
    ]


def test_forwards_and_backwards_go_apart_and_nothing_goes_nowhere() -> None:
    found = group_by_dose(
        shares(ask("s", strength=1), ask("s", strength=-2), ask("s", strength=0)), UNIT
    )
    assert [(dose.size, len(some)) for dose, some in found] == [(1.0, 1), (-2.0, 1)]
