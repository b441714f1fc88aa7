"""Steering tab of the page."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from odesteer import methods
from odesteer.common.catalogue import POSITIONS
from odesteer.common.registry import plugins
from odesteer.evaluation.assessment import PROMPTS, prompts_of
from odesteer.extraction.extract import Progress
from odesteer.methods import METHODS
from odesteer.models.chat_template import question
from odesteer.models.layers import find_layers
from odesteer.ode import SOLVERS
from odesteer.playground import html as markup
from odesteer.playground.controller import Controller, View
from odesteer.playground.session import (
    AS_LEARNT,
    DOSES,
    LEARNT,
    STRENGTH,
    TARGET,
    Controls,
    Session,
    checked,
)
from odesteer.playground.side_by_side import own_sampling
from odesteer.steering.layer_steering import SOLVER_GROUP

# Methods that move heads at all layers have no single activation for this page's figures.
METHOD_NAMES = [
    *(n for n, m in METHODS.items() if m.site == "residual" and n != "none"),
    *plugins(methods.GROUP),
]
PEOPLE = 8  # may wait for the model at once; it is locked for a token at a time
AUTO = "auto"
SUGGESTED = 4
_REST = 0.1  # seconds
# Time of the request, by the clock of the page: the newer wins, whichever arrives first.
_NOW = "(...values) => { values[1] = performance.timeOrigin + performance.now(); return values; }"
Outputs = tuple[Any, ...]


class SteerTab:
    """First tab: its controls and their events.

    Attributes:
        controls: by the names of `Controls`.
        examples: prompts, positives and negatives; the tab of fits renders them.
    """

    def __init__(self, controller: Controller, session: gr.State, requested_at: gr.Number):
        self._controller = controller
        self._session = session
        names = list(controller.library)
        sampling = own_sampling(controller.shared.model)
        first = Controls(
            expression=names[0],
            amount=controller.library[names[0]].amount,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
        )
        self.fitted = gr.State(0.0)  # changes when something was fitted and is to be used
        self.examples = [
            gr.Textbox("", label=label, lines=8, max_lines=12, elem_id=f"pg-{name}", render=False)
            for name, label in (
                ("prompts", "Prompts (or none)"),
                ("plus", "Positive examples"),
                ("minus", "Negative examples"),
            )
        ]
        chosen = self._suggested(controller.examples(Session(), names[0]))
        with gr.Row():
            self.prompt = gr.Textbox(
                chosen[0], label="Prompt", lines=1, max_lines=6, scale=6, min_width=280,
                elem_id="pg-prompt",
            )  # fmt: skip
            self.send = gr.Button("Generate", variant="primary", scale=1, min_width=110)
        self.suggested = gr.Dataset(
            label="Suggested prompts",
            components=[gr.Textbox(visible=False)],
            samples=[[each] for each in chosen],
        )
        with gr.Row():
            with gr.Column(min_width=240):
                expression = gr.Dropdown(
                    names, value=names[0], allow_custom_value=True, label="Steer towards",
                    info="a name, or names joined by &, | and ~", elem_id="pg-expression",
                )  # fmt: skip
                self.learn = gr.Button("Fit, check and use it", size="sm", elem_id="pg-learn")
            amount = gr.Slider(
                **_scale(LEARNT), value=first.amount, elem_id="pg-amount", min_width=240
            )
        with gr.Row():
            also = gr.Dropdown(
                [("nothing else", ""), *names], value="", allow_custom_value=True,
                label="And towards", info="a second aim", elem_id="pg-also", min_width=200,
            )  # fmt: skip
            also_amount = gr.Slider(
                **_scale(LEARNT), value=first.also_amount, visible=False, elem_id="pg-also-amount",
                min_width=240,
            )  # fmt: skip
            rival = gr.Dropdown(
                [("no other method", ""), *METHOD_NAMES], value="", label="Compare with",
                info="another method on the same examples", elem_id="pg-rival", min_width=200,
            )  # fmt: skip
        self.verdict = gr.HTML(elem_id="pg-verdict", min_height=40)
        self.error = gr.HTML(elem_id="pg-error")
        self.texts = gr.HTML(markup.EMPTY, elem_id="pg-texts")
        gr.HTML(markup.KEY)
        with gr.Accordion("Method, layer and dose", open=False), gr.Row():
            method = gr.Dropdown(
                METHOD_NAMES, value=first.method, label="Method", elem_id="pg-method",
                info="for examples; a saved steering has its own",
            )  # fmt: skip
            layer = gr.Dropdown(
                [AUTO, *map(str, range(len(find_layers(controller.shared.model))))],
                value=AUTO, label="Layer", info="auto: where the examples differ most clearly",
            )  # fmt: skip
            dose = gr.Radio(
                list(DOSES), value=LEARNT, label="Dose",
                info="angle: path length / ‖a‖; strength: integration time T",
            )  # fmt: skip
            probability = gr.Slider(
                0.5, 0.99, first.probability, step=0.01, label="Stop at this probability",
                visible=False,
            )  # fmt: skip
            positions = gr.Dropdown(
                [AS_LEARNT, *POSITIONS], value=first.positions, label="Positions",
                info="steered tokens; also prompt[:4]+generated", allow_custom_value=True,
            )  # fmt: skip
            solver = gr.Dropdown(
                [AS_LEARNT, *SOLVERS, *plugins(SOLVER_GROUP)], value=AS_LEARNT, label="Solver"
            )
            steps = gr.Slider(0, 50, 0, step=1, label="Steps", info="0: as learnt")
        with gr.Accordion("Length and sampling", open=False), gr.Row():
            tokens = gr.Slider(
                4, 200, first.max_new_tokens, step=4, label="New tokens",
                info="shown up to the last whole sentence",
            )  # fmt: skip
            temperature = gr.Slider(
                0, 2, first.temperature, step=0.05, label="Temperature", info="0: the likeliest"
            )
            top_p = gr.Slider(0.05, 1, first.top_p, step=0.05, label="Top p")
            penalty = gr.Slider(
                1,
                2,
                first.repetition_penalty,
                step=0.05,
                label="Repetition penalty",
                info="1: none",
            )
            seed = gr.Number(0, label="Seed", precision=0)
        with gr.Accordion("Conversation and system prompt", open=False):
            self.chat = gr.Checkbox(False, label="Chat: keep what was said")
            self.system = gr.Textbox("", label="System prompt", lines=2)
        with gr.Accordion("Link, Python, save", open=False):
            self.link = gr.HTML()
            self.python = gr.Code(
                language="python", label="The same in Python", interactive=False, max_lines=24
            )
            with gr.Row():
                self.name = gr.Textbox("", label="Save this steering as", placeholder="my-steering")
                self.save = gr.Button("Save", min_width=110)
            self.saved = gr.HTML()
        with gr.Accordion("What happened inside the model", open=False, elem_id="pg-inside"):
            self.details = gr.HTML(elem_id="pg-details")
        self.controls: dict[str, Any] = {
            "expression": expression, "method": method, "layer": layer, "dose": dose,
            "amount": amount, "probability": probability, "also": also,
            "also_amount": also_amount, "rival": rival, "solver": solver, "steps": steps,
            "positions": positions, "max_new_tokens": tokens, "temperature": temperature,
            "top_p": top_p, "repetition_penalty": penalty, "seed": seed,
        }  # fmt: skip
        self._connect(requested_at)

    def _connect(self, requested_at: gr.Number) -> None:
        session, controls = self._session, self.controls
        values = list(controls.values())
        together: dict[str, Any] = {
            # A newer generation of the same person stops the older one by itself.
            "trigger_mode": "multiple",
            "concurrency_limit": PEOPLE,
            "concurrency_id": "model",
            "show_progress": "hidden",
            "outputs": [self.error, self.texts, self.details, self.python, self.link],
            "js": _NOW,
        }
        send_inputs = [session, requested_at, self.prompt, self.system, self.chat, *values]
        again_inputs = [session, requested_at, self.system, *values]
        sending: dict[str, Any] = {"inputs": send_inputs, **together}
        events = [self.send.click, self.prompt.submit, self.fitted.change]
        gr.on(events, self._on_send, **sending)
        self.suggested.click(
            lambda sample: sample[0], [self.suggested], [self.prompt], queue=False
        ).then(self._on_send, **sending)
        released = ("steps", "max_new_tokens", "temperature", "top_p", "repetition_penalty")
        # Not released: keys move a slider without letting go of it.
        moved = ("method", "layer", "positions", "solver", "rival", "amount", "probability")
        gr.on(
            [
                *(controls[name].release for name in released),
                *(controls[name].input for name in (*moved, "also_amount")),
                controls["seed"].submit,
                self.system.submit,
            ],
            self._again,
            again_inputs,
            **together,
        )
        choices: list[tuple[str, Any, list[Any]]] = [
            ("dose", ranges, [controls["amount"], controls["probability"]]),
            ("also", lambda name: gr.update(visible=bool(name)), [controls["also_amount"]]),
        ]
        for name, change, outputs in choices:
            controls[name].input(change, [controls[name]], outputs, queue=False).then(
                self._again, again_inputs, **together
            )
        controls["expression"].input(
            self._choose,
            [session, controls["expression"]],
            [self.verdict, self.suggested, *self.examples, *self.dosing],
            queue=False,
        ).then(self._again, again_inputs, **together)
        self.learn.click(
            self._learn,
            [session, controls["expression"], controls["method"]],
            [self.verdict, self.fitted, *self.dosing],
            show_progress_on=self.verdict,
            concurrency_id="model",
            concurrency_limit=PEOPLE,
        )
        self.chat.input(lambda session: session.forget(), [session], None, queue=False)
        self.save.click(
            self._save,
            [session, self.name, *values],
            [self.saved, *self.lists],
            concurrency_id="model",
            concurrency_limit=PEOPLE,
        )

    @property
    def dosing(self) -> list[Any]:
        """What a fit resets: see `reset`."""
        return [self.controls[name] for name in ("layer", "dose", "amount", "probability")]

    @property
    def lists(self) -> list[Any]:
        """Lists of names, see `choices`."""
        return [self.controls["expression"], self.controls["also"]]

    def choices(self, session: Session, **chosen: Any) -> Outputs:
        """Update the lists of names: those that everyone has, and this person's."""
        names = list(session.library(self._controller.library))
        return gr.update(choices=names, **chosen), gr.update(choices=[("nothing else", ""), *names])

    def restore(self, request: gr.Request) -> Outputs:
        """Set all controls as the page's address says: error, prompt, system, controls."""
        state, words = self._controller.restore(dict(request.query_params))
        if state is None:
            return (words, *[gr.skip()] * (2 + len(self.controls)))
        values: dict[str, Any] = {name: getattr(state, name) for name in self.controls}
        values["layer"] = AUTO if state.layer is None else str(state.layer)
        values["amount"] = gr.update(**_scale(state.dose), value=state.amount)
        shown = gr.update(value=state.probability, visible=state.dose == TARGET)
        values["probability"] = shown
        values["also_amount"] = gr.update(value=state.also_amount, visible=bool(state.also))
        return (words, state.prompt or gr.skip(), state.system, *values.values())

    def _choose(self, session: Session, expression: str | None) -> Outputs:
        name = (expression or "").strip()
        contrast = self._controller.examples(session, name)
        source = session.library(self._controller.library).get(name)
        if contrast is None:
            lines: list[Any] = [gr.skip()] * 4
        else:
            sides = [
                [question(e.prompt) for e in contrast.positive if e.prompt is not None],
                *([e.response for e in side] for side in (contrast.positive, contrast.negative)),
            ]
            prompts = [[each] for each in self._suggested(contrast)]
            lines = [gr.update(samples=prompts), *("\n".join(side) for side in sides)]
        return ("", *lines, *reset(1.0 if source is None else source.amount))

    def _suggested(self, contrast: Any) -> list[str]:
        """Return a few prompts: neutral ones, which no fit has seen, and some of a contrast."""
        prompts = [*PROMPTS[2:4], *([] if contrast is None else prompts_of(contrast))]
        return list(dict.fromkeys(map(question, prompts)))[:SUGGESTED]

    def _learn(
        self, session: Session, name: str | None, method: str, bar: gr.Progress = gr.Progress()
    ) -> Outputs:
        words, amount = self._controller.fit(
            session, name or "", method, progress=lambda words: steps(bar, words)
        )
        if amount is None:
            return (words, *[gr.skip()] * 5)
        return (words, time.time(), *reset(amount))

    def _on_send(
        self,
        session: Session,
        requested_at: float,
        prompt: str,
        system: str,
        chat: bool,
        *values: Any,
    ) -> Iterator[Outputs]:
        yield from self._views(
            values,
            lambda controls: self._controller.send(
                session, prompt, system, chat, controls, requested_at
            ),
        )

    def _again(
        self, session: Session, requested_at: float, system: str, *values: Any
    ) -> Iterator[Outputs]:
        # A dragged slider sends an event for every pixel: only where it rests is written.
        if session.claim(requested_at) == session.generation:
            time.sleep(_REST)
        yield (gr.skip(),) * 5  # without a value, Gradio would clear what is there
        if requested_at == session.generation:
            yield from self._views(
                values,
                lambda controls: self._controller.again(session, system, controls, requested_at),
            )

    def _views(
        self, values: Outputs, write: Callable[[Controls], Iterator[View]]
    ) -> Iterator[Outputs]:
        try:
            controls = self._read(values)
        except ValueError as error:
            yield _outputs(View(markup.error(error)))
            return
        for view in write(controls):
            yield _outputs(view)

    def _save(self, session: Session, name: str, *values: Any) -> Outputs:
        try:
            words = self._controller.save(session, name, self._read(values))
        except ValueError as error:
            words = markup.error(error)
        return words, *self.choices(session)

    def _read(self, values: Outputs) -> Controls:
        """Return the controls; ValueError for a value that is none."""
        named = dict(zip(self.controls, values, strict=True))
        named["layer"] = None if named["layer"] == AUTO else named["layer"]
        given = {key: value for key, value in named.items() if value is not None}
        controls: Controls = checked(Controls, given)
        return controls


def steps(bar: gr.Progress, words: str) -> Progress:
    """Return a callback that shows (steps done, steps in all) on the page."""
    return lambda done, of: bar((done, of), desc=words, unit="steps")


def reset(amount: float) -> Outputs:
    """Update layer, dose, amount and probability for another steering."""
    size, probability = ranges(LEARNT)
    return AUTO, LEARNT, size | {"value": amount}, probability


def ranges(dose: str) -> Outputs:
    """Update the sliders: angles are about 0.2, integration times about 5."""
    value = {LEARNT: 1.0, STRENGTH: 5, TARGET: 0.5}.get(dose, 0.2)
    return gr.update(**_scale(dose), value=value), gr.update(visible=dose == TARGET)


def _scale(dose: str) -> dict[str, Any]:
    """Return the range and the words of the slider of a kind of dose."""
    label, info, low, high, step = {
        LEARNT: ("How strongly", "0: unsteered; 1: a strong dose; below 0: away", -2, 2, 0.05),
        STRENGTH: ("Strength", "integration time T", -20, 20, 0.5),
        TARGET: ("At most this angle", "path length / ‖a‖", 0.01, 1.0, 0.01),
    }.get(dose, ("Angle", "path length / ‖a‖", -0.6, 0.6, 0.01))
    return {"label": label, "info": info, "minimum": low, "maximum": high, "step": step}


def _outputs(view: View) -> Outputs:
    return tuple(gr.skip() if value is None else value for value in view)
