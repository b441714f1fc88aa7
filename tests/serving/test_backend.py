"""An experiment sees the same model through vLLM as through transformers.

One engine answers all; it takes most of the time to start.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests.serving.served import ENGINE, language_model

import odesteer as ods
from odesteer.backends.vllm import Engine, VLLMBackend

NEW = 12
PROMPTS = (
    "The weather today is",
    "Q: What is the capital of France?\nA:",
    "She opened the letter and",
)
# Of a log-probability, in nats: two engines add up in different orders.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def known(named: dict[str, Any]) -> dict[str, Any]:
    """What the engine has."""
    return {name: one for name, one in named.items() if name != "both"}


def ways(known: dict[str, Any], scored: bool) -> list[Any]:
    """Steerings of all kinds for one batch; `scored`: those that can act on a given answer."""
    found = [
        None,
        known["vector"],
        known["vector"].with_strength(-0.5),
        known["flow"].with_strength(ods.Angle(0.3)),
        known["aimed"],
        known["turn"].with_strength(0.6),
        known["heads"],
        known["layers"].with_strength(ods.Target(0.9, ods.Angle(0.3))),
    ]
    return found if scored else [*found, known["prompted"]]


@pytest.fixture(scope="module")
def engine(model_path: str, known: dict[str, Any]) -> Iterator[Engine]:
    # Two engines with all the cores each would wait for one another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
        with Engine(model_path, known, **ENGINE) as started:
            yield started
    torch.set_num_threads(threads)


def backends(engine: Engine, positions: str = "last+generated") -> tuple[Any, VLLMBackend]:
    model, tokenizer = language_model()
    return (
        ods.TransformersBackend(model, tokenizer, "plain", positions),
        VLLMBackend(engine, tokenizer, "plain", positions),
    )


@pytest.mark.parametrize("positions", ["last+generated", "generated", "all"])
def test_greedy_generations_and_their_logprobs_are_those_of_transformers(
    engine: Engine, known: dict[str, Any], positions: str
) -> None:
    reference, backend = backends(engine, positions)
    some = ways(known, scored=positions == "all")
    prompts, steerings = [p for p in PROMPTS for _ in some], some * len(PROMPTS)
    sampling = ods.Sampling(max_new_tokens=NEW)
    expected = reference.generate(prompts, steerings, sampling)
    assert backend.generate(prompts, steerings, sampling) == expected
    plain = reference.generate(PROMPTS, None, sampling)
    assert len(set(expected)) > 3 * len(set(plain))  # or nothing was shown
    some = ways(known, scored=True)
    prompts, steerings = [p for p in PROMPTS for _ in some], some * len(PROMPTS)
    answers = [text for text in plain for _ in some]
    one = reference.logprobs(prompts, answers, steerings)
    other = backend.logprobs(prompts, answers, steerings)
    assert [len(row) for row in one] == [len(row) for row in other]
    n, apart = len(torch.cat(one)), float((torch.cat(one) - torch.cat(other)).abs().max())
    print(f"{positions}: {len(expected)} texts, {n} log-probabilities, at most {apart:.1e} apart")
    assert apart < TOLERANCE


def test_repetition_is_penalised_alike(engine: Engine, known: dict[str, Any]) -> None:
    reference, backend = backends(engine)
    sampling = ods.Sampling(max_new_tokens=NEW, repetition_penalty=1.3)
    expected = reference.generate(PROMPTS, known["vector"], sampling)
    assert backend.generate(PROMPTS, known["vector"], sampling) == expected
    plain = ods.Sampling(max_new_tokens=NEW)
    assert backend.generate(PROMPTS, known["vector"], plain) != expected


def test_samples_of_one_prompt_differ_and_come_again_with_the_seed(
    engine: Engine, known: dict[str, Any]
) -> None:
    _, backend = backends(engine)
    drawn = [
        backend.generate(
            PROMPTS[:1] * 4, known["flow"], ods.Sampling(max_new_tokens=8, temperature=1, seed=seed)
        )
        for seed in (0, 0, 1)
    ]
    assert len(set(drawn[0])) > 1
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_empty_generation_has_no_logprobs(engine: Engine, known: dict[str, Any]) -> None:
    _, backend = backends(engine)
    empty, full = backend.logprobs(PROMPTS[:2], ["  ", "good"], known["vector"])
    assert len(empty) == 0 < len(full)


def test_the_workers_count_what_they_moved(engine: Engine, known: dict[str, Any]) -> None:
    _, backend = backends(engine)

    def tokens() -> int:
        return sum(one["tokens"] for one in engine.stats() if one["steering"] == "vector")

    before = tokens()
    backend.generate(PROMPTS[:1], known["vector"], ods.Sampling(max_new_tokens=3))
    # The prompt's last token and two of the three that follow: the last one is not read again.
    assert tokens() - before == 3
    before = tokens()
    backend.generate(PROMPTS[:1], known["vector"].with_strength(0.0))
    assert tokens() == before


def test_what_cannot_be_done_is_refused(engine: Engine, known: dict[str, Any]) -> None:
    _, backend = backends(engine)
    with pytest.raises(ValueError, match="do not fit into the engine's 512"):
        backend.generate(PROMPTS[:1], None, ods.Sampling(max_new_tokens=600))
    with pytest.raises(ValueError, match="cannot tell where the prompt ends"):
        backend.logprobs(PROMPTS[:1], ["good"], known["prompted"])
    with pytest.raises(ValueError, match="does not have the steering"):
        backend.generate(PROMPTS[:1], ~known["vector"])
