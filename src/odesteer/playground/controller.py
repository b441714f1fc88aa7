"""Controller of the page: the actions of a user, without Gradio.

Each action takes a session and plain values, and returns HTML and plain values; errors become
text.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import NamedTuple

from odesteer.common.expression import NAME
from odesteer.common.registry import lookup
from odesteer.data import Contrast
from odesteer.evaluation.report import build, read_run, writers
from odesteer.evaluation.report.run import FILE
from odesteer.extraction.extract import Progress
from odesteer.models.chat_template import Messages
from odesteer.playground import html as markup
from odesteer.playground.library import (
    FittableContrast,
    SavedSteering,
    SharedModel,
    SteeringLibrary,
    check_name,
)
from odesteer.playground.session import (
    AS_LEARNT,
    LEARNT,
    STRENGTH,
    TARGET,
    Controls,
    Session,
    State,
    checked,
)
from odesteer.playground.side_by_side import GeneratedText, Steerings
from odesteer.playground.token_paths import phase_portrait, token_paths
from odesteer.steering import LayerSteering, Steering


def python(controls: Controls, library: SteeringLibrary, model: str, prompt: str | Messages) -> str:
    """Write a script from loading the model to printing the steered text.

    Args:
        controls: of the page.
        library: the steerings that it names.
        model: the argument of `load_model`.
        prompt: text or chat messages.

    Raises:
        ValueError: for a name that is not in the library.
    """
    assignments: list[str] = []
    names: dict[str, str] = {}

    def composed(expression: str) -> str:
        layer = controls.fit_layer(library, expression)
        for name in NAME.findall(expression):
            if name not in names:
                names[name] = _variable(name, names)
                call = lookup(library, name, "steering").python(controls.method, layer)
                assignments.append(f"{names[name]} = {call}")
        whole = NAME.sub(lambda match: names[match[0]], expression.strip())
        return whole if NAME.fullmatch(expression.strip()) else f"({whole})"

    assignments.append(f"steering = {_dosed(controls, composed(controls.expression))}")
    own = controls.positions == AS_LEARNT
    positions = "" if own else f", positions={controls.positions!r}"
    changes = [] if controls.solver == AS_LEARNT else [f"solver={controls.solver!r}"]
    changes += [f"steps={controls.steps}"] if controls.steps else []
    if changes:
        assignments.append(f"steering = steering.replace({', '.join(changes)})")
    generate, first = ["print(backend.generate([prompt], steering, sampling)[0])"], ""
    if controls.also.strip():
        second = composed(controls.also)
        assignments.append(f"second = {controls.also_amount:g} * {second}")
        first = f"with steering.attach(model{positions}):"
        generate = [first, "    print(backend.generate([prompt], second, sampling)[0])"]
    sampling = [f"max_new_tokens={controls.max_new_tokens}"]
    if controls.temperature > 0:
        sampling += [f"temperature={controls.temperature:g}", f"top_p={controls.top_p:g}"]
        sampling += [f"seed={controls.seed}"]
    if controls.repetition_penalty != 1.0:
        sampling += [f"repetition_penalty={controls.repetition_penalty:g}"]
    lines = [
        "import odesteer as ods",
        "from odesteer.models.loading import load_model",
        "",
        f"model, tokenizer = load_model({model!r})",
        *assignments,
        "",
        f"prompt = {_literal(prompt)}",
        f"backend = ods.TransformersBackend(model, tokenizer{positions})",
        f"sampling = ods.Sampling({', '.join(sampling)})",
        *generate,
    ]
    return "\n".join(lines) + "\n"


def _variable(name: str, taken: dict[str, str]) -> str:
    """Return a Python identifier for a steering that no other one has."""
    variable = re.sub(r"\W", "_", name)
    variable = f"_{variable}" if variable[0].isdigit() else variable
    while variable in {
        "model",
        "tokenizer",
        "steering",
        "second",
        "prompt",
        "ods",
        *taken.values(),
    }:
        variable += "_"
    return variable


def _dosed(controls: Controls, steering: str) -> str:
    if controls.dose == LEARNT:
        return f"{controls.amount:g} * {steering}"
    dose = f"{controls.amount:g}"
    if controls.dose != STRENGTH:
        dose = f"ods.Angle({dose})"
    if controls.dose == TARGET:
        dose = f"ods.Target({controls.probability:g}, {dose})"
    return f"{steering}.with_strength({dose})"


def _literal(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return repr(prompt)
    return "[\n" + "".join(f"    {dict(message)!r},\n" for message in prompt) + "]"


_FIRST = "Nobody has used {} here yet. Fit and check it, or press Generate to learn it unchecked."


class View(NamedTuple):
    """Content of the first tab; None leaves what is there."""

    error: str = ""
    texts: str | None = None
    details: str | None = None
    python: str | None = None
    link: str | None = None


@dataclass(frozen=True)
class Controller:
    """Actions on what all users share: the model, the library and the directories.

    Attributes:
        shared: the model.
        library: steerings that everyone can choose.
        keep: the directory that steerings are saved in.
        runs: directories of runs whose reports can be read, by name.
    """

    shared: SharedModel
    library: SteeringLibrary
    keep: Path
    runs: dict[str, Path]

    def send(
        self,
        session: Session,
        prompt: str,
        system: str,
        chat: bool,
        controls: Controls,
        requested_at: float | None = None,
    ) -> Iterator[View]:
        """Write all texts for a prompt; `requested_at`: see `Session.claim`."""
        try:
            session.send(prompt, chat)
        except ValueError as error:
            yield View(markup.error(error))
            return
        yield from self._guarded(session, system, controls, requested_at)

    def again(
        self, session: Session, system: str, controls: Controls, requested_at: float | None = None
    ) -> Iterator[View]:
        """Write all texts of the current prompt anew, with the controls as they are now.

        What nobody has fitted yet waits for a person to ask for it.
        """
        if not session.prompt:
            return
        library = session.library(self.library)
        names = NAME.findall(f"{controls.expression} {controls.also}")
        unknown = [name for name in names if name in library and not library[name].ready()]
        if unknown:
            session.claim(requested_at)
            yield View(markup.note(_FIRST.format(" and ".join(unknown))))
            return
        yield from self._guarded(session, system, controls, requested_at)

    def _guarded(
        self, session: Session, system: str, controls: Controls, requested_at: float | None
    ) -> Iterator[View]:
        try:
            yield from self._write(session, system, controls, session.claim(requested_at))
        except (ValueError, OSError, ImportError) as error:
            yield View(markup.error(error))

    def _write(
        self, session: Session, system: str, controls: Controls, generation: float
    ) -> Iterator[View]:
        library = session.library(self.library)
        rivals = [controls.model_copy(update={"method": controls.rival})] if controls.rival else []
        titles, sides = ["Unsteered"], list[Steerings]([()])
        for each in (controls, *rivals):
            if not each.ready(library):
                yield View(markup.note("Learning from the examples; this takes a while."))
            steerings = each.steerings(self.shared, library)
            sides.append(steerings)
            times = f" × {each.amount:g}" if each.dose == LEARNT else f", {steerings[0].dose}"
            aims = f"{each.expression}{times}"
            aims += f" and {each.also} × {each.also_amount:g}" if steerings[1:] else ""
            method = f" ({each.method})" if rivals else ""
            titles.append(f"Steered{method}: {aims}")
        for _ in session.write(self.shared, controls, sides, system, generation):
            shown = markup.texts(session, titles, controls.expression, writing=True)
            yield View(texts=shown)
        if session.generation != generation:
            return  # a newer one has begun, and shows its text
        prompt = session.messages(self.shared.tokenizer, system, 1)
        yield View(
            texts=markup.texts(session, titles, controls.expression, writing=False),
            details=self._details(session.texts[1], sides[1][0].parts[-1]),
            python=python(controls, library, self.shared.name, prompt),
            link=self._link(session, system, controls),
        )

    def _details(self, text: GeneratedText, part: LayerSteering) -> str:
        if not text.tokens:
            return ""
        paths = token_paths(text, part)
        words = [token.text for token in text.tokens]
        drawn = markup.flow(paths, words) + markup.portrait(phase_portrait(paths, part))
        return f'{markup.facts(text)}<div class="pg-figures">{drawn}</div>'

    def _link(self, session: Session, system: str, controls: Controls) -> str:
        try:
            state = checked(
                State, controls.model_dump() | {"prompt": session.prompt, "system": system}
            )
        except ValueError as error:
            return markup.note(f"No link: {error}")
        return markup.link(state.query())

    def save(self, session: Session, name: str, controls: Controls) -> str:
        """Save the current steering to a new directory, and add it to the session's library."""
        try:
            name = check_name(name)
            steerings = controls.steerings(self.shared, session.library(self.library))
            steering = Steering.of(steerings)
            target = self.keep / name
            if target.exists() or name in session.library(self.library):
                raise ValueError(f"There is a '{name}' already; choose another name.")
            steering.save_pretrained(target)
        except (ValueError, OSError) as error:
            return markup.error(error)
        session.private[name] = SavedSteering(steering, str(target))
        return markup.note(f"Saved in {target}; it can be chosen as {name}.")

    def examples(self, session: Session, name: str) -> Contrast | None:
        """Return the examples of a contrast, for a person to see and to change."""
        source = session.library(self.library).get(name)
        return source.contrast if isinstance(source, FittableContrast) else None

    def fit(
        self,
        session: Session,
        name: str,
        method: str,
        examples: tuple[str, str, str] = ("", "", ""),
        file: str | None = None,
        progress: Callable[[str], Progress] | None = None,
    ) -> tuple[str, float | None]:
        """Fit examples, or a contrast of the library; return the verdict and the amount or None.

        Args:
            session: of the person.
            name: of the contrast, or for the examples.
            method: a name in `METHODS`.
            examples: prompts, positives and negatives, one a line; all empty for the library's.
            file: a path of what was uploaded instead.
            progress: see `FittableContrast.assess`.
        """
        try:
            name = check_name(name)
            if file is None and not any(examples):
                source = lookup(session.library(self.library), name, "steering")
                if isinstance(source, SavedSteering):
                    raise ValueError(f"'{name}' is saved, and has no examples to fit.")
            else:
                if name in self.library:
                    raise ValueError(f"'{name}' is everyone's; choose another name.")
                contrast, code = _contrast(*examples, file)
                source = FittableContrast(lambda: contrast, code)
            amount, assessment = source.assess(self.shared, method, progress)
        except (ValueError, OSError, ImportError) as error:
            return markup.error(error), None
        if name not in self.library:
            session.private[name] = source
        return markup.verdict(name, source.contrast, assessment), amount

    def restore(self, query: Mapping[str, str]) -> tuple[State | None, str]:
        """Return the state that an address names, or None, and a line about it."""
        try:
            state = State.parse(query)
        except ValueError as error:
            return None, markup.error(f"The link is wrong: {error}")
        words = "These are the settings of a link: press Generate for its texts."
        return state, markup.note(words) if state else ""

    def report(self, name: str | None) -> str:
        """Return the report of a run, in a frame."""
        try:
            if not name:
                raise ValueError("Choose a run.")
            page = writers.html([build(read_run(lookup(self.runs, name, "run")))])
        except (ValueError, OSError) as error:
            return markup.error(error)
        return (
            f'<iframe class="pg-report" sandbox title="Report of {escape(name)}" '
            f'srcdoc="{escape(page)}"></iframe>'
        )


def runs_in(folder: Path) -> dict[str, Path]:
    """Return the directories of runs by name: `folder` itself, or those in it."""
    if (folder / FILE).is_file():
        return {folder.name: folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{FILE}"))}


def _contrast(prompts: str, positive: str, negative: str, file: str | None) -> tuple[Contrast, str]:
    """Return a contrast from a file or from lines of text, and Python that makes it."""
    if file is not None:
        path = Path(file)
        return _read(path), f"ods.Contrast.from_file({path.name!r})"
    sides = {
        name: [line.strip() for line in text.splitlines() if line.strip()]
        for name, text in (("prompt", prompts), ("positive", positive), ("negative", negative))
    }
    if not sides["prompt"]:
        del sides["prompt"]
    for name in ("positive", "negative"):
        if len(sides[name]) < 2:
            raise ValueError(
                f"Give at least two {name} examples, one a line; got {len(sides[name])}. Or upload "
                f"a file."
            )
    if len(set(map(len, sides.values()))) > 1:
        counts = ", ".join(f"{len(lines)} {name}" for name, lines in sides.items())
        raise ValueError(
            f"Line i of all boxes belongs together: got {counts} lines. Leave out what has no "
            f"partner, or upload a file."
        )
    rows = [dict(zip(sides, row, strict=True)) for row in zip(*sides.values(), strict=True)]
    lines = "".join(f"    {row!r},\n" for row in rows)
    return Contrast.from_rows(rows), f"ods.Contrast.from_rows([\n{lines}])"


def _read(path: Path) -> Contrast:
    # An upload has a temporary path, which would be in every message.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        try:
            return Contrast.from_file(copy)
        except (ValueError, UnicodeError) as error:
            raise ValueError(str(error).replace(f"{folder}/", "")) from None
