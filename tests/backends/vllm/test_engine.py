"""The backend passes vLLM what its caller gives it: a recording engine in its place."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.helpers import models as tiny
from tests.helpers.position_rules import meant

from odesteer import Angle, ODESteer, PathLength, Sampling, Steering, Target, load
from odesteer.backends.vllm import Engine, VLLMBackend, options
from odesteer.backends.vllm.engine import _generation_config
from odesteer.backends.vllm.registry import RegisteredSteerings, SteeringRegistry
from odesteer.backends.vllm.request import KEY, SteeringRequest, parse
from odesteer.models.chat_template import encode
from odesteer.ode import ConstantField, GradientField, LinearBarrier, Time

D = 8


def made(seed: int, layer: int = 1, vector: bool = False) -> Steering:
    direction = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    field = ConstantField(direction) if vector else GradientField(LinearBarrier(direction, 0.1))
    return Steering(field, Angle(0.2), layer=layer)


STEERINGS = {
    "kind": made(0),
    "plain": made(1, vector=True),
    "two": Steering.of((made(2, 0), made(3, 2).with_strength(0.5))),
    "far": made(4).with_strength(PathLength(2.0)),
    "twice-a": made(5),
    "twice-b": made(5).with_strength(PathLength(0.7)),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> RegisteredSteerings:
    folder = tmp_path_factory.mktemp("steerings")
    paths = {name: one.save_pretrained(folder / name) for name, one in STEERINGS.items()}
    return RegisteredSteerings(SteeringRegistry.of(options(paths)["additional_config"]))


def asked(
    known: RegisteredSteerings, steering: Any, positions: str = "last+generated"
) -> SteeringRequest:
    extra = known.extra_args(steering, positions)
    assert extra is not None
    [one] = parse(extra[KEY])
    return one


# ---- which steering, and how far


def wanted(name: str, dose: Any = None, **fields: Any) -> SteeringRequest:
    """Return the request for a steering at its own positions."""
    return SteeringRequest(name, dose, "last+generated", **fields)


@pytest.mark.parametrize("name", STEERINGS)
def test_a_steering_is_asked_for_by_its_name_at_its_own_dose(
    known: RegisteredSteerings, name: str
) -> None:
    assert asked(known, STEERINGS[name], "all") == SteeringRequest(name, positions="all")


@pytest.mark.parametrize(
    ("dose", "expected"),
    [
        (0.5, wanted("kind", Time(0.5))),
        (Angle(-0.3), wanted("kind", Angle(-0.3))),
        (Target(0.9, 2.0), wanted("kind", Time(2.0), probability=0.9)),
        (Target(0.9, Angle(0.5)), wanted("kind", Angle(0.5), probability=0.9)),
    ],
)
def test_another_dose_travels_with_the_request(
    known: RegisteredSteerings, dose: Any, expected: SteeringRequest
) -> None:
    steering = STEERINGS["kind"].with_strength(dose)
    found = asked(known, steering)
    assert found == expected
    assert found.dose_at(STEERINGS["kind"].dose) == steering.dose


def test_a_coverage_travels_where_the_engine_has_the_levels_for_it(tmp_path: Path) -> None:
    steering = ODESteer().fit(*tiny.two_gaussians(60, 60, D), layer=1)
    paths = {
        "fitted": steering.save_pretrained(tmp_path / "fitted"),
        "none": made(0).save_pretrained(tmp_path / "none"),
    }
    known = RegisteredSteerings(SteeringRegistry.of(options(paths)["additional_config"]))
    covered = steering.with_strength(Target(0.6, 2.0, coverage=0.8))
    found = asked(known, covered)
    assert found == wanted("fitted", Time(2.0), probability=0.6, coverage=0.8)
    assert found.dose_at(steering.dose) == covered.dose
    assert known._registry is not None
    with pytest.raises(ValueError, match=r"odesteer: 'none': .* fit it again"):
        known._registry.check_request(
            SteeringRequest("none", Time(2.0), probability=0.6, coverage=0.8)
        )
    with pytest.raises(ValueError, match=r"odesteer: 'fitted': Coverage .* takes at least"):
        known._registry.check_request(
            SteeringRequest("fitted", Time(2.0), probability=0.6, coverage=0.999)
        )


def test_the_same_steering_read_from_a_directory_is_recognised(
    known: RegisteredSteerings, tmp_path: Path
) -> None:
    again = load(STEERINGS["kind"].save_pretrained(tmp_path / "again"))
    assert known.supports(again)
    assert asked(known, again.with_strength(0.5)) == wanted("kind", Time(0.5))


@pytest.mark.parametrize("name", ["kind", "two"])
def test_no_dose_is_no_steering(known: RegisteredSteerings, name: str) -> None:
    assert known.extra_args(STEERINGS[name].with_strength(0.0), "all") is None
    assert known.extra_args(None, "all") is None


def test_one_dose_at_all_layers_is_one_dose_in_words(known: RegisteredSteerings) -> None:
    both = STEERINGS["two"]
    assert asked(known, both.with_strength(Angle(0.1))) == wanted("two", Angle(0.1))
    uneven = Steering.of((both.parts[0].with_strength(0.1), both.parts[1]))
    with pytest.raises(ValueError, match=r"says one dose for all layers; .* strength 0\.1, stren"):
        known.extra_args(uneven, "all")


def test_of_two_names_the_one_with_the_dose_is_asked_for(known: RegisteredSteerings) -> None:
    assert asked(known, made(5).with_strength(PathLength(0.7))) == wanted("twice-b")
    assert asked(known, made(5).with_strength(0.3)).dose == Time(0.3)


def test_a_path_length_is_a_strength_where_the_field_has_unit_speed(
    known: RegisteredSteerings,
) -> None:
    one = STEERINGS["kind"]
    assert one.field.unit_speed
    assert asked(known, one.with_strength(PathLength(0.3))) == wanted("kind", Time(0.3))
    other = STEERINGS["plain"]
    assert not other.field.unit_speed
    with pytest.raises(ValueError, match=r"a strength, an angle or a target; got path length 0\.3"):
        known.extra_args(other.with_strength(PathLength(0.3)), "all")


@pytest.mark.parametrize(
    "stranger",
    [
        made(9),
        STEERINGS["kind"].replace(layer=2),
        STEERINGS["kind"].replace(steps=3),
        STEERINGS["kind"].replace(solver="rk4"),
        ~STEERINGS["kind"],
    ],
)
def test_what_moves_otherwise_is_another_steering(
    known: RegisteredSteerings, stranger: Steering
) -> None:
    assert not known.supports(stranger)
    with pytest.raises(ValueError, match=r"does not have the steering .*it has: kind, plain"):
        known.extra_args(stranger, "all")


def test_an_engine_without_steerings_has_none() -> None:
    with pytest.raises(ValueError, match="it has: none"):
        RegisteredSteerings().extra_args(STEERINGS["kind"], "all")


def test_a_target_needs_a_barrier(known: RegisteredSteerings) -> None:
    with pytest.raises(ValueError, match="'plain' has no barrier"):
        known.extra_args(STEERINGS["plain"].with_strength(Target(0.9, 1.0)), "all")


# ---- what the backend asks the engine for


class Listening:
    """Stands for `Engine`: keeps what it is asked, and says the same tokens to all."""

    def __init__(self, known: RegisteredSteerings):
        self.registered, self.stop_token_ids, self.max_model_len = known, [6], 100
        self.sampling_defaults = {"top_k": 50, "min_p": 0.0}

    def complete(self, rows: Any, asked: Any) -> list[Any]:
        self.rows, self.asked = rows, asked
        scores = [
            [None, *({i: SimpleNamespace(logprob=-float(i))} for i in row[1:])] for row in rows
        ]
        says = SimpleNamespace(token_ids=(7, 8, 6))
        return [SimpleNamespace(outputs=[says], prompt_logprobs=one) for one in scores]


def backend(known: RegisteredSteerings, positions: str = "last+generated") -> VLLMBackend:
    engine: Any = Listening(known)
    return VLLMBackend(engine, tiny.tokenizer(), "plain", positions)


def test_each_prompt_has_its_own_steering(known: RegisteredSteerings) -> None:
    one = backend(known)
    steerings = [None, STEERINGS["kind"], STEERINGS["plain"].with_strength(0.5)]
    said = one.generate(["the cat", "a dog", "the moon"], steerings)
    heard: Any = one.engine
    assert heard.rows == [
        encode(one.tokenizer, prompt, template="plain")
        for prompt in ("the cat", "a dog", "the moon")
    ]
    extra = [each["extra_args"] for each in heard.asked]
    assert extra[0] is None
    assert [parse(each[KEY]) for each in extra[1:]] == [
        (wanted("kind"),),
        (wanted("plain", Time(0.5)),),
    ]
    # <end> is special: it ends the text and is not in it.
    assert said == ["the a"] * 3
    with pytest.raises(ValueError, match="2 steerings for 1 prompts"):
        one.generate(["the cat"], steerings[:2])


def test_greedy_is_greedy_and_stops_where_transformers_does(known: RegisteredSteerings) -> None:
    one = backend(known)
    one.generate(["the cat"], None, Sampling(max_new_tokens=5, repetition_penalty=1.2))
    heard: Any = one.engine
    assert heard.asked == [
        {
            "temperature": 0.0,
            "extra_args": None,
            "repetition_penalty": 1.2,
            "max_tokens": 5,
            "stop_token_ids": [6],
            "ignore_eos": True,
        }
    ]


def test_samples_have_seeds_of_their_own_whatever_steers_them(known: RegisteredSteerings) -> None:
    one = backend(known)
    heard: Any = one.engine

    def seeds(steering: Any, seed: int) -> list[int]:
        one.generate(["the cat"] * 3, steering, Sampling(temperature=0.7, top_p=0.9, seed=seed))
        assert all(each["temperature"] == 0.7 and each["top_p"] == 0.9 for each in heard.asked)
        assert all(each["top_k"] == 50 for each in heard.asked)
        return [each["seed"] for each in heard.asked]

    first = seeds(None, 0)
    assert len(set(first)) == 3
    assert seeds(STEERINGS["kind"], 0) == first
    assert not set(first) & set(seeds(None, 1))


@pytest.mark.parametrize(
    "positions", ["last+generated", "generated", "all", "prompt[1:-1]+generated[1:3]", "prompt[9:]"]
)
def test_an_answer_is_scored_at_the_positions_that_its_prompt_gives(
    known: RegisteredSteerings, positions: str
) -> None:
    one = backend(known, positions)
    heard: Any = one.engine
    empty, full = one.logprobs(["the cat", "a dog"], [" ", "sat on"], STEERINGS["kind"])
    prompt = encode(one.tokenizer, "a dog", template="plain")
    row = encode(one.tokenizer, "a dog", "sat on", template="plain")
    assert heard.rows == [row]
    extra = heard.asked[0]["extra_args"]
    spans = () if extra is None else parse(extra[KEY])[0].spans(len(row))
    steered = [i for a, b in spans for i in range(a, len(row) if b is None else b)]
    text = list(range(len(row)))
    assert steered == sorted(meant(positions, text[: len(prompt)], text[len(prompt) :]))
    assert len(empty) == 0
    assert full.tolist() == [-float(i) for i in row[len(prompt) :]]


def test_what_vllm_cannot_do_is_refused(known: RegisteredSteerings) -> None:
    one = backend(known)
    with pytest.raises(ValueError, match=r"does not know no_repeat_ngram_size \(got 2\)"):
        one.generate(["the cat"], None, Sampling(no_repeat_ngram_size=2))
    with pytest.raises(ValueError, match="positions='promt'"):
        backend(known, "promt")
    with pytest.raises(ValueError, match="positions='Tensor': it is no text"):
        backend(known, torch.ones(3))
    with pytest.raises(NotImplementedError, match=r"odesteer\.activations"):
        one.activations(None, [1])  # type: ignore[arg-type]


# ---- the engine


def test_without_vllm_the_engine_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install"):
        Engine("anything")


class Fake:
    """Stands for the module vllm."""

    def __init__(self, fails: bool = False):
        self.fails, self.closed, self.given = fails, 0, dict[str, Any]()

    def LLM(self, model: str, **settings: Any) -> Any:
        self.given = settings
        self.entries = settings["additional_config"][KEY]["steerings"]
        for entry in self.entries:
            assert load_file(Path(entry["path"]) / "steering.safetensors")
        if self.fails:
            raise RuntimeError("no memory")
        core = SimpleNamespace(shutdown=self._shutdown)
        engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=12), engine_core=core)
        ranks = [[{"steering": "kind", "layer": 1, "site": "residual", "tokens": 3}]] * 2
        return SimpleNamespace(llm_engine=engine, collective_rpc=lambda name: ranks)

    def SamplingParams(self, **given: Any) -> Any:
        return given

    def _shutdown(self) -> None:
        self.closed += 1


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tiny.model().config.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_objects_are_written_for_vllm_and_removed_with_it(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    vllm = Fake()
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    with Engine(model, {"kind": STEERINGS["kind"]}, dtype="float32") as engine:
        assert engine.max_model_len == 12 and vllm.given["dtype"] == "float32"
        assert engine.registered.supports(STEERINGS["kind"].with_strength(3.0))
        assert [one["tokens"] for one in engine.stats()] == [3]  # ranks say the same
        with pytest.raises(ValueError, match=r"10 tokens and 3 more do not fit .* 12"):
            engine.complete([[1] * 10], [{"max_tokens": 3}])
    assert vllm.closed == 1
    assert not Path(vllm.entries[0]["path"]).exists()
    engine.close()
    assert vllm.closed == 1
    with pytest.raises(ValueError, match="was closed"):
        engine.stats()


def test_an_engine_that_does_not_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    vllm = Fake(fails=True)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    with pytest.raises(RuntimeError, match="no memory"):
        Engine(model, {"kind": STEERINGS["kind"]})
    assert not Path(vllm.entries[0]["path"]).exists()


def test_the_tokens_that_end_a_text_are_those_of_transformers(model: Path) -> None:
    from transformers import GenerationConfig

    assert _generation_config(str(model), "main")[1]["top_k"] == 50
    GenerationConfig(eos_token_id=[3, 4], do_sample=True, top_k=20).save_pretrained(model)
    assert _generation_config(str(model), "main") == ([3, 4], {"top_k": 20, "min_p": 0.0})
