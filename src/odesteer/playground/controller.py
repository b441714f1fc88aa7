"""Controller of the page: the actions of a user, without Gradio.

Each action takes a session and plain values, and returns HTML and plain values; errors become
text.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
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
from odesteer.fitting import middle_layers
from odesteer.models.chat_template import Messages
from odesteer.playground import html as markup
from odesteer.playground import svg_charts as charts
from odesteer.playground.generate_pair import GeneratedText
from odesteer.playground.library import (
    SavedSteering,
    SharedModel,
    SteeringLibrary,
    check_name,
    prepare_contrast,
)
from odesteer.playground.session import AS_LEARNT, STRENGTH, TARGET, Controls, Session
from odesteer.playground.token_paths import phase_portrait, token_paths
from odesteer.steering import LayerSteering, Steering


def python(controls: Controls, library: SteeringLibrary, model: str, prompt: str | Messages) -> str:
    """Write a script from loading the model to printing the steered text.

    Args:
        controls: of the page.
        library: the steerings that its expression names.
        model: the argument of `load_model`.
        prompt: text or chat messages.

    Raises:
        ValueError: for a name that is not in the library.
    """
    imports: list[str] = []
    assignments: list[str] = []
    names: dict[str, str] = {}
    for name, source in controls.sources(library).items():
        lines, call = source.python(controls.method, controls.fit_layer(library))
        imports += [line for line in lines if line not in imports]
        names[name] = _variable(name, names)
        assignments.append(f"{names[name]} = {call}")
    whole = NAME.sub(lambda match: names[match[0]], controls.expression.strip())
    whole = whole if NAME.fullmatch(controls.expression.strip()) else f"({whole})"
    assignments.append(f"steering = {whole}.with_strength({_dose(controls)})")
    changes = [] if controls.solver == AS_LEARNT else [f"solver={controls.solver!r}"]
    changes += [f"steps={int(controls.steps)}"] if controls.steps else []
    if changes:
        assignments.append(f"steering = steering.replace({', '.join(changes)})")
    sampling = [f"max_new_tokens={controls.max_new_tokens}"]
    if controls.temperature > 0:
        sampling += [f"temperature={controls.temperature:g}", f"seed={controls.seed}"]
    lines = [
        "import odesteer as ods",
        *sorted([*imports, "from odesteer.models.loading import load_model"]),
        "",
        f"model, tokenizer = load_model({model!r})",
        *assignments,
        "",
        f"prompt = {_literal(prompt)}",
        f"backend = ods.TransformersBackend(model, tokenizer, positions={controls.positions!r})",
        f"sampling = ods.Sampling({', '.join(sampling)})",
        "print(backend.generate([prompt], steering, sampling)[0])",
    ]
    return "\n".join(lines) + "\n"


def _variable(name: str, taken: dict[str, str]) -> str:
    """Return a Python identifier for a steering that no other one has."""
    variable = re.sub(r"\W", "_", name)
    variable = f"_{variable}" if variable[0].isdigit() else variable
    while variable in {"model", "tokenizer", "steering", "prompt", "ods", *taken.values()}:
        variable += "_"
    return variable


def _dose(controls: Controls) -> str:
    if controls.dose == STRENGTH:
        return f"{controls.amount:g}"
    angle = f"ods.Angle({controls.amount:g})"
    return f"ods.Target({controls.probability:g}, {angle})" if controls.dose == TARGET else angle


def _literal(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return repr(prompt)
    return "[\n" + "".join(f"    {dict(message)!r},\n" for message in prompt) + "]"


class View(NamedTuple):
    """Content of the first tab; None leaves what is there."""

    error: str = ""
    texts: str | None = None
    facts: str | None = None
    figures: str | None = None
    python: str | None = None


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
        """Write both texts for a prompt; `requested_at`: see `Session.claim`."""
        try:
            session.send(prompt, chat)
        except ValueError as error:
            yield View(markup.error(error))
            return
        yield from self.again(session, system, controls, requested_at)

    def again(
        self, session: Session, system: str, controls: Controls, requested_at: float | None = None
    ) -> Iterator[View]:
        """Write both texts of the current prompt anew, with the controls as they are now."""
        if not session.prompt:
            return
        try:
            yield from self._write(session, system, controls, session.claim(requested_at))
        except (ValueError, OSError, ImportError) as error:
            yield View(markup.error(error))

    def _write(
        self, session: Session, system: str, controls: Controls, generation: float
    ) -> Iterator[View]:
        library = session.library(self.library)
        steering = controls.steering(self.shared, library)
        label = f"Steered: {controls.expression}, {steering.dose}"
        pair = session.pair
        for pair in session.write(self.shared, controls, steering, system, generation):
            shown = markup.texts(session.turns, session.prompt, pair, label, writing=True)
            yield View(texts=shown, facts=markup.facts(pair))
        if session.generation != generation:
            return  # a newer one has begun, and shows its text
        shown = markup.texts(session.turns, session.prompt, pair, label, writing=False)
        prompt = session.messages(self.shared.tokenizer, system, 1)
        yield View(
            texts=shown,
            facts=markup.facts(pair),
            figures=self._figures(pair[1], steering.parts[-1]),
            python=python(controls, library, self.shared.name, prompt),
        )

    def _figures(self, text: GeneratedText, part: LayerSteering) -> str:
        if not text.tokens:
            return ""
        paths = token_paths(text, part)
        words = [token.text for token in text.tokens]
        drawn = charts.flow(paths, words) + charts.portrait(phase_portrait(paths, part))
        return f'<div class="pg-figures">{drawn}</div>'

    def save(self, session: Session, name: str, controls: Controls) -> str:
        """Save the current steering to a new directory, and add it to the session's library."""
        try:
            name = check_name(name)
            steering: Steering = controls.steering(self.shared, session.library(self.library))
            target = self.keep / name
            if target.exists() or name in session.library(self.library):
                raise ValueError(f"There is a '{name}' already; choose another name.")
            steering.save_pretrained(target)
        except (ValueError, OSError) as error:
            return markup.error(error)
        session.private[name] = SavedSteering(steering, str(target))
        return markup.note(f"Saved in {target}; it can be chosen as {name}.")

    def fit(
        self,
        session: Session,
        name: str,
        method: str,
        positive: str,
        negative: str,
        file: str | None,
        progress: Progress | None = None,
    ) -> tuple[str, int | None]:
        """Fit pasted or uploaded examples; return HTML and the best layer or None."""
        try:
            name = check_name(name)
            if name in self.library:
                raise ValueError(f"'{name}' is everyone's; choose another name.")
            contrast, code = _contrast(positive, negative, file)
            layers = middle_layers(self.shared.model)
            source = prepare_contrast(self.shared, contrast, layers, progress, code=code)
            steering = source.get(self.shared, method, source.best)
        except (ValueError, OSError, ImportError) as error:
            return markup.error(error), None
        session.private[name] = source
        return _quality(name, contrast, steering.parts[0]), source.best

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


def _contrast(positive: str, negative: str, file: str | None) -> tuple[Contrast, str | None]:
    """Return a contrast from a file or from lines of text, and Python that makes it."""
    if file is not None:
        path = Path(file)
        return _read(path), f"ods.Contrast.from_file({path.name!r})"
    sides = [
        [line.strip() for line in text.splitlines() if line.strip()]
        for text in (positive, negative)
    ]
    for side, name in zip(sides, ("positive", "negative"), strict=True):
        if len(side) < 2:
            raise ValueError(
                f"Give at least two {name} examples, one a line; got {len(side)}. Or upload a file."
            )
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"Line i of both sides belongs together: got {len(sides[0])} positive and "
            f"{len(sides[1])} negative examples. Leave out what has no partner, or upload a file."
        )
    return Contrast.from_pairs(positive=sides[0], negative=sides[1]), None


def _read(path: Path) -> Contrast:
    # An upload has a temporary path, which would be in every message.
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)
        try:
            return Contrast.from_file(copy)
        except (ValueError, UnicodeError) as error:
            raise ValueError(str(error).replace(f"{folder}/", "")) from None


def _quality(name: str, contrast: Contrast, steering: LayerSteering) -> str:
    held_out = steering.receipts.get("held_out")
    counts = f"{len(contrast.positive)} positive and {len(contrast.negative)} negative examples"
    words = f"{name} is ready: {counts}, {steering.method} at layer {steering.layer}."
    if held_out is None:
        return markup.note(f"{words} Nothing was held out: it has no barrier to be measured.")
    cells = [
        ("held-out AUC", f"{held_out['auc']:.3f}"),
        ("log-loss (chance 0.693)", f"{held_out['log_loss']:.3f}"),
        ("calibration error", f"{held_out['ece']:.3f}"),
    ]
    items = "".join(f"<div><dt>{key}</dt><dd>{value}</dd></div>" for key, value in cells)
    curve = charts.reliability(steering.receipts["reliability"])
    return f'{markup.note(words)}<dl class="pg-facts">{items}</dl>{curve}'
