"""Layout of the page and its local server.

A policy in every answer forbids the browser any request to another server, whatever a part of
the page might ask for. A page that listens to this machine alone answers only to this machine's
names, so that a web site whose name was rebound to 127.0.0.1 cannot use it.
"""

import importlib.resources
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from html import escape
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from odesteer.common.catalogue import DEFAULT_METHOD
from odesteer.playground.controller import Controller
from odesteer.playground.session import Session
from odesteer.playground.steer_tab import METHOD_NAMES, PEOPLE, Outputs, SteerTab, reset, steps

STEER = "steer"  # the id of the first tab


def fit_tab(controller: Controller, session: gr.State, tabs: gr.Tabs, steer: SteerTab) -> None:
    """Lay out the tab on which a person fits examples."""
    gr.HTML(
        '<p class="pg-note">Examples of what you want and of what you do not want, one a line; '
        "line i of all boxes belongs together. Twenty of each is a start. A behaviour that you "
        "chose on the first tab fills the boxes. What you fit is yours alone, and gone when you "
        "close the page, unless you save it.</p>"
    )
    with gr.Row():
        for box in steer.examples:
            box.render()
    with gr.Row():
        file = gr.File(label="Or a JSONL, CSV or Parquet file", elem_id="pg-file", height=150)
        with gr.Column():
            name = gr.Textbox("mine", label="Name", elem_id="pg-name")
            method = gr.Dropdown(METHOD_NAMES, value=DEFAULT_METHOD, label="Method")
            fit = gr.Button("Fit, check and use it", variant="primary", elem_id="pg-fit")
    result = gr.HTML(elem_id="pg-result", min_height=60)

    def fit_examples(
        session: Session, name: str, method: str, file: str | None, *examples: Any
    ) -> Outputs:
        bar = gr.Progress()
        lines = (examples[0], examples[1], examples[2])
        words, amount = controller.fit(
            session, name, method, lines, file, lambda words: steps(bar, words)
        )
        if amount is None:
            return (words, *[gr.skip()] * 10)
        lists = steer.choices(session, value=name.strip())
        selected = gr.update(selected=STEER)
        return ("", words, selected, *lists, method, *reset(amount), time.time())

    fit.click(
        fit_examples,
        [session, name, method, file, *steer.examples],
        [
            *(result, steer.verdict, tabs, *steer.lists),
            *(steer.controls["method"], *steer.dosing, steer.fitted),
        ],
        show_progress_on=result,
        concurrency_id="model",
        concurrency_limit=PEOPLE,
    )


def report_tab(controller: Controller) -> None:
    """Lay out the tab with the reports of runs."""
    run = gr.Dropdown(list(controller.runs), value=None, label="Run", elem_id="pg-run")
    page = gr.HTML()
    run.input(controller.report, [run], [page])


def build(controller: Controller) -> gr.Blocks:
    """Build the page, for `gr.Blocks.launch`."""
    with gr.Blocks(title="odesteer playground", analytics_enabled=False) as page:
        session = gr.State(Session())
        requested_at = gr.Number(0, visible=False)
        gr.HTML(
            '<div class="pg-head"><h1>odesteer playground</h1><p>'
            f"{escape(controller.shared.name)}, unsteered and steered side by side</p></div>"
        )
        with gr.Tabs(selected=STEER) as tabs:
            with gr.Tab("Steer", id=STEER):
                steer = SteerTab(controller, session, requested_at)
            with gr.Tab("Fit your own", id="fit"):
                fit_tab(controller, session, tabs, steer)
            if controller.runs:
                with gr.Tab("Reports", id="report"):
                    report_tab(controller)
        restored = [steer.error, steer.prompt, steer.system, *steer.controls.values()]
        page.load(steer.restore, None, restored, queue=False)
    return page


_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; form-action 'self'"
)
Message = MutableMapping[str, Any]


class Policy:
    """ASGI middleware that adds the policy to the header of every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await self.app(scope, receive, send_with_policy if scope["type"] == "http" else send)


def theme() -> gr.themes.Base:
    """Return a theme with the system's fonts and the colours of our reports."""
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", font=sans, font_mono=mono, radius_size="md"
    ).set(
        button_primary_background_fill="#0072b2",
        button_primary_background_fill_hover="#005c91",
        button_primary_background_fill_dark="#0072b2",
        button_primary_background_fill_hover_dark="#2b8fc9",
        button_primary_text_color="#ffffff",
        slider_color="#0072b2",
        slider_color_dark="#56b4e9",
        body_background_fill_dark="#14181c",
        block_background_fill_dark="#1a1f24",
    )


def allowed_hosts(host: str) -> list[str]:
    """List the host names that a server listening on `host` answers to.

    Those of this machine where it listens to this machine alone; any name otherwise, since
    other machines may know it by names that it does not know.
    """
    address = host.strip("[]")
    local = address == "localhost" or _is_loopback(address)
    return ["localhost", "127.0.0.1", "[::1]", address] if local else ["*"]


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def serve(
    controller: Controller, host: str, port: int, open_browser: bool = False
) -> tuple[gr.Blocks, str]:
    """Start to serve the page, and return when it answers.

    Args:
        controller: the actions.
        host, port: where it listens.
        open_browser: also open it in this machine's browser.

    Returns:
        the running page (`block_thread()` waits until it is interrupted, `close()` ends it)
        and its address.

    Raises:
        OSError: if the port is taken.
    """
    page = build(controller)
    assets = importlib.resources.files("odesteer.playground") / "assets"
    style, script = (
        (assets / name).read_text(encoding="utf-8") for name in ("style.css", "page.js")
    )
    page.queue(default_concurrency_limit=8, max_size=64)
    _, address, _ = page.launch(
        server_name=f"[{host}]" if ":" in host.strip("[]") and host[0] != "[" else host,
        server_port=port,
        share=False,
        inbrowser=open_browser,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        theme=theme(),
        css=style,
        head=f"<script>\n{script}</script>",
        footer_links=[],
        app_kwargs={
            "middleware": [
                Middleware(Policy),
                Middleware(
                    TrustedHostMiddleware, allowed_hosts=allowed_hosts(host), www_redirect=False
                ),
            ]
        },
        # Gradio waits for its own first answer without a limit, and then asks for the page once
        # more with one of 3 seconds: on a loaded machine the second takes longer, and Gradio gives
        # up with advice to share the page.
        _frontend=False,
    )
    return page, address
