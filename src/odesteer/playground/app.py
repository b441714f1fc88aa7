"""Layout of the page.

This file, the tabs and `server` alone know Gradio. Every act is in `acts`.
"""

import gradio as gr

from odesteer.playground.controller import Controller
from odesteer.playground.other_tabs import STEER, fit_tab, report_tab
from odesteer.playground.session import Session
from odesteer.playground.steer_tab import SteerTab


def build(acts: Controller, system: str = "") -> gr.Blocks:
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
                steer = SteerTab(acts, session, asked, system)
            with gr.Tab("Fit your own", id="fit"):
                fit_tab(acts, session, tabs, steer)
            with gr.Tab("Reports", id="report"):
                report_tab(acts)
    return page
