"""The fitting tab and the reports tab."""

import gradio as gr

from odesteer.playground.controller import Controller
from odesteer.playground.session import Session
from odesteer.playground.steer_tab import METHOD_NAMES, PEOPLE, Outputs, SteerTab

STEER = "steer"  # the id of the first tab


def fit_tab(acts: Controller, session: gr.State, tabs: gr.Tabs, steer: SteerTab) -> None:
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
    use = gr.Button("Use it", variant="primary", visible=False, elem_id="pg-use")

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
    ).then(steer.on_send, **steer.sending)


def report_tab(acts: Controller) -> None:
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
