"""How is the page laid out, and which control does what?

The only file that knows Gradio, with `server`. Every act is in `acts`.
"""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from odesteer.fitting import middle_layers
from odesteer.layers import find_layers
from odesteer.methods import METHODS
from odesteer.ode import SOLVERS
from odesteer.playground import markup
from odesteer.playground.acts import Acts, Shown
from odesteer.playground.look import KEY
from odesteer.playground.session import Session
from odesteer.playground.setting import ANGLE, AS_LEARNT, DOSES, TARGET, Setting
from odesteer.playground.shelf import Learnable
from odesteer.positions import POSITIONS

# Methods that move heads at all layers have no place of their own in this page's figures.
METHOD_NAMES = [n for n, m in METHODS.items() if m.site == "residual" and n != "none"]
STEER, FIT, REPORT = "steer", "fit", "report"
PEOPLE = 8  # who may wait for the model at once; it is held for a token at a time
EXAMPLE = "Describe the street outside your window."
_REST = 0.1  # seconds
# When it was asked for, by the clock of the page: what is newer wins, whichever comes first.
_NOW = "(...values) => { values[1] = performance.timeOrigin + performance.now(); return values; }"
Outputs = tuple[Any, ...]


def build(acts: Acts, system: str = "") -> gr.Blocks:
    """The page, for `gr.Blocks.launch`.

    Args:
        acts: what it does.
        system: what a chat model is told before any prompt, until a person changes it.
    """
    with gr.Blocks(title="odesteer playground", analytics_enabled=False) as page:
        session = gr.State(Session())
        asked = gr.Number(0, visible=False)
        gr.HTML(
            '<div class="pg-head"><h1>odesteer playground</h1><p>'
            f"{acts.desk.name}, unsteered and steered side by side</p></div>"
        )
        with gr.Tabs(selected=STEER) as tabs:
            with gr.Tab("Steer", id=STEER):
                steer = _Steer(acts, session, asked, system)
            with gr.Tab("Fit your own", id=FIT):
                _fit_tab(acts, session, tabs, steer)
            with gr.Tab("Reports", id=REPORT):
                _report_tab(acts)
    return page


class _Steer:
    """The first tab: its controls, and what they do."""

    def __init__(self, acts: Acts, session: gr.State, asked: gr.Number, system: str):
        self._acts = acts
        names = list(acts.shelf)
        learnables = [s for s in acts.shelf.values() if isinstance(s, Learnable)]
        layers = middle_layers(acts.desk.model)
        layer = learnables[0].best if learnables else layers[-1]
        with gr.Row():
            self.prompt = gr.Textbox(
                EXAMPLE, label="Prompt", lines=1, max_lines=6, scale=6, elem_id="pg-prompt"
            )
            self.send = gr.Button("Generate", variant="primary", scale=1, min_width=110)
        with gr.Row():
            self.expression = gr.Dropdown(
                names,
                value=names[0],
                allow_custom_value=True,
                label="Steering",
                info="a name, or names joined by &, | and ~",
                elem_id="pg-expression",
                min_width=220,
            )
            self.dose = gr.Radio(
                list(DOSES), value=ANGLE, label="Dose", info="0 is the unsteered model",
                min_width=220,
            )  # fmt: skip
            self.amount = gr.Slider(
                -0.6, 0.6, 0.2, step=0.01, label="Angle", info="path length / ‖a‖",
                elem_id="pg-amount", min_width=220,
            )  # fmt: skip
            self.probability = gr.Slider(
                0.5, 0.99, 0.9, step=0.01, label="Stop at P(wanted)", visible=False, min_width=220
            )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                self.error = gr.HTML(elem_id="pg-error")
                self.texts = gr.HTML(markup.EMPTY, elem_id="pg-texts")
                gr.HTML(KEY)
                self.facts = gr.HTML(elem_id="pg-facts")
                self.figures = gr.HTML(elem_id="pg-figures")
            with gr.Column(scale=1, min_width=240):
                self.method = gr.Dropdown(
                    METHOD_NAMES, value="odesteer", label="Method", elem_id="pg-method",
                    info="of contrasts; a saved steering has its own",
                )  # fmt: skip
                self.layer = gr.Slider(
                    0, len(find_layers(acts.desk.model)) - 1, layer, step=1, label="Layer"
                )
                self.positions = gr.Dropdown(
                    list(POSITIONS), value="last+generated", label="Positions"
                )
                with gr.Accordion("Solver and sampling", open=False):
                    self.solver = gr.Dropdown(
                        [AS_LEARNT, *SOLVERS], value=AS_LEARNT, label="Solver"
                    )
                    self.steps = gr.Slider(0, 50, 0, step=1, label="Steps", info="0: as learnt")
                    self.tokens = gr.Slider(4, 200, 40, step=4, label="New tokens")
                    self.temperature = gr.Slider(0, 1.5, 0, step=0.05, label="Temperature")
                    self.seed = gr.Number(0, label="Seed", precision=0)
                self.chat = gr.Checkbox(False, label="Chat: keep what was said")
                self.system = gr.Textbox(system, label="System prompt", lines=2)
                with gr.Accordion("Save this steering", open=False):
                    self.name = gr.Textbox(label="Name", placeholder="my-steering")
                    self.save = gr.Button("Save")
                    self.saved = gr.HTML()
        with gr.Accordion("The same in Python", open=False):
            self.python = gr.Code(
                language="python", label="Copy and run", interactive=False, max_lines=24
            )
        self.controls = [
            self.expression, self.method, self.layer, self.dose, self.amount, self.probability,
            self.solver, self.steps, self.positions, self.tokens, self.temperature, self.seed,
        ]  # fmt: skip
        self._outputs = [self.error, self.texts, self.facts, self.figures, self.python]
        self._connect(session, asked)

    def _connect(self, session: gr.State, asked: gr.Number) -> None:
        together: dict[str, Any] = {
            # A newer generation of the same person stops the older one by itself.
            "trigger_mode": "multiple",
            "concurrency_limit": PEOPLE,
            "concurrency_id": "model",
            "show_progress": "hidden",
            "outputs": self._outputs,
            "js": _NOW,
        }
        sends = [session, asked, self.prompt, self.system, self.chat, *self.controls]
        agains = [session, asked, self.system, *self.controls]
        self.sending = {"inputs": sends, **together}
        gr.on([self.send.click, self.prompt.submit], self._send, **self.sending)
        gr.on(
            [
                *[c.input for c in (self.expression, self.method, self.positions, self.solver)],
                *[c.release for c in (self.steps, self.tokens, self.temperature)],
                # Not released: keys move a slider without letting go of it.
                *[c.input for c in (self.amount, self.probability, self.layer)],
                self.seed.submit,
                self.system.submit,
            ],
            self._again,
            agains,
            **together,
        )
        self.dose.input(_ranges, [self.dose], [self.amount, self.probability], queue=False).then(
            self._again, agains, **together
        )
        self.chat.input(_forget, [session], None, queue=False)
        self.save.click(
            self._save,
            [session, self.name, *self.controls],
            [self.saved, self.expression],
            concurrency_id="model",
            concurrency_limit=PEOPLE,
        )

    def _send(
        self, session: Session, asked: float, prompt: str, system: str, chat: bool, *values: Any
    ) -> Iterator[Outputs]:
        for shown in self._acts.send(session, prompt, system, chat, _setting(*values), asked):
            yield _outputs(shown)

    def _again(
        self, session: Session, asked: float, system: str, *values: Any
    ) -> Iterator[Outputs]:
        # A slider that is dragged says so at every pixel: only where it rests is written.
        if session.claim(asked) == session.generation:
            time.sleep(_REST)
        if asked != session.generation:
            return
        for shown in self._acts.again(session, system, _setting(*values), asked):
            yield _outputs(shown)

    def _save(self, session: Session, name: str, *values: Any) -> Outputs:
        words = self._acts.save(session, name, _setting(*values))
        return words, gr.update(choices=list(session.shelf(self._acts.shelf)))


def _setting(
    expression: str | None, method: str, layer: float, dose: str, amount: float,
    probability: float, solver: str, steps: float, positions: str, tokens: float,
    temperature: float, seed: float | None,
) -> Setting:  # fmt: skip
    return Setting(
        expression or "", method, int(layer), dose, float(amount), float(probability), solver,
        int(steps), positions, int(tokens), float(temperature), int(seed or 0),
    )  # fmt: skip


def _outputs(shown: Shown) -> Outputs:
    return tuple(gr.skip() if value is None else value for value in shown)


def _ranges(dose: str) -> Outputs:
    """An angle is about 0.2 and an integration time about 5; a target shows where it stops."""
    if dose == "strength":
        amount = gr.update(
            minimum=-20, maximum=20, step=0.5, label="Strength", info="integration time T", value=5
        )
    else:
        budget = dose == TARGET
        amount = gr.update(
            minimum=0.01 if budget else -0.6,
            maximum=1.0 if budget else 0.6,
            step=0.01,
            label="At most this angle" if budget else "Angle",
            info="path length / ‖a‖",
            value=0.5 if budget else 0.2,
        )
    return amount, gr.update(visible=dose == TARGET)


def _forget(session: Session) -> None:
    session.forget()


def _fit_tab(acts: Acts, session: gr.State, tabs: gr.Tabs, steer: _Steer) -> None:
    gr.HTML(
        '<p class="pg-note">Examples of what you want and of what you do not want, one a line; '
        "line i of both belongs together. Twenty of each is a start. What you fit is yours alone, "
        "and gone when you close the page, unless you save it.</p>"
    )
    with gr.Row():
        positive = gr.Textbox(label="Positive examples", lines=8, max_lines=16, elem_id="pg-plus")
        negative = gr.Textbox(label="Negative examples", lines=8, max_lines=16, elem_id="pg-minus")
    with gr.Row():
        file = gr.File(label="Or a JSONL, CSV or Parquet file", elem_id="pg-file", height=150)
        with gr.Column():
            name = gr.Textbox("mine", label="Name", elem_id="pg-name")
            method = gr.Dropdown(METHOD_NAMES, value="odesteer", label="Method")
            fit = gr.Button("Fit", variant="primary", elem_id="pg-fit")
    result = gr.HTML(elem_id="pg-result", min_height=60)
    best = gr.State(None)
    use = gr.Button("Use it", visible=False, elem_id="pg-use")

    def learn(
        session: Session, name: str, method: str, positive: str, negative: str, file: str | None,
        bar: gr.Progress = gr.Progress(),
    ) -> Outputs:  # fmt: skip
        def progress(done: int, total: int) -> None:
            bar((done, total), desc="Reading the examples", unit="texts")

        words, layer = acts.fit(session, name, method, positive, negative, file, progress)
        return words, layer, gr.update(visible=layer is not None)

    def chosen(session: Session, name: str, layer: int, method: str) -> Outputs:
        names = list(session.shelf(acts.shelf))
        value = gr.update(choices=names, value=name.strip())
        return gr.update(selected=STEER), value, layer, method

    fit.click(
        learn,
        [session, name, method, positive, negative, file],
        [result, best, use],
        concurrency_id="model",
        concurrency_limit=PEOPLE,
    )
    use.click(
        chosen,
        [session, name, best, method],
        [tabs, steer.expression, steer.layer, steer.method],
        queue=False,
    ).then(steer._send, **steer.sending)


def _report_tab(acts: Acts) -> None:
    if not acts.runs:
        gr.HTML(
            '<p class="pg-note">No run was named. Start the page with <code>odesteer playground '
            "--runs DIR</code>, a directory that <code>odesteer run</code> wrote to, or one that "
            "holds several.</p>"
        )
        return
    run = gr.Dropdown(list(acts.runs), value=None, label="Run", elem_id="pg-run")
    page = gr.HTML()
    run.input(acts.report, [run], [page])
