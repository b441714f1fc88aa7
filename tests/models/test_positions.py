"""Rules of positions: Python's own slices say which tokens a rule means."""

import itertools
import random
import re

import pytest
import torch
from tests.helpers.position_rules import meant

from odesteer.models.hooks.positions import PositionRule, select_tokens
from odesteer.models.hooks.token_tracker import ForwardCall


def random_rule(rng: random.Random) -> str:
    def term() -> str:
        word = rng.choice(["prompt", "prompt", "generated", "all", "last"])
        least = {"prompt": -6, "generated": 0}.get(word)
        if least is None or rng.random() < 0.2:
            return word
        numbers = [str(rng.randint(least, 6)) if rng.random() < 0.7 else "" for _ in range(2)]
        if numbers[0] and rng.random() < 0.2:
            return f"{word}[{numbers[0]}]"
        return f"{word}[{numbers[0]}:{numbers[1]}]"

    signs = [rng.choice([" + ", "+", " - ", "-"]) for _ in range(rng.randint(0, 3))]
    return term() + "".join(sign + term() for sign in signs)


def random_rules(n: int, seed: int) -> list[PositionRule]:
    rng, rules = random.Random(seed), []
    texts = [(list(range(p)), list(range(p, p + 20))) for p in range(30)]
    while len(rules) < n:
        text = random_rule(rng)
        try:
            rule = PositionRule.parse(text)
        except ValueError as error:
            # Refused: what is empty whatever the text, or at least one of its windows.
            assert re.search("is empty|leaves no token", str(error)), error
            windows = re.findall(r"[a-z]+\[[^]]*\]", text) if "empty" in str(error) else [text]
            assert any(not any(meant(each, *both) for both in texts) for each in windows), text
            continue
        assert PositionRule.parse(str(rule)) == rule
        assert all(meant(text, *both) == meant(str(rule), *both) for both in texts[:9:3])
        rules.append(rule)
    return rules


@pytest.mark.parametrize("kind", ["generate", "scoring"])
def test_random_rules_choose_what_pythons_slices_choose(kind: str) -> None:
    """However a padded batch is cut into calls."""
    rng = random.Random(kind)
    chosen = 0
    for rule in random_rules(1000, seed=len(kind)):
        batch, width, new = rng.randint(1, 3), rng.randint(1, 8), rng.randint(1, 9)
        lengths = [rng.randint(1, width) for _ in range(batch)]
        left = rng.random() < 0.7
        real = torch.zeros(batch, width + new, dtype=torch.bool)
        wanted = torch.zeros_like(real)
        ends, last = [], []
        for i, n in enumerate(lengths):
            first = width - n if left else 0
            # In scoring a row's answer follows its prompt, in generate the padded prompts.
            end = first + n if kind == "scoring" else width
            places = list(range(first, first + n)), list(range(end, end + new))
            real[i, [*places[0], *places[1]]] = True
            wanted[i, list(meant(str(rule), *places))] = True
            ends.append(end)
            last.append(first + n - 1)
        cuts = sorted({0, width + new, *(rng.randint(0, width + new) for _ in range(3))})
        length = torch.tensor(ends) if kind == "scoring" else width
        for start, stop in itertools.pairwise(cuts):
            chunk = real[:, start:stop]
            decoding = kind == "generate" and start >= width
            mask = None if decoding or bool(real.all()) else real[:, : rng.choice([width, stop])]
            if mask is not None and mask.shape[1] < width and not left:
                mask = real[:, :width]
            call = ForwardCall(
                start, length, None if decoding else chunk, torch.tensor(last), mask=mask
            )
            got = select_tokens(rule, call, torch.zeros(batch, stop - start, 1))
            got = torch.ones_like(chunk) if got is None else got
            assert torch.equal(got, wanted[:, start:stop]), (str(rule), lengths, left, start, stop)
            chosen += int(got.sum())
    assert chosen > 5_000


def test_spans_are_the_tokens_of_a_text_without_padding() -> None:
    for i, rule in enumerate(random_rules(500, seed=7)):
        n = i % 9
        wanted = meant(str(rule), list(range(n)), list(range(n, n + 20)))
        spans = rule.spans(n)
        tokens = [t for a, b in spans for t in range(a, n + 20 if b is None else b)]
        assert tokens == sorted(wanted), (str(rule), n)
        ends = [edge for span in spans for edge in span]
        assert all(a < b for a, b in itertools.pairwise(ends) if b is not None)
        early = any(a < n - 1 for a, _ in spans)
        assert not (rule.after_prompt and early), str(rule)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("last+generated", "last+generated"),
        (" prompt[-1:]  + generated[0:] ", "last+generated"),
        ("all - prompt[0]", "all-prompt[:1]"),
        ("prompt[-2]", "prompt[-2:-1]"),
        ("prompt[:]+generated[ 8 : 32 ]", "prompt+generated[8:32]"),
    ],
)
def test_a_rule_has_one_canonical_text(text: str, canonical: str) -> None:
    assert str(PositionRule.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("promt[:4]", "no tokens are called 'promt', did you mean 'prompt'?"),
        ("", "a word is missing"),
        ("prompt +", "a word is missing"),
        ("-prompt[:1]", "'-prompt[:1]' is no word"),
        ("prompt generated", "'generated' is no window and no sign"),
        ("prompt[:4", "'[:4' is no window and no sign"),
        ("prompt[::2]", "'[::2]' is no window and no sign"),
        ("prompt[:9999999999]", "'[:9999999999]' is no window and no sign"),
        ("prompt[]", "'prompt[]' is no window"),
        ("last[:2]", "'last' has no windows"),
        ("generated[-4:]", "counts from an end that is not known yet"),
        ("prompt[4:2]", "'prompt[4:2]' is empty"),
        ("prompt[-2:-2]", "is empty"),
        ("prompt - all", "it leaves no token"),
        ("prompt+" * 40, "more than 200 characters"),
        (["prompt"], "it is no text and no mask"),
    ],
)
def test_a_text_that_is_no_rule_is_refused_in_one_line(text: object, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^positions=.*; use one of last\+generated, ") as caught:
        PositionRule.parse(text)  # type: ignore[arg-type]
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 260
