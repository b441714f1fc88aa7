"""Does a model that is spread over two workers steer as the whole one does?"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.serving.served import ENGINE, greedy
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

import odesteer as ods
from odesteer.backends.vllm import ask, options
from odesteer.ode import ConstantField

D, LAYER, NEW = 128, 1, 16
ASKS = (
    None,
    ask("vector"),
    ask("vector", strength=-1.0, start="all"),
    ask("flow"),
    ask("flow", start="generated", angle=0.5),
    ask("flow", target=0.9, angle=1.0, start=2),
)


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=D,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,  # so that it is sure of what comes next
    )
    return LlamaForCausalLM(config).eval()


def fitted() -> dict[str, ods.Steering]:
    generator = torch.Generator().manual_seed(1)
    shift = torch.nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    rows = torch.randn(200, D, generator=generator)
    flow = ods.ODESteer().fit(rows[:100] + 2 * shift, rows[100:] - 2 * shift, layer=LAYER)
    vector = ods.Steering(ConstantField(8.0 * shift), layer=LAYER)
    return {"vector": vector, "flow": flow.with_strength(ods.Angle(0.6))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    tiny().save_pretrained(folder / "model")
    for name, one in fitted().items():
        one.save_pretrained(folder / name)
    return folder


def test_two_workers_write_what_one_model_does(folder: Path, monkeypatch: Any) -> None:
    engine = LLM(
        str(folder / "model"),
        **{**ENGINE, "max_model_len": 128},
        skip_tokenizer_init=True,
        tensor_parallel_size=2,
        **options({"vector": folder / "vector", "flow": folder / "flow"}),
    )
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 128, (n,), generator=generator).tolist() for n in (3, 9, 40)]
    some: list[tuple[list[int], Any]] = [(p, extra) for p in prompts for extra in ASKS]
    outputs = engine.generate(
        [{"prompt_token_ids": prompt} for prompt, _ in some],
        [
            SamplingParams(
                temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False, extra_args=extra
            )
            for _, extra in some
        ],
        use_tqdm=False,
    )
    stats = engine.collective_rpc("odesteer_stats")
    assert len(stats) == 2 and stats[0] == stats[1]  # both saw the same activations
    model, named = tiny(), fitted()
    texts = set()
    for (prompt, extra), output in zip(some, outputs, strict=True):
        theirs = greedy(model, named, prompt, extra, NEW)
        assert list(output.outputs[0].token_ids) == theirs, extra
        texts.add(tuple(theirs))
    assert len(texts) >= 12  # the steerings do change what is written
