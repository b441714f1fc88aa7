"""Parts of other packages work wherever ours do.

The package is `examples/odesteer-median`, found as an installed one is: by its entry points in a
directory of the path. `.ci/run` installs it with pip, and runs its own tests.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.helpers import models as tiny
from tests.helpers.paths import REPOSITORY
from typer.testing import CliRunner

import odesteer as ods
from odesteer.cli.app import app
from odesteer.evaluation.benchmarks import Sentiment, load_benchmark
from odesteer.evaluation.experiment.fits import find_backend
from odesteer.evaluation.experiment.parse_toml import read
from odesteer.evaluation.experiment.run import run
from odesteer.evaluation.judges import find_judge
from odesteer.methods import find_method
from odesteer.steering.layer_steering import _plugin_solver, find_solver
from odesteer.testing import check_method

EXAMPLE = REPOSITORY / "examples/odesteer-median"
MODULE = """
from odesteer.backends import TransformersBackend
from odesteer.evaluation.benchmarks import Sentiment
from odesteer.evaluation.judges import Judge, Score
from odesteer.methods import CAA

class Length(Judge):
    name = "length"
    unit = "characters"
    higher_is = "neither"
    agreement = "exact"
    def score(self, cases, generations):
        return [Score(float(len(text))) for text in generations]

class Moods(Sentiment):
    name = "moods"

class Shouting(TransformersBackend):
    def generate(self, *arguments, **named):
        return [text.upper() for text in super().generate(*arguments, **named)]

class Misnamed(CAA):
    name = "other"

no_method = 3
"""
POINTS = """
[odesteer.methods]
median = odesteer_median:MedianDifference
misnamed = odesteer_more:Misnamed
broken = odesteer_more:nothing
three = odesteer_more:no_method

[odesteer.solvers]
ralston = odesteer_median:RALSTON

[odesteer.judges]
length = odesteer_more:Length

[odesteer.benchmarks]
moods = odesteer_more:Moods

[odesteer.backends]
shouting = odesteer_more:Shouting
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another package, as pip leaves it."""
    folder = tmp_path / "site"
    about = folder / "odesteer_more-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: odesteer-more\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(POINTS)
    (about / "top_level.txt").write_text("odesteer_more\n")
    (folder / "odesteer_more.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(EXAMPLE / "src"))
    monkeypatch.syspath_prepend(str(folder))
    yield folder
    _plugin_solver.cache_clear()
    for name in ("odesteer_more", "odesteer_median"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return tiny.saved(folder)


def test_a_method_and_a_solver_are_found_by_name_and_keep_what_they_promise(
    installed: Path, tmp_path: Path
) -> None:
    check_method(find_method("median")())
    steering = find_method("median")(solver="ralston").fit(*tiny.two_gaussians(20, 20), layer=1)
    assert steering.method == "median"
    loaded = ods.Steering.from_pretrained(steering.save_pretrained(tmp_path / "it"))
    rows = tiny.two_gaussians(5, 5, seed=3)[0]
    assert torch.equal(loaded(rows), steering(rows))
    assert not find_solver("ralston").adaptive


def test_without_the_package_a_steering_says_what_is_missing(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = find_method("median")(solver="ralston").fit(*tiny.two_gaussians(20, 20), layer=1)
    path = steering.save_pretrained(tmp_path / "it")
    _plugin_solver.cache_clear()
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(installed)])
    with pytest.raises(ValueError, match="Unknown solver 'ralston'"):
        ods.Steering.from_pretrained(path)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("misnamed", "leads to Misnamed, whose name is 'other'"),
        ("broken", r"package 'odesteer-more' cannot be imported from 'odesteer_more:nothing'"),
        ("three", "of the package 'odesteer-more' is .* which is no Method"),
        ("medain", "Did you mean 'median'"),
    ],
)
def test_a_method_that_is_none_is_refused_in_one_line(
    installed: Path, name: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as error:
        find_method(name)
    assert "\n" not in str(error.value)


def test_two_packages_that_offer_one_name_are_both_named(installed: Path) -> None:
    about = installed / "rival-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rival\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[odesteer.methods]\nmedian = rival:Median\n")
    with pytest.raises(ValueError, match="'odesteer-more' and the package 'rival'; remove one"):
        find_method("median")


def test_the_command_line_lists_what_works_and_says_what_does_not(installed: Path) -> None:
    result = CliRunner().invoke(app, ["methods", "--json"])
    assert result.exit_code == 0, result.output
    listed = {row["name"]: row for row in json.loads(result.stdout)}
    assert listed["median"]["field"] == "median(positive) - median(negative)"
    assert "misnamed" not in listed and "caa" in listed
    assert "cannot be imported" in result.stderr
    shown = CliRunner().invoke(app, ["methods", "median"])
    assert "difference of the class medians" in " ".join(shown.stdout.split())


def test_an_experiment_is_made_of_other_packages_parts(
    installed: Path, tmp_path: Path, model: Path
) -> None:
    pytest.importorskip("vaderSentiment")
    file = tmp_path / "experiment.toml"
    file.write_text(EXPERIMENT.format(model=model), encoding="utf-8")
    lines = {}
    for backend in ("transformers", "shouting"):
        results = run(read(file), tmp_path / backend, backend=backend).results
        lines[backend] = [json.loads(line) for line in results.read_text().splitlines()]
    assert lines["transformers"][0]["backend"] is None
    assert lines["shouting"][0]["backend"] == {"name": "shouting", "version": "1.2"}
    cases: dict[str, list[Any]] = {
        name: [line for line in ones if line["kind"] == "case"] for name, ones in lines.items()
    }
    assert {line["condition"].partition("@")[0] for line in cases["shouting"]} == {"median"}
    for plain, loud in zip(*cases.values(), strict=True):
        assert loud["generation"] == plain["generation"].upper()
        assert plain["scores"]["length"] == len(plain["generation"])


EXPERIMENT = """
model = "{model}"
benchmark = "moods"
layers = [1]
doses = [0.2]
methods = [{{name = "median", solver = "ralston"}}]
judges = ["length"]
folds = 1
[limits]
test = 3
[sampling]
max_new_tokens = 6
"""


def test_judges_benchmarks_and_backends_are_found_by_name(installed: Path) -> None:
    assert find_judge("length").unit == "characters"
    assert find_backend("shouting").__name__ == "Shouting"
    assert isinstance(load_benchmark("moods"), Sentiment)
