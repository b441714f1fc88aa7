"""Does an engine that runs many requests at once steer each of them as transformers does alone?"""

import os
from typing import Any

import pytest
import torch

# In this process, so that a test can take a guard away.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from tests.serving.mixed import ENDS, SHARED, requests
from tests.serving.served import COMPOSED, ENGINE, language_model, steered, tokens
from vllm import LLM, SamplingParams

from odesteer.backends.vllm import ask, options

NEW = 12


@pytest.fixture(scope="module")
def engine(model_path: str, steerings: Any) -> LLM:
    return LLM(model_path, enable_prefix_caching=True, **ENGINE, **options(steerings, COMPOSED))


def generate(engine: LLM, some: list[tuple[str, Any]], **more: Any) -> list[Any]:
    params = [
        SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, extra_args=extra, **more)
        for _, extra in some
    ]
    prompts = [{"prompt_token_ids": tokens(prompt)} for prompt, _ in some]
    return engine.generate(prompts, params, use_tqdm=False)


def written(outputs: list[Any]) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.fixture(scope="module")
def expected(reference: Any) -> list[list[int]]:
    return [reference(tokens(prompt), extra, NEW) for prompt, extra in requests()]


def test_the_requests_are_worth_asking(expected: list[list[int]], reference: Any) -> None:
    """Most steerings change what is written, or the tests below would show nothing."""
    plain = [reference(tokens(prompt), None, NEW) for prompt, _ in requests()]
    changed = sum(a != b for a, b in zip(expected, plain, strict=True))
    assert changed >= 12


def test_a_mixed_batch_is_transformers_token_for_token(
    engine: LLM, expected: list[list[int]]
) -> None:
    assert written(generate(engine, requests())) == expected


def test_and_again_from_the_prefix_cache(engine: LLM, expected: list[list[int]]) -> None:
    outputs = generate(engine, requests())
    assert written(outputs) == expected
    assert sum(output.num_cached_tokens for output in outputs) >= 12 * 64


def test_the_probabilities_of_prompts_are_those_of_transformers(
    engine: LLM, named: dict[str, Any]
) -> None:
    model, _ = language_model()
    some = [(SHARED + ENDS[0], extra) for extra in (
        None, ask("vector", start="all"), ask("flow", start=20), ask("layers", start="all"),
        ask("heads", start=40),
    )]  # fmt: skip
    outputs = generate(engine, some, prompt_logprobs=0)
    sums = []
    for (prompt, extra), output in zip(some, outputs, strict=True):
        ids = torch.tensor([tokens(prompt)])
        with steered(model, named, extra, ids.shape[1], ids.shape[1]), torch.no_grad():
            logp = model(ids).logits[0, :-1].log_softmax(dim=-1)
        theirs = float(logp.gather(-1, ids[0, 1:, None]).sum())
        ours = sum(
            row[token].logprob
            for row, token in zip(output.prompt_logprobs[1:], ids[0, 1:].tolist(), strict=True)
        )
        assert ours == pytest.approx(theirs, abs=2e-3)
        sums.append(ours)
    assert len({round(one, 2) for one in sums}) == len(sums)


STRONG = ask("flow", angle=0.8, start="all")


def test_unsteered_requests_share_nothing_with_steered_ones(engine: LLM, reference: Any) -> None:
    prompt = SHARED + ENDS[1]
    for extra in (STRONG, None, ask("vector"), STRONG, None):
        (output,) = generate(engine, [(prompt, extra)])
        assert written([output]) == [reference(tokens(prompt), extra, NEW)]


def test_beginnings_before_the_first_steered_token_stay_shared(engine: LLM) -> None:
    engine.reset_prefix_cache()
    prompt = SHARED + ENDS[2]
    length = len(tokens(prompt))
    generate(engine, [(prompt, None)])
    (output,) = generate(engine, [(prompt, ask("flow"))])
    assert output.num_cached_tokens == (length - 1) // 32 * 32
    (output,) = generate(engine, [(prompt, ask("flow", start=40))])
    assert output.num_cached_tokens == 32
    (output,) = generate(engine, [(prompt, STRONG)])
    assert output.num_cached_tokens == 0


def test_without_the_guard_the_cache_would_serve_what_was_steered(
    engine: LLM, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the two tests above would say if blocks had no keys of ours: they can fail."""
    from vllm.v1.core import kv_cache_utils

    guarded = kv_cache_utils.generate_block_hash_extra_keys
    monkeypatch.setattr(kv_cache_utils, "generate_block_hash_extra_keys", guarded.__wrapped__)
    engine.reset_prefix_cache()
    prompt = SHARED + ENDS[1]
    generate(engine, [(prompt, STRONG)])
    (output,) = generate(engine, [(prompt, None)])
    assert written([output]) != [reference(tokens(prompt), None, NEW)]
    monkeypatch.undo()
    engine.reset_prefix_cache()


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (ask("nobody"), "Unknown steering 'nobody'"),
        (ask("prompted", target=0.9), "no barrier"),
        (ask("prompted", start="all"), "last_prompt or generated"),
        ({"odesteer": "{"}, "no JSON"),
    ],
)
def test_a_wrong_request_is_refused_and_the_engine_lives(
    engine: LLM, extra: Any, word: str, reference: Any
) -> None:
    with pytest.raises(Exception, match=word):
        generate(engine, [("The weather today is", extra)])
    (output,) = generate(engine, [("The weather today is", ask("flow"))])
    assert written([output]) == [reference(tokens("The weather today is"), ask("flow"), NEW)]


def test_what_was_moved_is_counted(engine: LLM) -> None:
    def counted() -> dict[str, float]:
        (worker,) = engine.collective_rpc("odesteer_stats")
        return {one["steering"]: one["tokens"] for one in worker if one["site"] == "residual"}

    before = counted()
    generate(engine, [("The weather today is", ask("vector", start="generated"))])
    after = counted()
    # The last token that is written is never read.
    assert after["vector"] - before["vector"] == NEW - 1
    assert after["flow"] == before["flow"]


def test_a_second_engine_in_one_process_is_refused(
    engine: LLM, model_path: str, steerings: Any
) -> None:
    with pytest.raises(Exception, match="one steered engine a process"):
        LLM(model_path, **ENGINE, **options({"vector": steerings["vector"]}))
