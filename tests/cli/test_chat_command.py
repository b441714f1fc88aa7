"""A chat answers, shows the barrier, and does what its commands say; without a terminal."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.cli import console
from odesteer.cli.chat import (
    COMMANDS,
    Conversation,
    Quit,
    completion,
    fitter,
    summary,
    talk,
    wrapped,
)
from odesteer.common import catalogue
from odesteer.models.hooks.stats import StepStats

POSITIVE = ["the cat is good", "a bird was good", "good dog", "the moon is good"]
NEGATIVE = ["the cat is bad", "a bird was bad", "bad dog", "the moon is bad"]
CONTRAST = ods.Contrast.from_pairs(POSITIVE, NEGATIVE)


def conversation(steering: ods.Steering | None = None, refits: bool = False) -> Conversation:
    net, words = tiny.model(), tiny.tokenizer(chat=True)
    refit = fitter(net, words, CONTRAST, None, None, 0, False) if refits else None
    steering = tiny.quadratic() if steering is None else steering
    return Conversation(net, words, steering, refit, max_new_tokens=6)


def lines(*given: str) -> Callable[[], str]:
    """What somebody types, until there is no more."""
    left = iter(given)

    def read() -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def stderr_text(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever console other tests have made."""
    from rich.console import Console

    from odesteer.cli import chat

    fresh = Console(stderr=True, width=200, highlight=False)
    monkeypatch.setattr(console, "err", fresh)
    monkeypatch.setattr(chat, "err", fresh)


def test_an_answer_streams_is_remembered_and_is_the_models_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    one, written = conversation(), list[str]()
    talk(one, lines("the cat"), written.append)
    assert [m["role"] for m in one.messages] == ["user", "assistant"]
    assert "".join(written).strip() == one.messages[1]["content"].strip()
    assert len(written) > 1, "it comes in pieces"
    assert written[-1].endswith("\n"), "what is said about it has a line of its own"
    assert re.search(
        r"P ▕[█░]{8}▏ \d\.\d\d → \d\.\d\d  \d+ tokens, 100% moved by", stderr_text(capsys)
    )
    assert not tiny.hooked(one.model)


def test_the_barrier_that_is_shown_is_that_of_the_tokens() -> None:
    odds = torch.tensor([0.0, 2.0]), torch.tensor([2.0, 2.0])
    still = torch.tensor([0.0, 0.5])
    one = StepStats(3, 2, torch.zeros(2), still, still, *odds, torch.tensor([2, 2]))
    assert summary([one]) == "P ▕███████░▏ 0.69 → 0.88  2 tokens, 50% moved by 0.25 of their norm"
    assert summary([one], on=False) == "P ▕███████░▏ 0.69  2 tokens, unsteered"
    later = one._replace(layer=5, log_odds_before=None, log_odds_after=None)
    assert summary([one, later]) == "2 tokens, 50% moved by 0.25 of their norm"
    stopped = one._replace(result=torch.tensor([0, 1]))
    assert summary([stopped]).endswith("of their norm, 1 reached, 1 already there")
    assert summary([]) == "no token was steered"


def test_off_is_the_unsteered_model_and_on_steers_again() -> None:
    one = conversation()
    one.command("/off")
    assert "unsteered" in one.answer("the cat", lambda _: None)
    unsteered = one.messages
    one.command("/reset")
    one.steering = one.steering.with_strength(0.0)
    one.command("/on")
    one.answer("the cat", lambda _: None)
    assert one.messages == unsteered


@pytest.mark.parametrize(
    ("line", "strength"),
    [
        ("/strength 2.5", 2.5),
        ("/strength -1", -1.0),
        ("/angle 0.3", ods.Angle(0.3)),
        ("/target 0.9", ods.Target(0.9, budget=ods.Angle(0.8))),
    ],
)
def test_doses_change_while_talking(line: str, strength: object) -> None:
    one = conversation()
    one.on = False
    assert str(ods.ode.as_dose(strength)) in one.command(line)  # type: ignore[arg-type]
    assert one.steering.strength == strength and one.on


def test_another_method_and_layer_are_fitted_on_the_same_contrast() -> None:
    one = conversation(refits=True)
    assert one.command("/method caa").startswith("caa at layer 1, ")
    assert one.steering.strength == ods.Angle(0.8), "a path length means the same for all"
    assert one.command("/layer 2").startswith("caa at layer 2, ")
    assert one.command("/layer 0,2").startswith("caa at layers [0, 2], ")
    one.command("/strength 5")
    one.command("/method iti")
    assert one.steering.strength == ods.ITI.default_strength, "a time does not"


def test_without_a_contrast_it_says_why_it_cannot_fit() -> None:
    for line in ("/method caa", "/layer 2"):
        with pytest.raises(ValueError, match="--contrast FILE"):
            conversation().command(line)


def test_save_writes_a_steering_with_its_dose(tmp_path: Path) -> None:
    one = conversation()
    one.command("/angle 0.1")
    assert str(tmp_path / "mine") in one.command(f"/save {tmp_path / 'mine'}")
    assert ods.load(tmp_path / "mine").strength == ods.Angle(0.1)


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("/strength much", "/strength takes a number; got 'much'"),
        ("/angel 0.2", "Did you mean '/angle'?"),
        ("/method", "/method takes a value"),
        ("/method cca", "Did you mean 'caa'?"),
        ("/layer 99", "99"),
        ("/target 2", "2"),
        ("/save /proc/none", "/proc/none"),
    ],
)
def test_what_cannot_be_done_is_a_line_and_the_chat_goes_on(
    capsys: pytest.CaptureFixture[str], line: str, answer: str
) -> None:
    one = conversation(refits=True)
    one.command("/method caa")
    before = one.about()
    talk(one, lines(line, "", "/help"), lambda _: None)
    printed = stderr_text(capsys)
    assert answer in printed and "Traceback" not in printed
    assert "/strength T" in printed, "and /help was answered after it"
    assert one.about() == before


def test_ctrl_c_stops_the_answer_and_not_the_chat(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    one = conversation()
    talk(one, lines("the cat", "/angle 0.1"), interrupted)
    assert one.messages == [] and not tiny.hooked(one.model)
    printed = stderr_text(capsys)
    assert "all is as it was before" in printed and one.steering.strength == ods.Angle(0.1)


def test_it_ends_when_asked_to() -> None:
    one = conversation()
    talk(one, lines("/quit", "the cat"), lambda _: None)
    assert one.messages == []
    with pytest.raises(Quit):
        one.command("/exit")


def test_the_terminal_completes_commands_and_methods() -> None:
    def completed(text: str) -> list[str | None]:
        found = [completion(text, i) for i in range(40)]
        return [each for each in found if each is not None]

    assert completed("/o") == ["/off", "/on"]
    assert completed("/method mi") == ["/method mimic"]
    assert completed("hello") == []
    assert {each.split()[0] for each in completed("/")} == {each.split()[0] for each in COMMANDS}
    assert len(completed("/method ")) == 1 + len(catalogue.METHODS)


def test_lines_end_between_words() -> None:
    written: list[str] = []
    write = wrapped(written.append, 12)
    for piece in ("a dark ", "road of ", "stone\n", "and more ", "of unbelievably", " long\n"):
        write(piece)
    assert [line.rstrip() for line in "".join(written).splitlines()] == [
        "a dark road",
        "of stone",
        "and more of",
        "unbelievably",
        "long",
    ]
