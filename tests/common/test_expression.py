"""Expressions over names mean what they mean in Python."""

import pytest
import torch

from odesteer.common.expression import build
from odesteer.ode import GradientField, LinearBarrier
from odesteer.steering import Steering


def steering(seed: int, layer: int = 1) -> Steering:
    direction = torch.randn(6, generator=torch.Generator().manual_seed(seed))
    return Steering(GradientField(LinearBarrier(direction, 0.1)), layer=layer)


@pytest.fixture
def named() -> dict[str, Steering]:
    return {"a": steering(0), "b-1": steering(1), "c.2": steering(2)}


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("a", lambda a, b, c: a),
        ("~a", lambda a, b, c: ~a),
        ("a & ~b-1", lambda a, b, c: a & ~b),
        ("a | b-1 & c.2", lambda a, b, c: a | b & c),
        (" ( a | b-1 )\n & c.2 ", lambda a, b, c: (a | b) & c),
        ("~(a&b-1)", lambda a, b, c: ~(a & b)),
    ],
)
def test_an_expression_is_what_python_makes_of_it(text: str, meant, named) -> None:
    a = torch.randn(5, 6, generator=torch.Generator().manual_seed(9))
    expected = meant(*named.values())
    steering = build(text, named)
    assert torch.equal(steering(a), expected(a))
    assert torch.equal(steering.barrier.value(a), expected.barrier.value(a))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "ends"),
        ("a &", "ends"),
        ("(a", "never closed"),
        ("a)", "unmatched"),
        ("a b-1", "no expression"),
        ("a & & a", "no expression"),
        ("a (b-1)", "no expression"),
        ("()", "no expression"),
        ("(a, b-1)", "no expression"),
        ("~" * 1000, "no expression"),
        ("~" * 990 + "a", "nested so deeply"),
        ("(" * 499 + "a" + ")" * 499, "no expression"),
        ("unknown", "Unknown steering"),
        ("__import__('os')", "no expression"),
        ("a" * 2000, "at most"),
        ("a & two", "compose at the same layers"),
    ],
)
def test_what_is_no_expression_is_refused(text: str, word: str, named) -> None:
    two = Steering.of((steering(0, 0), steering(1, 2)))
    with pytest.raises(ValueError, match=word) as error:
        build(text, {**named, "two": two})
    assert "\n" not in str(error.value)
