"""Every experiment in the repository can be planned; a wrong one is refused in a line."""

from pathlib import Path

import pytest
from tests.evaluation.experiment.test_paper_tables import table
from tests.helpers.paths import REPOSITORY

from odesteer.evaluation.benchmarks import load_benchmark
from odesteer.evaluation.experiment.config import Experiment, Named
from odesteer.evaluation.experiment.parse_toml import parse, read, tomllib
from odesteer.evaluation.experiment.plan import KINDS, estimate, plan
from odesteer.evaluation.experiment.run import prepared
from odesteer.ode import Angle, PathLength, Target, Time

ROOT = REPOSITORY / "experiments"
FILES = sorted(ROOT.rglob("*.toml"))
MINIMAL = {"benchmark": "sentiment", "methods": ["none", "caa"], "layers": [1], "doses": [0.1]}


def parsed(**changes: object) -> Experiment:
    return parse({**MINIMAL, **changes}, "x.toml")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_can_be_planned(path: Path) -> None:
    experiment = read(path)
    assert experiment.name == path.stem
    try:
        benchmark, planned = prepared(experiment)
    except FileNotFoundError:
        # Without the benchmark's files, the plan of our own sentences has the same conditions.
        if experiment.task == "choices":
            pytest.skip("the benchmark's files are not here (ODESTEER_DATA)")
        benchmark = load_benchmark("sentiment")
        planned = plan(experiment, benchmark)
    names = [one.id for one in planned.conditions]
    assert len(set(names)) == len(names) > 1
    assert [unit.number for unit in planned.units] == list(range(len(planned.units)))
    assert all(need < unit.number for unit in planned.units for need in unit.needs)
    assert {unit.kind for unit in planned.units} <= set(KINDS)
    about = estimate(planned, benchmark)
    assert about.tokens > 0 and about.bytes is not None and about.bytes > 1e8


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent.name == "paper"], ids=lambda p: p.stem
)
def test_the_papers_files_say_what_its_tables_say(path: Path) -> None:
    rows = {row["hub_id"]: row for row in table("table5_strength_and_layer")}
    experiment = read(path)
    row = rows[experiment.model.name]
    if not path.stem.startswith("figure3"):
        assert experiment.layers == (int(row["layer_0based"]),)
    assert {named.name for named in experiment.judges} <= {
        "truth-llama",
        "info-llama",
        "reward",
        "toxicity-classifier",
        "perplexity",
    }
    paper = next(one for one in experiment.methods if one.name == "odesteer-paper")
    times = [dose for dose in (paper.doses or experiment.doses) if isinstance(dose, Time)]
    if path.stem.startswith(("table2", "table9")):
        low_high = [float(row["t_low"]), float(row["t_high"])]
        special = path.stem == "table2-toxicity-qwen2.5-7b"
        assert [dose.amount for dose in times] == ([48.0] if special else low_high)


def test_a_number_is_a_dose_of_the_kind_that_is_said() -> None:
    assert parsed().doses == (Angle(0.1),)
    assert parsed(dose_type="time").doses == (Time(0.1),)
    assert parsed(dose_type="path-length").doses == (PathLength(0.1),)
    budget = {"type": "angle", "amount": 0.6}
    target = {"type": "target", "probability": 0.9, "budget": budget}
    assert parsed(doses=[target]).doses == (Target(0.9, Angle(0.6)),)


def test_defaults_are_those_of_the_dataclass_and_of_the_benchmark() -> None:
    experiment = parsed()
    own = Experiment("", Named(""), ())
    for key in ("seeds", "samples", "positions", "limits", "choose", "batch", "damage"):
        assert getattr(experiment, key) == getattr(own, key)
    assert dict(experiment.sampling) == {"max_new_tokens": 32, "temperature": 0.0}
    assert [named.name for named in experiment.judges] == ["vader", "perplexity"]
    assert parsed(sampling={"max_new_tokens": 8}).sampling["max_new_tokens"] == 8
    assert parsed(positions="all - prompt[0]").positions == "all-prompt[:1]"


def test_a_row_has_its_own_hyperparameters_layers_and_doses() -> None:
    row = {"name": "odesteer", "id": "flat", "label": "p = 0", "p": 0.0, "doses": [0.3]}
    [method] = parsed(methods=[row]).methods
    assert (method.id, method.label, method.doses) == ("flat", "p = 0", (Angle(0.3),))
    assert method.hyperparameters == {"p": 0.0}


def test_every_combination_is_a_condition_with_a_name_of_its_own() -> None:
    experiment = parsed(
        methods=["none", "prompt", "random", "caa", "iti-heads"],
        layers=[1, [1, 2], "choose"],
        doses=[0.1, "choose", "own"],
        steps=[1, 2],
        seeds=[0, 1],
        matched={"kl": [0.1], "displacement": [0.2]},
        choose={"layers": [1, 2], "doses": [0.1, 0.2]},
    )
    planned = plan(experiment, load_benchmark("sentiment"))
    names = [one.id for one in planned.conditions]
    # 2 without a dose, 2 methods at 3 layers, and heads that have no layer; all at 2 seeds.
    assert len(names) == len(set(names)) == 2 * (2 + (2 * 3 + 1) * 2 * 5)
    for name in (
        "none,seed-0",
        "caa@angle-0.1,layer-1,steps-2,seed-1",
        "random@kl-0.1,layer-1-2,steps-1,seed-0",
    ):
        assert name in names
    assert all(
        one.open == (one.match is not None or len(one.layers) * len(one.doses) > 1)
        for one in planned.conditions
        if one.moves
    )


def test_cases_are_each_asked_once_of_every_condition() -> None:
    planned = plan(parsed(batch=7, limits={"test": 3}), load_benchmark("sentiment"))
    for number, fold in enumerate(planned.folds):
        assert len(fold.test) == 3
        for i in range(len(planned.conditions)):
            asked = [
                case
                for unit in planned.units
                if unit.kind == "cases" and unit.fold == number and i in unit.conditions
                for case in unit.cases
            ]
            expected = load_benchmark("sentiment").examples(fold)
            assert sorted(asked) == sorted(case.id for case in expected)


WRONG = {
    "methds = ['caa']": "Did you mean 'methods'",
    "methods = ['cca']": "x.toml: methods: Unknown method 'cca'. Did you mean 'caa'",
    "methods = [{name = 'odesteer', gama = 1.0}]": "Did you mean 'gamma'",
    "methods = [{name = 'odesteer', p = 3.0}]": "0 <= p <= 1/2",
    "methods = ['caa', 'caa']": 'two rows with the id "caa"',
    "benchmark = 'truthful'": "Did you mean 'truthfulqa'",
    "benchmark = {name = 'persona', trail = 'x'}": "Did you mean 'trait'",
    "layers = ['14']": "a layer is a block index from 0, a list of them, or \"choose\"; got '14'",
    "layers = 'choose'": "needs candidates: [choose] layers",
    "doses = 'choose'": "needs candidates: [choose] doses",
    "doses = ['much']": "doses: a dose is an object with its type",
    "dose_type = 'angel'": "Did you mean 'angle'",
    "seeds = [0.5]": "seeds is a list of whole numbers; got [0.5]",
    "seeds = []": "seeds is a list of one value or more; got []",
    "seeds = [true]": "seeds is a list of whole numbers; got [True]",
    "limits = 3": "limits is a table; got 3",
    "damage = 1": "damage is true or false; got 1",
    "methods = [{name = 'caa', within = 0}]": "methods.within is more than 0; got 0",
    "samples = 2": "all the same at temperature 0",
    "samples = 0": "samples is a whole number from 1 on; got 0",
    "task = 'choice'": "Did you mean 'choices'",
    "positions = 'lst'": "positions",
    "model = {name = 'smollm2', dtype = 'float8'}": "Unknown dtype 'float8'",
    "sampling = {max_tokens = 8}": "Did you mean 'max_new_tokens'",
    "judges = ['vadder']": "Did you mean 'vader'",
    "judges = ['kl']": "damage = true measures it",
    "judges = 'ofline'": 'judges is "offline", "paper" or a list of names',
    "limits = {tset = 3}": "Did you mean 'test'",
    "matched = {kl = [0]}": "matched.kl is a list of numbers above 0",
    "choose = {metric = 'mc1'}": "choose.metric is one of vader, perplexity",
}


@pytest.mark.parametrize(("text", "words"), WRONG.items(), ids=list(WRONG))
def test_what_is_wrong_is_said_with_its_key_and_cure(text: str, words: str) -> None:
    with pytest.raises(ValueError) as error:
        parsed(**tomllib.loads(text))
    assert words in str(error.value), str(error.value)
    assert "x.toml" in str(error.value) or "p=3.0" in str(error.value)


def test_changes_of_the_command_line_replace_what_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('benchmark = "sentiment"\nmethods = ["caa"]\nlayers = 1\ndoses = 0.1\n')
    changed = read(path, ["limits.test=3", "model=here", "doses=[0.2]"])
    assert (changed.limits.test, changed.model.name, changed.doses) == (3, "here", (Angle(0.2),))
    assert (read(path).name, read(path).limits.test) == ("mine", None)
    with pytest.raises(ValueError, match="--set takes key=value"):
        read(path, ["limits.test"])
    with pytest.raises(FileNotFoundError, match="No experiment at"):
        read(tmp_path / "other.toml")
