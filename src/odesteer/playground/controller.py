"""Controller of the page: what each user action does.

Each act is given a session and plain values, and gives HTML and plain values back; errors are
words. Gradio is not known here.
"""

import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from odesteer.data import Contrast
from odesteer.extraction.extract import Progress
from odesteer.fitting import middle_layers
from odesteer.models.chat_template import Messages
from odesteer.playground import html as markup
from odesteer.playground import svg_charts as picture
from odesteer.playground.generate_pair import GeneratedText
from odesteer.playground.library import (
    SavedSteering,
    SharedModel,
    SteeringLibrary,
    check_name,
    learnable,
)
from odesteer.playground.session import AS_LEARNT, STRENGTH, TARGET, Controls, Session
from odesteer.playground.token_paths import portrait, ways
from odesteer.steering import LayerSteering, Steering
from odesteer.steering.expression import NAME


def python(setting: Controls, shelf: SteeringLibrary, model: str, prompt: str | Messages) -> str:
    """A script from loading the model to printing the steered text.

    Args:
        setting: the controls.
        shelf: what its expression names.
        model: what `load_model` is to load.
        prompt: text or chat messages.

    Raises:
        ValueError: for a name that is not on the shelf.
    """
    imports: list[str] = []
    made: list[str] = []
    names: dict[str, str] = {}
    used = setting.used(shelf)
    for name, source in used.items():
        lines, call = source.python(setting.method, setting.place(shelf))
        imports += [line for line in lines if line not in imports]
        names[name] = _variable(name, names)
        made.append(f"{names[name]} = {call}")
    whole = NAME.sub(lambda match: names[match[0]], setting.expression.strip())
    whole = whole if NAME.fullmatch(setting.expression.strip()) else f"({whole})"
    made.append(f"steering = {whole}.with_strength({_dose(setting)})")
    changes = [] if setting.solver == AS_LEARNT else [f"solver={setting.solver!r}"]
    changes += [f"steps={int(setting.steps)}"] if setting.steps else []
    if changes:
        made.append(f"steering = steering.replace({', '.join(changes)})")
    sampling = [f"max_new_tokens={setting.max_new_tokens}"]
    if setting.temperature > 0:
        sampling += [f"temperature={setting.temperature:g}", f"seed={setting.seed}"]
    lines = [
        "import odesteer as ods",
        *sorted([*imports, "from odesteer.models.loading import load_model"]),
        "",
        f"model, tokenizer = load_model({model!r})",
        *made,
        "",
        f"prompt = {_literal(prompt)}",
        f"backend = ods.TransformersBackend(model, tokenizer, positions={setting.positions!r})",
        f"sampling = ods.Sampling({', '.join(sampling)})",
        "print(backend.generate([prompt], steering, sampling)[0])",
    ]
    return "\n".join(lines) + "\n"


def _variable(name: str, taken: dict[str, str]) -> str:
    """A Python name for a steering's, which no other one has."""
    variable = re.sub(r"\W", "_", name)
    variable = f"_{variable}" if variable[0].isdigit() else variable
    while variable in {"model", "tokenizer", "steering", "prompt", "ods", *taken.values()}:
        variable += "_"
    return variable


def _dose(setting: Controls) -> str:
    if setting.dose == STRENGTH:
        return f"{setting.amount:g}"
    angle = f"ods.Angle({setting.amount:g})"
    return f"ods.Target({setting.probability:g}, {angle})" if setting.dose == TARGET else angle


def _literal(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return repr(prompt)
    return "[\n" + "".join(f"    {dict(message)!r},\n" for message in prompt) + "]"


class View(NamedTuple):
    """What stands on the first tab; None: what stood there stays."""

    error: str = ""
    texts: str | None = None
    facts: str | None = None
    figures: str | None = None
    python: str | None = None


@dataclass(frozen=True)
class Controller:
    """What all people share: the model, what there is to choose from, and where things are kept.

    Attributes:
        desk: the model.
        shelf: steerings that everyone can choose.
        keep: the directory that steerings are saved in.
        runs: directories of runs whose reports can be read, by name.
    """

    desk: SharedModel
    shelf: SteeringLibrary
    keep: Path
    runs: dict[str, Path]

    def send(
        self,
        session: Session,
        prompt: str,
        system: str,
        chat: bool,
        setting: Controls,
        asked: float | None = None,
    ) -> Iterator[View]:
        """Write both texts for a prompt; `asked`: see `Session.claim`."""
        try:
            session.send(prompt, chat)
        except ValueError as error:
            yield View(markup.error(error))
            return
        yield from self.again(session, system, setting, asked)

    def again(
        self, session: Session, system: str, setting: Controls, asked: float | None = None
    ) -> Iterator[View]:
        """Write both texts of the current prompt anew, with what the controls say now."""
        if not session.prompt:
            return
        try:
            yield from self._write(session, system, setting, session.claim(asked))
        except (ValueError, OSError, ImportError) as error:
            yield View(markup.error(error))

    def _write(
        self, session: Session, system: str, setting: Controls, mine: float
    ) -> Iterator[View]:
        shelf = session.shelf(self.shelf)
        steering = setting.steering(self.desk, shelf)
        label = f"Steered: {setting.expression}, {steering.dose}"
        pair = session.pair
        for pair in session.write(self.desk, setting, steering, system, mine):
            shown = markup.texts(session.turns, session.prompt, pair, label, writing=True)
            yield View(texts=shown, facts=markup.facts(pair))
        if session.generation != mine:
            return  # a newer one has begun, and shows its own
        shown = markup.texts(session.turns, session.prompt, pair, label, writing=False)
        prompt = session.messages(self.desk.tokenizer, system, 1)
        yield View(
            texts=shown,
            facts=markup.facts(pair),
            figures=self._figures(pair[1], steering.parts[-1]),
            python=self._python(setting, shelf, prompt),
        )

    def _figures(self, text: GeneratedText, part: LayerSteering) -> str:
        if not text.tokens:
            return ""
        found = ways(text, part)
        words = [token.text for token in text.tokens]
        drawn = picture.flow(found, words) + picture.portrait(portrait(found, part))
        return f'<div class="pg-figures">{drawn}</div>'

    def _python(self, setting: Controls, shelf: SteeringLibrary, prompt: str | Messages) -> str:
        return python(setting, shelf, self.desk.name, prompt)

    # ---- keeping

    def save(self, session: Session, name: str, setting: Controls) -> str:
        """Write the current steering to a directory of its own, and put it on the shelf."""
        try:
            name = check_name(name)
            steering: Steering = setting.steering(self.desk, session.shelf(self.shelf))
            target = self.keep / name
            if target.exists() or name in session.shelf(self.shelf):
                raise ValueError(f"There is a '{name}' already; choose another name.")
            steering.save_pretrained(target)
        except (ValueError, OSError) as error:
            return markup.error(error)
        session.own[name] = SavedSteering(steering, str(target))
        return markup.note(f"Saved in {target}; it can be chosen as {name}.")

    # ---- fitting

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
        """Learn from pasted or uploaded examples: (HTML, the best layer or None)."""
        try:
            name = check_name(name)
            if name in self.shelf:
                raise ValueError(f"'{name}' is everyone's; choose another name.")
            contrast, code = _contrast(positive, negative, file)
            layers = middle_layers(self.desk.model)
            found = learnable(self.desk, contrast, layers, progress, code=code)
            steering = found.obtain(self.desk, method, found.best)
        except (ValueError, OSError, ImportError) as error:
            return markup.error(error), None
        session.own[name] = found
        return _quality(name, contrast, steering.parts[0]), found.best

    # ---- reports

    def report(self, name: str | None) -> str:
        """The report of a run, in a frame of its own."""
        from html import escape

        from odesteer.common.registry import lookup
        from odesteer.evaluation.report import build, read_run
        from odesteer.evaluation.report.html import document

        try:
            if not name:
                raise ValueError("Choose a run.")
            page = document([build(read_run(lookup(self.runs, name, "run")))])
        except (ValueError, OSError) as error:
            return markup.error(error)
        return (
            f'<iframe class="pg-report" sandbox title="Report of {escape(name)}" '
            f'srcdoc="{escape(page)}"></iframe>'
        )


def runs_in(folder: Path) -> dict[str, Path]:
    """Directories of runs by name: `folder` itself, or those in it."""
    from odesteer.evaluation.report.run import FILE

    if (folder / FILE).is_file():
        return {folder.name: folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{FILE}"))}


def _contrast(positive: str, negative: str, file: str | None) -> tuple[Contrast, str | None]:
    """A contrast from a file or from lines of text, and Python that makes it."""
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
    return Contrast.from_pairs(positive=sides[0], negative=sides[1]), None


def _read(path: Path) -> Contrast:
    # An upload lies under a name of the server's making, which would be in every message.
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
    curve = picture.reliability(steering.receipts["reliability"])
    return f'{markup.note(words)}<dl class="pg-facts">{items}</dl>{curve}'
