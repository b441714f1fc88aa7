"""A request means what it says; everything else is refused in one line."""

import json

import pytest

from odesteer.backends.vllm.request import (
    KEY,
    LONGEST_TEXT,
    SteeringRequest,
    _parse_text,
    ask,
    misspelt,
    parse,
)
from odesteer.ode import Angle, Target, Time


def test_a_name_alone_is_the_steering_at_its_own_dose_and_positions() -> None:
    for value in ('{"name": "truthful"}', {"name": "truthful"}, '"truthful"'):
        assert parse(value) == (SteeringRequest("truthful"),)
        assert parse(value)[0].spans(10, "generated") == ((10, None),)


@pytest.mark.parametrize(
    ("fields", "dose"),
    [
        ({"strength": -1.5}, Time(-1.5)),
        ({"angle": 0.3}, Angle(0.3)),
        ({"target": 0.9, "strength": 2}, Target(0.9, 2.0)),
        ({"target": 0.9}, Target(0.9, Angle(0.2))),
        ({"target": 0.9, "coverage": 0.8}, Target(0.9, Angle(0.2), coverage=0.8)),
    ],
)
def test_a_dose_is_that_of_the_library(fields: dict, dose: object) -> None:
    (found,) = parse(json.dumps({"name": "s", **fields}))
    assert found.dose_at(Angle(0.2)) == dose


def test_a_target_keeps_the_budget_of_a_steering_that_has_one() -> None:
    (found,) = parse({"name": "s", "target": 0.7})
    assert found.dose_at(Target(0.9, Angle(0.4))) == Target(0.7, Angle(0.4))


@pytest.mark.parametrize(
    ("fields", "spans"),
    [
        ({"start": "all"}, [(0, None)]),
        ({"start": "last_prompt"}, [(9, None)]),
        ({"start": "generated"}, [(10, None)]),
        ({"start": 4}, [(4, None)]),
        ({"start": 25}, [(25, None)]),
        ({"positions": "last+generated"}, [(9, None)]),
        ({"positions": "all - prompt[:1] - generated[8:]"}, [(1, 18)]),
        ({"positions": "prompt[:4] + generated[1:2]"}, [(0, 4), (11, 12)]),
        ({"positions": "prompt[12:]"}, []),
    ],
)
def test_positions_are_absolute(fields: dict, spans: list) -> None:
    assert list(parse({"name": "s", **fields})[0].spans(10)) == spans


def test_what_ask_writes_is_what_parse_reads() -> None:
    extra = ask("truthful", angle=0.2, target=0.9, coverage=0.8, start="generated")
    (found,) = parse(extra[KEY])
    assert found == SteeringRequest("truthful", Angle(0.2), "generated", 0.9, 0.8)
    assert parse(found.as_value()) == (found,)
    for extra in (ask("truthful", start=3), ask("truthful", positions="all - prompt[0]")):
        (found,) = parse(extra[KEY])
        assert parse(found.as_value()) == (found,)


def test_a_list_is_several_steerings() -> None:
    found = parse('[{"name": "a"}, {"name": "b", "strength": 0.5}]')
    assert [one.name for one in found] == ["a", "b"]


@pytest.mark.parametrize(
    "value",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        3,
        True,
        [],
        {},
        '{"name": 3}',
        '{"name": ""}',
        '{"path": "/etc/passwd", "name": "s"}',
        '{"name": "s", "strength": "much"}',
        '{"name": "s", "coverage": 0.9}',
        '{"name": "s", "target": 0.9, "coverage": 1.0}',
        '{"name": "s", "strength": true}',
        '{"name": "s", "strength": NaN}',
        '{"name": "s", "strength": 1e999}',
        '{"name": "s", "strength": 1' + 400 * "0" + "}",
        '{"name": "s", "strength": [1]}',
        '{"name": "s", "strength": 1, "angle": 1}',
        '{"name": "s", "target": 1.0}',
        '{"name": "s", "target": 0.5, "strength": -1}',
        '{"name": "s", "start": -1}',
        '{"name": "s", "start": 1.5}',
        '{"name": "s", "start": true}',
        '{"name": "s", "start": ["all"]}',
        '{"name": "s", "start": "everywhere"}',
        '{"name": "s", "start": "prompt"}',
        '{"name": "s", "start": null}',
        '{"name": "s", "positions": "promt[:4]"}',
        '{"name": "s", "positions": ["prompt"]}',
        '{"name": "s", "positions": null}',
        '{"name": "s", "positions": 3}',
        '{"name": "s", "positions": "prompt", "start": "all"}',
        {"name": "s", "positions": "x" * 5_000_000},
        '[{"name": "s"}, {"name": "s"}]',
        '{"name": "s", "name": "t"}',
        '{"name": "s", "start": 99999999999999999999}',
        '"' + "s" * 129 + '"',
        {"name": "s" * 5_000_000},
        '{"name": "\\ud800"}',
        "[" + ",".join(f'{{"name": "s{i}"}}' for i in range(9)) + "]",
        "[" * 100_000,
    ],
)
def test_anything_else_is_refused_in_one_short_line(value: object) -> None:
    with pytest.raises(ValueError, match=KEY) as caught:
        parse(value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_finding_7_a_long_text_is_refused_before_it_is_kept() -> None:
    kept = _parse_text.cache_info().currsize
    for text in ('{"name": "s"' + " " * 5_000_000 + "}", '"' + "s" * 5_000_000 + '"'):
        with pytest.raises(ValueError, match=r"has 5,000,0\d\d characters"):
            parse(text)
    assert _parse_text.cache_info().currsize == kept
    assert _parse_text.cache_info().maxsize * LONGEST_TEXT <= 4 * 2**20


def test_eight_steerings_with_all_their_fields_are_not_too_long() -> None:
    some = [
        {"name": f"{i}" * 40, "angle": 0.123456789, "target": 0.987654321, "start": "last_prompt"}
        for i in range(8)
    ]
    assert len(parse(json.dumps(some))) == 8


@pytest.mark.parametrize(
    "key", ["Odesteer", "ODESTEER", "ode-steer", "ode_steer", "odesteer ", "odestear", "odsteer"]
)
def test_finding_12_a_key_that_was_meant_is_recognised(key: str) -> None:
    assert misspelt(["top_k", key]) == key


def test_other_keys_are_not_taken_for_ours() -> None:
    assert misspelt([KEY, "steering", "steer", "ode", "session_id", "x" * 10**6, 3]) is None
