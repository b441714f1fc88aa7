"""The conformance suite fails libraries that are wrong, each with its mistake."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import ClassVar

import pytest
from tests.helpers.faulty_adapters import BROKEN, AddsTwice, DoesNothing, Hooked, KeepsTheModel
from tests.helpers.paths import REPOSITORY
from torch import Tensor, nn

from odesteer.testing import (
    ARCHITECTURES,
    CHECKS,
    Adapter,
    Case,
    NotOffered,
    OdesteerVector,
    Steered,
    cases,
    conformance,
    load_adapter,
    run,
    table,
)
from odesteer.testing.suite.runner import report
from odesteer.testing.suite.testbed import Testbed, Unsteered

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def _forget_kept_models() -> Iterator[None]:
    yield
    KeepsTheModel.kept.clear()


class Refuses(Adapter):
    """Does not claim to steer the first block, nor to be removed twice."""

    name = "refuses"
    version = "2"
    unclaimed: ClassVar = {"twice": "it is removed once"}

    def attach(
        self, model: nn.Module, layer: int, vector: Tensor, positions: str | Tensor
    ) -> Steered:
        if layer == 0:
            raise NotOffered("the first block is its input")
        return Hooked().attach(model, layer, vector, positions)


@pytest.mark.parametrize(
    ("check", "library"), BROKEN, ids=[f"{check}-{library.__name__}" for check, library in BROKEN]
)
def test_a_check_finds_the_mistake_it_is_for(check: str, library: type[Adapter]) -> None:
    (result,) = run(cases(library(), ["llama"], [check]))
    assert result.outcome == "fail", result
    assert result.reason


def test_there_is_a_mistake_for_every_check() -> None:
    assert {check for check, _ in BROKEN} == set(CHECKS)


def test_without_the_mistake_a_hook_is_right_but_for_what_a_bare_hook_cannot_do() -> None:
    results = run(cases(Hooked(), ["llama"]))
    assert {r.check for r in results if r.outcome == "fail"} == {"forgotten", "compile"}
    assert {r.check for r in results if r.outcome == "not offered"} == {"mask"}


def test_what_a_library_does_not_claim_is_not_counted() -> None:
    results = run(cases(Refuses(), ["llama"], ["layers", "twice", "moved"]))
    said = {r.check: (r.outcome, r.reason) for r in results}
    assert said == {
        "layers": ("not offered", "the first block is its input"),
        "twice": ("not offered", "it is removed once"),
        "moved": ("pass", ""),
    }


def test_what_the_model_itself_cannot_do_is_not_counted() -> None:
    (result,) = run(cases(OdesteerVector(), ["mamba"], ["assisted"]))
    assert result.outcome == "not possible"
    assert result.reason


def test_the_control_may_move_nothing_and_a_library_may_not() -> None:
    CHECKS["text"].run(Testbed(ARCHITECTURES["llama"], Unsteered()))
    with pytest.raises(AssertionError, match="changed nothing"):
        CHECKS["text"].run(Testbed(ARCHITECTURES["llama"], DoesNothing()))


def test_a_test_asks_the_control_only_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    controls: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        "odesteer.testing.suite.runner._control", lambda *names: controls.append(names) or excuse
    )
    (right,), (wrong,) = (cases(kind(), ["llama"], ["moved"]) for kind in (Hooked, AddsTwice))
    excuse = "it cannot"
    right.check()
    assert controls == []
    with pytest.raises(pytest.skip.Exception, match="not possible: it cannot"):
        wrong.check()
    excuse = ""
    with pytest.raises(pytest.fail.Exception, match="output of the steered block"):
        wrong.check()
    assert controls == [("llama", "moved")] * 2


def test_a_check_leaves_nothing_for_the_next() -> None:
    broken, right = cases(AddsTwice(), ["llama"], ["moved"]), cases(Hooked(), ["llama"], ["moved"])
    outcomes = [result.outcome for result in run([*right, *broken, *right])]
    assert outcomes == ["pass", "fail", "pass"]


def test_the_collector_is_left_as_it_was() -> None:
    some = cases(Hooked(), ["llama"], ["forgotten", "freed"])
    gc.unfreeze()
    run(some)
    assert gc.get_freeze_count() == 0
    gc.freeze()  # as the tests' conftest does
    before = gc.get_freeze_count()
    run(some)
    # Some of what is frozen is replaced meanwhile.
    assert gc.get_freeze_count() > 0.9 * before


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"checks": ["cach"]}, ("Unknown check 'cach'", "Did you mean 'cache'?")),
        ({"architectures": ["lama"]}, ("Unknown architecture 'lama'", "Did you mean 'llama'?")),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(
    names: dict[str, list[str]], words: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError) as error:
        cases(Hooked(), **names)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("tests.helpers.faulty_adapters", "package.module:Class"),
        ("tests.nowhere:Mine", "tests.nowhere"),
        ("tests.helpers.faulty_adapters:Missing", "Missing"),
        ("pathlib:Path", "no Adapter"),
    ],
)
def test_an_adapter_that_is_not_there_is_explained_in_one_line(path: str, word: str) -> None:
    with pytest.raises(ValueError, match=word) as error:
        load_adapter(path)
    assert path in str(error.value)
    assert "\n" not in str(error.value)


# ---- the table


def test_the_table_counts_architectures_of_those_possible() -> None:
    asked = (["llama", "mamba"], ["moved", "assisted", "mask", "twice"])
    runs = {"hooked": run(cases(Hooked(), *asked)), "refuses 2": run(cases(Refuses(), *asked))}
    lines = {line.split(" | ")[0].strip("| "): line for line in table(runs).splitlines()}
    assert lines["check"] == "| check | | hooked | refuses 2 |"
    assert lines["moved"].endswith("| 2 / 2 | 2 / 2 |")
    assert lines["assisted"].endswith("| 1 / 1 | 1 / 1 |")
    assert lines["mask"].endswith("| – | – |")
    assert lines["twice"].endswith("| 2 / 2 | – |")
    assert lines["all"].endswith("| 5 / 5 | 3 / 3 |")


def test_the_report_names_what_is_wrong_and_what_is_not_possible() -> None:
    runs = {"doubled": run(cases(AddsTwice(), ["llama", "mamba"], ["moved", "assisted"]))}
    text = report(runs)
    for architecture in ("llama", "mamba"):
        assert f"| doubled | moved | {architecture} | output of the steered block" in text
    assert "| assisted | mamba |" in text


def test_the_page_names_every_check_in_its_table_or_below_it() -> None:
    page = (REPOSITORY / "docs" / "conformance.md").read_text(encoding="utf-8")
    for name, check in CHECKS.items():
        question = " ".join(check.question.split())
        assert f"| {name} | {question} |" in page or f"*{name}*" in page, name


# ---- pytest


@conformance(Refuses(), architectures=["llama"], checks=["moved", "two layers"])
def test_the_decorator_runs_a_test_for_every_case(case: Case) -> None:
    assert case.name in ("moved-llama", "two_layers-llama")
    case.check()


@pytest.fixture
def suite(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.syspathinsert(REPOSITORY)
    return pytester


def _suite(suite: pytest.Pytester, library: str, *chosen: str) -> pytest.RunResult:
    arguments = [
        "--pyargs",
        "odesteer.testing.suite.test_conformance",
        "-p",
        "no:cacheprovider",
        *chosen,
    ]
    return suite.runpytest_inprocess(*arguments, "--steering-adapter", library)


def test_the_suite_runs_without_a_test_file(suite: pytest.Pytester) -> None:
    result = _suite(
        suite,
        "tests.helpers.faulty_adapters:Hooked",
        "-k",
        "below-llama-hooked or mask-llama-hooked",
    )
    result.assert_outcomes(passed=1, skipped=1, deselected=len(cases(Hooked())) - 2)


def test_the_suite_fails_with_the_reason_and_the_question(suite: pytest.Pytester) -> None:
    result = _suite(suite, "tests.helpers.faulty_adapters:AddsTwice", "-k", "moved-llama-hooked")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*output of the steered block: not equal*"])
    result.stdout.fnmatch_lines(["*every activation is moved exactly*"])


def test_the_suite_without_a_library_says_how_to_name_one(suite: pytest.Pytester) -> None:
    result = suite.runpytest_inprocess("--pyargs", "odesteer.testing.suite.test_conformance")
    assert result.ret != pytest.ExitCode.OK
    assert "--steering-adapter MODULE:CLASS" in result.stdout.str() + result.stderr.str()


def test_the_suite_with_a_wrong_name_says_what_is_wrong(suite: pytest.Pytester) -> None:
    result = _suite(suite, "tests.helpers.faulty_adapters:Missing")
    assert result.ret != pytest.ExitCode.OK
    assert (
        "No adapter at 'tests.helpers.faulty_adapters:Missing'"
        in result.stdout.str() + result.stderr.str()
    )


def test_importing_the_plugin_is_cheap() -> None:
    code = "import sys, odesteer.testing.suite.pytest_plugin; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
