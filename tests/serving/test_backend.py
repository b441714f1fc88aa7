"""Does an experiment see the same model through vLLM as through transformers?

One engine answers all; it takes most of the time to start.
"""

import os
from collections.abc import Iterator

import pytest
import torch
import vllm  # noqa: F401  (these tests need it)

import odesteer as ods
from odesteer.backends.vllm import Engine, VLLMBackend
from odesteer.models import load_model, local_copy

pytestmark = pytest.mark.vllm
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

LAYER, TOKENS = 14, 12
PROMPTS = [
    "The weather today is",
    "My favourite thing about mornings is that",
    "Q: What is the capital of France?\nA:",
    "She opened the letter and",
]
POSITIVE = [
    "I love this bright and happy morning.",
    "What a wonderful gift, thank you so much!",
    "We laughed all evening and danced.",
    "The garden is full of joy and colour.",
    "Our team won, and everybody cheered!",
    "She smiled at the good news.",
]
NEGATIVE = [
    "I hate this dark and gloomy morning.",
    "What a terrible waste, leave me alone!",
    "We cried all evening and went home.",
    "The garden is full of weeds and rot.",
    "Our team lost, and nobody spoke.",
    "She wept at the bad news.",
]
# Of a log-probability, in nats: two engines add up in different orders.
TOLERANCE = 2e-4


class World:
    """The model in both engines, and steerings of both."""

    def __init__(self, engine: Engine, model: object, tokenizer: object, steerings: dict):
        self.engine, self.model, self.tokenizer = engine, model, tokenizer
        self.caa, self.ode, self.both = (steerings[name] for name in ("caa", "ode", "both"))

    def backends(
        self, positions: str = "last+generated"
    ) -> tuple[ods.TransformersBackend, VLLMBackend]:
        template = "plain"
        return (
            ods.TransformersBackend(self.model, self.tokenizer, template, positions),
            VLLMBackend(self.engine, self.tokenizer, template, positions),
        )

    @property
    def ways(self) -> list:
        """Six ways to steer, mixed in one batch."""
        return [
            None,
            self.caa,
            self.caa.with_strength(-0.5),
            self.ode.with_strength(ods.Angle(0.3)),
            self.ode.with_strength(ods.Target(0.9, ods.Angle(0.5))),
            self.both.with_strength(0.4),
        ]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    # Two engines with all the cores each would wait for one another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, tokenizer = load_model("smollm2", dtype="float32")
    contrast = ods.Contrast.from_pairs(positive=POSITIVE, negative=NEGATIVE)
    caa = ods.fit(model, tokenizer, contrast, "caa", layer=LAYER)
    ode = ods.fit(model, tokenizer, contrast, "odesteer", layer=LAYER)
    other = ods.fit(model, tokenizer, contrast, "caa", layer=LAYER + 6)
    steerings = {"caa": caa, "ode": ode, "both": ods.LayeredSteering((caa, other))}
    engine = Engine(
        local_copy(),
        steerings,
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=512,
    )
    with engine:
        yield World(engine, model, tokenizer, steerings)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("positions", ["last+generated", "generated", "all"])
def test_greedy_generations_and_their_logprobs_are_those_of_transformers(
    world: World, positions: str
) -> None:
    reference, backend = world.backends(positions)
    prompts = [prompt for prompt in PROMPTS for _ in world.ways]
    steerings = world.ways * len(PROMPTS)
    sampling = ods.Sampling(max_new_tokens=TOKENS)
    expected = reference.generate(prompts, steerings, sampling)
    assert backend.generate(prompts, steerings, sampling) == expected
    assert len(set(expected)) > len(PROMPTS)  # steering did something
    one = reference.logprobs(prompts, expected, steerings)
    other = backend.logprobs(prompts, expected, steerings)
    assert [len(row) for row in one] == [len(row) for row in other]
    difference = (torch.cat(one) - torch.cat(other)).abs().max()
    print(f"{positions}: {len(torch.cat(one))} log-probabilities, at most {difference:.2g} apart")
    assert difference < TOLERANCE


def test_a_steering_read_from_its_directory_is_the_same(world: World, tmp_path) -> None:
    _, backend = world.backends()
    again = ods.load(world.ode.save_pretrained(tmp_path / "ode"))
    sampling = ods.Sampling(max_new_tokens=4)
    first = backend.generate(PROMPTS[:1], world.ode, sampling)
    assert backend.generate(PROMPTS[:1], again, sampling) == first


def test_repetition_is_penalised_alike(world: World) -> None:
    reference, backend = world.backends()
    sampling = ods.Sampling(max_new_tokens=TOKENS, repetition_penalty=1.3)
    expected = reference.generate(PROMPTS, world.caa, sampling)
    assert backend.generate(PROMPTS, world.caa, sampling) == expected
    assert reference.generate(PROMPTS, world.caa, ods.Sampling(max_new_tokens=TOKENS)) != expected


def test_samples_of_one_prompt_differ_and_come_again_with_the_seed(world: World) -> None:
    _, backend = world.backends()
    drawn = [
        backend.generate(
            PROMPTS[:1] * 4, world.ode, ods.Sampling(max_new_tokens=8, temperature=1.0, seed=seed)
        )
        for seed in (0, 0, 1)
    ]
    assert len(set(drawn[0])) > 1
    assert drawn[0] == drawn[1] != drawn[2]


def test_an_empty_generation_has_no_logprobs(world: World) -> None:
    _, backend = world.backends()
    empty, full = backend.logprobs(PROMPTS[:2], ["  ", "good"], world.caa)
    assert len(empty) == 0 < len(full)


def test_the_workers_count_what_they_moved(world: World) -> None:
    _, backend = world.backends()

    def tokens() -> int:
        return sum(one["tokens"] for one in world.engine.stats() if one["steering"] == "caa")

    before = tokens()
    backend.generate(PROMPTS[:1], world.caa, ods.Sampling(max_new_tokens=3))
    assert tokens() - before == 3  # the prompt's last token and two generated ones
    before = tokens()
    backend.generate(PROMPTS[:1], world.caa.with_strength(0.0), ods.Sampling(max_new_tokens=3))
    assert tokens() == before


def test_a_row_that_does_not_fit_is_refused(world: World) -> None:
    _, backend = world.backends()
    with pytest.raises(ValueError, match="do not fit into the engine's 512"):
        backend.generate(PROMPTS[:1], None, ods.Sampling(max_new_tokens=600))
