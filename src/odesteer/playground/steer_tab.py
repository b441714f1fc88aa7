"""Steering tab of the page."""

import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from odesteer import methods
from odesteer.common.registry import plugins
from odesteer.fitting import middle_layers
from odesteer.methods import METHODS
from odesteer.models.hooks.positions import POSITIONS
from odesteer.models.layers import find_layers
from odesteer.ode import SOLVERS
from odesteer.playground import html as markup
from odesteer.playground.controller import Controller, View
from odesteer.playground.library import FittableContrast
from odesteer.playground.session import ANGLE, AS_LEARNT, DOSES, TARGET, Controls, Session
from odesteer.steering.layer_steering import SOLVER_GROUP

# Methods that move heads at all layers have no single activation for this page's figures.
METHOD_NAMES = [
    *(n for n, m in METHODS.items() if m.site == "residual" and n != "none"),
    *plugins(methods.GROUP),
]
PEOPLE = 8  # may wait for the model at once; it is locked for a token at a time
EXAMPLE = "Describe the street outside your window."
_REST = 0.1  # seconds
# Time of the request, by the clock of the page: the newer wins, whichever arrives first.
_NOW = "(...values) => { values[1] = performance.timeOrigin + performance.now(); return values; }"
Outputs = tuple[Any, ...]


class SteerTab:
    """First tab: its controls and their events."""

    def __init__(
        self, controller: Controller, session: gr.State, requested_at: gr.Number, system: str
    ):
        self._controller = controller
        names = list(controller.library)
        contrasts = [s for s in controller.library.values() if isinstance(s, FittableContrast)]
        layers = middle_layers(controller.shared.model)
        layer = contrasts[0].best if contrasts else layers[-1]
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
                gr.HTML(markup.KEY)
                self.facts = gr.HTML(elem_id="pg-facts")
                self.figures = gr.HTML(elem_id="pg-figures")
            with gr.Column(scale=1, min_width=240):
                self.method = gr.Dropdown(
                    METHOD_NAMES, value="odesteer", label="Method", elem_id="pg-method",
                    info="of contrasts; a saved steering has its own",
                )  # fmt: skip
                self.layer = gr.Slider(
                    0, len(find_layers(controller.shared.model)) - 1, layer, step=1, label="Layer"
                )
                self.positions = gr.Dropdown(
                    list(POSITIONS), value="last+generated", label="Positions"
                )
                with gr.Accordion("Solver and sampling", open=False):
                    self.solver = gr.Dropdown(
                        [AS_LEARNT, *SOLVERS, *plugins(SOLVER_GROUP)],
                        value=AS_LEARNT,
                        label="Solver",
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
        self._connect(session, requested_at)

    def _connect(self, session: gr.State, requested_at: gr.Number) -> None:
        together: dict[str, Any] = {
            # A newer generation of the same person stops the older one by itself.
            "trigger_mode": "multiple",
            "concurrency_limit": PEOPLE,
            "concurrency_id": "model",
            "show_progress": "hidden",
            "outputs": self._outputs,
            "js": _NOW,
        }
        send_inputs = [session, requested_at, self.prompt, self.system, self.chat, *self.controls]
        again_inputs = [session, requested_at, self.system, *self.controls]
        self.sending = {"inputs": send_inputs, **together}
        gr.on([self.send.click, self.prompt.submit], self.on_send, **self.sending)
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
            again_inputs,
            **together,
        )
        self.dose.input(ranges, [self.dose], [self.amount, self.probability], queue=False).then(
            self._again, again_inputs, **together
        )
        self.chat.input(_forget, [session], None, queue=False)
        self.save.click(
            self._save,
            [session, self.name, *self.controls],
            [self.saved, self.expression],
            concurrency_id="model",
            concurrency_limit=PEOPLE,
        )

    def on_send(
        self,
        session: Session,
        requested_at: float,
        prompt: str,
        system: str,
        chat: bool,
        *values: Any,
    ) -> Iterator[Outputs]:
        """Write both texts for the prompt."""
        for view in self._controller.send(
            session, prompt, system, chat, _controls(*values), requested_at
        ):
            yield _outputs(view)

    def _again(
        self, session: Session, requested_at: float, system: str, *values: Any
    ) -> Iterator[Outputs]:
        # A dragged slider sends an event for every pixel: only where it rests is written.
        if session.claim(requested_at) == session.generation:
            time.sleep(_REST)
        if requested_at != session.generation:
            return
        for view in self._controller.again(session, system, _controls(*values), requested_at):
            yield _outputs(view)

    def _save(self, session: Session, name: str, *values: Any) -> Outputs:
        words = self._controller.save(session, name, _controls(*values))
        return words, gr.update(choices=list(session.library(self._controller.library)))


def _controls(
    expression: str | None, method: str, layer: float, dose: str, amount: float,
    probability: float, solver: str, steps: float, positions: str, tokens: float,
    temperature: float, seed: float | None,
) -> Controls:  # fmt: skip
    return Controls(
        expression or "", method, int(layer), dose, float(amount), float(probability), solver,
        int(steps), positions, int(tokens), float(temperature), int(seed or 0),
    )  # fmt: skip


def _outputs(view: View) -> Outputs:
    return tuple(gr.skip() if value is None else value for value in view)


def ranges(dose: str) -> Outputs:
    """Update the sliders: angles are about 0.2, integration times about 5."""
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
