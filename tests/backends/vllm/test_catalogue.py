"""Every process of a server has the steerings it was started with, and no others."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from odesteer import Steering
from odesteer.backends.vllm import ask, options
from odesteer.backends.vllm.plugin import block_keys
from odesteer.backends.vllm.registry import SteeringRegistry, _load_registry, configuration
from odesteer.backends.vllm.request import KEY, parse
from odesteer.backends.vllm.request_validation import (
    _names,
    check_params,
    remember_names,
    served_model_names,
    steering_from_model_name,
)
from odesteer.common.registry import lookup
from odesteer.ode import Angle, ConstantField, GradientField, LinearBarrier, Target

D = 8


def steering(seed: int, layer: int | None = 1, vector: bool = False) -> Steering:
    direction = torch.randn(D, generator=torch.Generator().manual_seed(seed))
    field = ConstantField(direction) if vector else GradientField(LinearBarrier(direction, 0.1))
    return Steering(field, strength=Angle(0.2), layer=layer)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    made = {
        "kind": steering(0),
        "plain": steering(1, vector=True),
        "two": Steering.of((steering(2, 0), steering(3, 2))),
        "away": steering(4).with_strength(-1.0),
    }
    return {name: one.save_pretrained(tmp_path / name) for name, one in made.items()}


@pytest.fixture
def config(folders: dict[str, Path]) -> dict:
    return configuration(folders, {"both": "kind & ~away"})


def test_what_reaches_the_processes_is_plain_json_and_rebuilds_all(config: dict) -> None:
    catalogue = SteeringRegistry.of(json.loads(json.dumps(config)))
    assert list(catalogue.steerings) == ["kind", "plain", "two", "away", "both"]
    assert {place: list(parts) for place, parts in catalogue.parts.items()} == {
        (0, "residual"): ["two"],
        (1, "residual"): ["kind", "plain", "away", "both"],
        (2, "residual"): ["two"],
    }
    assert [one["has_barrier"] for one in catalogue.describe()] == [True, False, True, True, True]


def test_a_configuration_without_steerings_is_none() -> None:
    assert SteeringRegistry.of({}) is None and SteeringRegistry.of(SimpleNamespace()) is None


def test_a_file_that_changed_is_refused(config: dict, folders: dict[str, Path]) -> None:
    _load_registry.cache_clear()
    steering(9).save_pretrained(folders["kind"])
    with pytest.raises(ValueError, match=r"'kind' .* is not the one that the server was started"):
        SteeringRegistry.of(config)


def test_a_machine_without_the_files_says_so(config: dict, folders: dict[str, Path]) -> None:
    _load_registry.cache_clear()
    folders["plain"].rename(folders["plain"].with_name("elsewhere"))
    with pytest.raises(ValueError, match=r"'plain' is at .* which this machine does not have"):
        SteeringRegistry.of(config)


def test_another_version_is_refused(config: dict) -> None:
    config[KEY]["version"] = "0.0.1"
    with pytest.raises(ValueError, match=r"started with odesteer 0\.0\.1"):
        SteeringRegistry.of(config)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda f: configuration({}), "at least one"),
        (lambda f: configuration({"a b": f["kind"]}), "no name"),
        (lambda f: configuration({"../x": f["kind"]}), "no name"),
        (lambda f: configuration({"x" * 129: f["kind"]}), "no name"),
        (lambda f: configuration(f, {"kind": "plain"}), "twice"),
        (lambda f: configuration(f, {"x": "kind & nobody"}), "Unknown steering 'nobody'"),
        (lambda f: configuration(f, {"x": "kind & two"}), "the same layers"),
        (lambda f: configuration(f, check="hardly"), "hardly"),
    ],
)
def test_what_no_server_could_have_is_refused_at_once(make, word: str, folders) -> None:
    with pytest.raises(ValueError, match=word):
        make(folders)


def test_options_refuse_an_environment_without_the_plugin(folders, monkeypatch) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    with pytest.raises(ValueError, match="leaves odesteer out"):
        options(folders)
    monkeypatch.setenv("VLLM_PLUGINS", "another,odesteer")
    assert KEY in options(folders)["additional_config"]


@pytest.mark.parametrize(
    ("asked", "word"),
    [
        (ask("nobody"), "Unknown steering 'nobody'"),
        (ask("knd"), "Did you mean 'kind'"),
        (ask("plain", target=0.9), "no barrier"),
        (ask("away", target=0.9), "positive budget"),
        ({KEY: "{"}, "no JSON"),
    ],
)
def test_the_front_refuses_in_words(asked: dict, word: str, config: dict) -> None:
    with pytest.raises(ValueError, match=word):
        check_params(SimpleNamespace(extra_args=asked), config)


def test_finding_7_a_name_of_any_length_is_neither_compared_nor_echoed_whole() -> None:
    with pytest.raises(
        ValueError, match=r"Unknown steering 'x{199}…'\. Available: kind\."
    ) as caught:
        lookup({"kind": 1}, "x" * 4_000_000, "steering")
    assert len(str(caught.value)) < 300


def test_the_front_lets_right_requests_pass(config: dict) -> None:
    for extra in (None, {}, {"other": 1}, ask("kind", target=0.9), ask("two"), ask("both")):
        check_params(SimpleNamespace(extra_args=extra), config)
    check_params(SimpleNamespace(), config)  # a pooling request


def test_a_server_without_steerings_says_so() -> None:
    with pytest.raises(ValueError, match="started without steerings"):
        check_params(SimpleNamespace(extra_args=ask("kind")), {})


def test_a_model_named_with_a_steering_is_the_model_steered(config: dict) -> None:
    remember_names(config)
    try:
        assert served_model_names(["m", "n"], ["kind", "two"]) == ["m", "n", "m:kind", "m:two"]
        assert parse(steering_from_model_name("m:kind", None)[KEY])[0].name == "kind"
        assert steering_from_model_name("m:kind", {"other": 1})["other"] == 1
        assert parse(steering_from_model_name("m:kind", ask("kind"))[KEY]) == parse(
            ask("kind")[KEY]
        )
        with pytest.raises(ValueError, match="'kind' and vllm_xargs for 'two'"):
            steering_from_model_name("m:kind", ask("two"))
        for model in (None, "m", "m:other", ":kind"):
            assert steering_from_model_name(model, None) is None
    finally:
        _names.clear()


class TestPrefixKeys:
    """A block of tokens [.., end) is shared by those who have the same keys and values in it."""

    def of(self, config: dict, extra: dict | None, end: int, prompt: int = 40) -> tuple:
        request = SimpleNamespace(
            sampling_params=SimpleNamespace(extra_args=extra), num_prompt_tokens=prompt
        )
        return block_keys(request, end, SteeringRegistry.of(config))

    def test_unsteered_requests_have_none(self, config: dict) -> None:
        assert self.of(config, None, 32) == ()

    @pytest.mark.parametrize(
        ("start", "clean", "steered"),
        [
            ("all", None, 1),
            ("last_prompt", 39, 40),
            ("generated", 40, 41),
            (32, 32, 33),
        ],
    )
    def test_blocks_that_end_past_the_start_have_theirs(
        self, start, clean, steered, config: dict
    ) -> None:
        extra = ask("kind", start=start)
        if clean is not None:
            assert self.of(config, extra, clean) == ()
        assert len(self.of(config, extra, steered)) == 1

    def test_a_rule_that_means_other_positions_has_another_key(self, config: dict) -> None:
        def key(positions: str, end: int, prompt: int) -> tuple:
            return self.of(config, ask("kind", positions=positions), end, prompt)

        assert key("prompt[4:8]", 4, 40) == ()
        assert key("prompt[:4]", 16, 40) == key("prompt[:4]", 16, 50)
        assert key("prompt[:4]", 16, 40) != key("prompt[:4]", 16, 2)
        assert key("all-prompt[:1]", 16, 40) == key("all-prompt[:1]", 16, 50)
        # What one request was sent and another wrote: the same tokens, steered at other positions.
        assert key("prompt", 32, 20) != key("prompt", 32, 32)
        assert key("last+generated", 32, 20) != key("last+generated", 32, 32)
        assert key("prompt[-4:]", 32, 20) != key("prompt[-4:]", 32, 24)
        assert key("prompt", 16, 20) == key("prompt", 16, 32)

    def test_everything_that_changes_activations_changes_the_key(self, config: dict) -> None:
        asks = [
            ask("kind"),
            ask("two"),
            ask("both"),
            ask("kind", strength=0.3),
            ask("kind", angle=0.3),
            ask("kind", target=0.9),
            ask("kind", target=0.8),
            ask("kind", start="generated"),
            ask("kind", positions="prompt[:4]"),
            {KEY: json.dumps([parse(ask(n)[KEY])[0].as_value() for n in ("kind", "plain")])},
        ]
        found = {self.of(config, extra, 64) for extra in asks}
        assert len(found) == len(asks)
        assert self.of(config, ask("kind"), 64) == self.of(config, ask("kind"), 96)

    def test_a_request_without_positions_has_the_key_of_its_steerings_own(
        self, tmp_path: Path
    ) -> None:
        saved = steering(0).replace(positions="prompt[:4]").save_pretrained(tmp_path / "first")
        config = configuration({"first": saved})
        key = self.of(config, ask("first"), 16, 40)
        assert key and key == self.of(config, ask("first", positions="prompt[:4]"), 16, 40)
        assert key != self.of(config, ask("first", positions="all"), 16, 40)

    def test_the_order_of_a_list_and_its_spelling_do_not_matter(self, config: dict) -> None:
        spelled = {KEY: '{"start": "last_prompt",   "name": "kind"}'}
        assert self.of(config, spelled, 64) == self.of(config, ask("kind"), 64)


def test_composed_digests_change_with_their_parts(folders: dict[str, Path]) -> None:
    before = SteeringRegistry.of(configuration(folders, {"both": "kind & ~away"})).digests["both"]
    other = steering(0).replace(strength=Angle(0.3))
    other.save_pretrained(folders["kind"])
    after = SteeringRegistry.of(configuration(folders, {"both": "kind & ~away"})).digests["both"]
    assert before != after


def test_a_target_of_its_own_is_kept(tmp_path: Path) -> None:
    aimed = steering(0).with_strength(Target(0.9, Angle(0.5))).save_pretrained(tmp_path / "aimed")
    config = configuration({"aimed": aimed})
    check_params(SimpleNamespace(extra_args=ask("aimed", target=0.7)), config)
    check_params(SimpleNamespace(extra_args=ask("aimed")), config)
