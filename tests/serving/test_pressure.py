"""A request is steered right when it is cut up, preempted and read again."""

from typing import Any

import pytest
from tests.serving.mixed import LONGEST, requests
from tests.serving.served import COMPOSED, ENGINE, tokens
from vllm import LLM, SamplingParams

from odesteer.backends.vllm import options


@pytest.fixture(scope="module")
def engine(model_path: str, steerings: Any) -> LLM:
    return LLM(
        model_path,
        **{**ENGINE, "max_model_len": 256},
        enable_prefix_caching=True,
        max_num_batched_tokens=16,  # prompts are read in chunks of what is left of these
        max_num_seqs=12,
        num_gpu_blocks_override=24,
        disable_log_stats=False,
        **options(steerings, COMPOSED),
    )


def test_chunks_and_preemptions_change_nothing(engine: LLM, reference: Any) -> None:
    some = [(tokens(prompt), extra) for prompt, extra in requests()]
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in some],
        [
            SamplingParams(temperature=0, max_tokens=LONGEST, ignore_eos=True, extra_args=extra)
            for _, extra in some
        ],
        use_tqdm=False,
    )
    counts = {metric.name: getattr(metric, "value", None) for metric in engine.get_metrics()}
    assert counts["vllm:num_preemptions"] >= 3
    for (prompt, extra), output in zip(some, outputs, strict=True):
        assert list(output.outputs[0].token_ids) == reference(prompt, extra, LONGEST), extra
