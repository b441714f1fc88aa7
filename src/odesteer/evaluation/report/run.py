"""Run of an experiment, as read from its results file.

`results.jsonl` has a line of JSON for the run itself, then one for every fit, choice, case and
barrier, then one that marks the end. It grows as the run goes and may end anywhere: an unfinished
file is read with a remark. Any other defect is an error, since a number read wrongly is worse than
none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from odesteer.common.limits import brief, parse_json, text_lines


@dataclass(frozen=True)
class Condition:
    """Setting that cases have in common: method, dose, layer, seed.

    Attributes:
        id: names it within the run.
        method: "none", "prompt", "random" or a method's name.
        label: display name.
        dose: {"type": "angle", "amount": 0.1}, say; None without one, or where it was chosen.
        layer: a block, several, or None.
        chosen: layer and dose come from a `choice` line of each fold.
        steps: of the solver, where the run sets them.
        seed: of fit and generation.
    """

    id: str
    method: str
    label: str
    dose: Mapping[str, Any] | None = None
    layer: Any = None
    chosen: bool = False
    steps: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Answer:
    """Answer of one condition to one case.

    `scores` are by judge or metric, None where unscored, with the reason in `reasons`.
    """

    condition: str
    fold: int
    case: str
    group: str
    sample: int
    prompt: Any
    generation: str | None
    choices: Mapping[str, float] | None
    scores: Mapping[str, float | None]
    reasons: Mapping[str, str]

    @property
    def place(self) -> tuple[int, str, int]:
        """Key that answers of all conditions to the same case share."""
        return self.fold, self.case, self.sample


@dataclass(frozen=True)
class Run:
    """Run as it is on disk.

    Attributes:
        path: the file.
        config: of the experiment.
        model, benchmark: descriptions; the benchmark's has the checksums of its files.
        judges: unit, higher_is and agreement of each.
        conditions: by id, in the file's order.
        answers: by condition, in the file's order.
        fits, choices, barriers, trajectories: those lines as they are.
        finished: whether its last line says so.
        notes: of the benchmark and of the run.
        remarks: on the file, such as that the run is not finished.
    """

    path: Path
    config: Mapping[str, Any]
    version: str
    model: Mapping[str, Any]
    benchmark: Mapping[str, Any]
    folds: tuple[Mapping[str, Any], ...]
    judges: Mapping[str, Mapping[str, str]]
    conditions: Mapping[str, Condition]
    answers: Mapping[str, tuple[Answer, ...]]
    fits: tuple[Mapping[str, Any], ...] = ()
    choices: tuple[Mapping[str, Any], ...] = ()
    barriers: tuple[Mapping[str, Any], ...] = ()
    trajectories: tuple[Mapping[str, Any], ...] = ()
    finished: bool = True
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run's directory."""
        return self.path.resolve().parent.name

    @property
    def title(self) -> str:
        model = str(self.model.get("name") or "unknown model").rstrip("/").split("/")[-1]
        return str(self.config.get("title") or f"{self.benchmark.get('name', 'run')}, {model}")


FILE, SCHEMA = "results.jsonl", 1
# Numbers of a case that no judge gave; they are read like scores.
_MEASURED = ("kl", "nll", "displacement")
_KINDS = {"run", "case", "fit", "choice", "barrier", "trajectory", "note", "end"}


def read_run(path: str | Path) -> Run:
    """Read the run in a directory, or in a results file.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if the file is not a run's, is of a newer version, holds no case yet, or a
            line before its last is damaged.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        what = f"{FILE} in '{path}'" if path.is_dir() else f"run '{path}'"
        raise FileNotFoundError(
            f"There is no {what}; give a directory that `odesteer run` wrote to."
        )
    lines = _lines(file)
    torn = False
    by_kind: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for number, line, is_last in lines:
        try:
            value = parse_json(line)
            if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
                raise ValueError("it is no object with a kind")
        except ValueError as error:
            if is_last and number > 1:
                torn = True  # killed while it wrote
                break
            raise _foreign(file, number, error) from None
        if number == 1:
            _check_first(file, value)
        by_kind.setdefault(value["kind"], []).append((number, value))
    if "run" not in by_kind:
        raise ValueError(f"'{file}' is empty: the run has not started; wait, or start it again.")
    return _assembled(file, by_kind, torn)


def _lines(file: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield (number from 1, line, whether it is the last) of non-empty lines."""
    before = None
    # A line that is cut off may end within a character; what is no UTF-8 is refused with its line.
    for number, line in enumerate(text_lines(file, errors="surrogateescape"), start=1):
        if line.strip():
            if before is not None:
                yield *before, False
            before = number, line
    if before is not None:
        yield *before, True


def _foreign(file: Path, number: int, error: Exception) -> ValueError:
    what = "is no result file of odesteer" if number == 1 else f"is damaged at line {number}"
    cure = "" if number == 1 else "; remove the line and let `odesteer run` go on"
    return ValueError(f"'{file}' {what}: {brief(error)}{cure}.")


def _check_first(file: Path, first: Mapping[str, Any]) -> None:
    if first["kind"] != "run":
        raise ValueError(
            f"'{file}' is no result file of odesteer: its first line is of kind "
            f"{first['kind']!r:.40} instead of 'run'."
        )
    schema = first.get("schema")
    if not isinstance(schema, int) or schema > SCHEMA:
        raise ValueError(
            f"'{file}' has schema {schema!r:.40}, and this version reads up to {SCHEMA}; update "
            f"odesteer."
        )


def _assembled(
    file: Path, by_kind: Mapping[str, list[tuple[int, Mapping[str, Any]]]], torn: bool
) -> Run:
    first = by_kind["run"][0][1]
    try:
        conditions = {str(c["id"]): _condition(c) for c in first["conditions"]}
        config, model = dict(first["config"]), dict(first["model"])
        benchmark = dict(first["benchmark"])
        judges = {name: dict(facts) for name, facts in first.get("judges", {}).items()}
        folds, notes = tuple(first.get("folds", ())), tuple(map(str, benchmark.get("notes", ())))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"'{file}' is damaged at line 1: {brief(error)}.") from None
    answers = _answers(file, by_kind.get("case", []), conditions)
    if not any(answers.values()) and "barrier" not in by_kind:
        raise ValueError(
            f"'{file}' holds no case yet: there is nothing to report until the run has judged some."
        )

    def kind(name: str) -> tuple[Mapping[str, Any], ...]:
        lines = (line for _, line in by_kind.get(name, []))
        return tuple(line for line in lines if str(line.get("condition")) in conditions)

    return Run(
        path=file,
        config=config,
        version=str(first.get("version", "")),
        model=model,
        benchmark=benchmark,
        folds=folds,
        judges=judges,
        conditions=conditions,
        answers=answers,
        fits=kind("fit"),
        choices=kind("choice"),
        barriers=kind("barrier"),
        trajectories=kind("trajectory"),
        finished="end" in by_kind,
        notes=(
            *notes,
            *(str(line.get("text", "")) for _, line in by_kind.get("note", [])),
        ),
        remarks=_remarks(file, by_kind, sum(map(len, answers.values())), torn),
    )


def _remarks(
    file: Path, by_kind: Mapping[str, list[tuple[int, Mapping[str, Any]]]], cases: int, torn: bool
) -> tuple[str, ...]:
    """Return remarks on the file.

    Raises:
        ValueError: if it is finished and has other cases than it says.
    """
    remarks = [
        f"{len(by_kind[kind])} lines of kind '{kind:.40}' are not known to this version and not "
        f"reported."
        for kind in sorted(set(by_kind) - _KINDS)
    ]
    if "end" not in by_kind:
        end = "its last line is cut off" if torn else "it has no last line"
        remarks.append(
            f"This run is not finished ({end}): what follows is of the {cases} answers so far."
        )
    elif by_kind["end"][-1][1].get("cases") != cases:
        raise ValueError(
            f"'{file}' has {cases} cases, and its last line says "
            f"{by_kind['end'][-1][1].get('cases')!r:.20}; lines were lost or added."
        )
    return tuple(remarks)


def _condition(line: Mapping[str, Any]) -> Condition:
    dose, steps = line.get("dose"), line.get("steps")
    return Condition(
        id=str(line["id"]),
        method=str(line["method"]),
        label=str(line.get("label") or line["method"]),
        dose=dict(dose) if dose is not None else None,
        layer=line.get("layer"),
        chosen=bool(line.get("chosen", False)),
        steps=int(steps) if steps is not None else None,
        seed=int(line.get("seed", 0)),
    )


def _answers(
    file: Path,
    lines: list[tuple[int, Mapping[str, Any]]],
    conditions: Mapping[str, Condition],
) -> dict[str, tuple[Answer, ...]]:
    answers: dict[str, dict[tuple[int, str, int], Answer]] = {name: {} for name in conditions}
    for number, line in lines:
        try:
            answer = _answer(line)
            if answer.condition not in answers:
                raise ValueError(f"its condition '{answer.condition:.60}' is not in the first line")
            if answer.place in answers[answer.condition]:
                raise ValueError(
                    f"case '{answer.case:.40}' of '{answer.condition:.60}' is there twice"
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"'{file}' is damaged at line {number}: {brief(error)}.") from None
        answers[answer.condition][answer.place] = answer
    return {name: tuple(by_place.values()) for name, by_place in answers.items()}


def _answer(line: Mapping[str, Any]) -> Answer:
    scores = {key: line[key] for key in _MEASURED if key in line}
    scores.update(line.get("scores", {}))
    generation, case = line.get("generation"), str(line["case"])
    return Answer(
        condition=str(line["condition"]),
        fold=int(line.get("fold", 0)),
        case=case,
        group=str(line.get("group") or case),
        sample=int(line.get("sample", 0)),
        prompt=line.get("prompt", ""),
        generation=None if generation is None else str(generation),
        choices=line.get("choices"),
        scores={name: _score(name, value) for name, value in scores.items()},
        reasons=dict(line.get("reasons") or {}),
    )


def _score(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the score '{name:.40}' is {value!r:.40}, neither a number nor null")
    return float(value)
