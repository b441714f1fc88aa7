"""Confounds: trivial differences between classes are named; plain contrasts have none."""

import pytest

import odesteer as ods
from odesteer.common.catalogue import BEHAVIOURS
from odesteer.data.confounds import confounds


def of(positive: list[str], negative: list[str]) -> str:
    return "\n".join(confounds(ods.Contrast.from_pairs(positive, negative)))


WORDS = [f"{a} {b}" for a in ("red", "blue", "green", "grey") for b in ("cat", "dog", "owl")]


def test_few_texts_are_named():
    assert "4 positive and 4 negative texts" in of(WORDS[:4], WORDS[4:8])


def test_the_last_character_is_named():
    shown = of([f"A {w}." for w in WORDS], [f"A {w}" for w in WORDS])
    assert "12 of 12 positive texts end in '.', 0 of 12 negative ones do." in shown


def test_length_is_named_once():
    shown = of([f"{w} ran on and on" for w in WORDS], WORDS)
    assert "Positive texts are longer (6 words against 2 on average)." in shown
    assert "characters" not in shown


def test_first_words_capitals_and_marks_are_named():
    shown = of([f"Well, {w}" for w in WORDS], WORDS)
    assert "begin with the word 'well'" in shown
    assert "start with a capital letter" in shown
    assert "contain ',' before their end" in shown


def test_a_text_in_both_classes_is_named():
    shown = of(WORDS, [WORDS[0], *(f"{w} sat" for w in WORDS[1:])])
    assert "1 text(s) are in both classes, such as 'red cat'." in shown


def test_empty_texts_are_named():
    assert "Some texts are empty." in of([*WORDS, ""], [*WORDS, "x"])


def test_texts_that_differ_in_what_they_say_have_none():
    assert of([f"The {w} was kind" for w in WORDS], [f"The {w} was rude" for w in WORDS]) == (
        "12 of 12 positive texts end with the word 'kind', 0 of 12 negative ones do.\n"
        "0 of 12 positive texts end with the word 'rude', 12 of 12 negative ones do."
    )


@pytest.mark.parametrize("name", [n for n, (file, _, _) in BEHAVIOURS.items() if file != "concise"])
def test_the_packaged_behaviours_have_none(name):
    assert confounds(ods.behaviours.load(name)) == []
