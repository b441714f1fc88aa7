"""Layout of the page and its local server.

A policy in every answer forbids the browser any request to another server, whatever a part of
the page might ask for. A page that listens to this machine alone answers only to this machine's
names, so that a web site whose name was rebound to 127.0.0.1 cannot use it.
"""

import importlib.resources
import ipaddress
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before Gradio is imported

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from odesteer.playground.controller import Controller
from odesteer.playground.session import ANGLE, Session
from odesteer.playground.steer_tab import METHOD_NAMES, PEOPLE, Outputs, SteerTab, ranges

STEER = "steer"  # the id of the first tab


def fit_tab(controller: Controller, session: gr.State, tabs: gr.Tabs, steer: SteerTab) -> None:
    """Lay out the tab on which a person fits a contrast."""
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

    def fit_steering(
        session: Session, name: str, method: str, positive: str, negative: str, file: str | None,
        bar: gr.Progress = gr.Progress(),
    ) -> Outputs:  # fmt: skip
        def progress(done: int, total: int) -> None:
            bar((done, total), desc="Reading the examples", unit="texts")

        words, layer = controller.fit(session, name, method, positive, negative, file, progress)
        return words, layer, gr.update(visible=layer is not None)

    def use_steering(session: Session, name: str, layer: int, method: str) -> Outputs:
        names = list(session.library(controller.library))
        value = gr.update(choices=names, value=name.strip())
        # The dose of another steering may be negative, or too much for this one.
        return gr.update(selected=STEER), value, layer, method, ANGLE, *ranges(ANGLE)

    fit.click(
        fit_steering,
        [session, name, method, positive, negative, file],
        [result, best, use],
        concurrency_id="model",
        concurrency_limit=PEOPLE,
    )
    use.click(
        use_steering,
        [session, name, best, method],
        [
            *(tabs, steer.expression, steer.layer, steer.method),
            *(steer.dose, steer.amount, steer.probability),
        ],
        queue=False,
    ).then(steer.on_send, **steer.sending)


def report_tab(controller: Controller) -> None:
    """Lay out the tab with the reports of runs."""
    if not controller.runs:
        gr.HTML(
            '<p class="pg-note">No run was named. Start the page with <code>odesteer playground '
            "--runs DIR</code>, a directory that <code>odesteer run</code> wrote to, or one that "
            "holds several.</p>"
        )
        return
    run = gr.Dropdown(list(controller.runs), value=None, label="Run", elem_id="pg-run")
    page = gr.HTML()
    run.input(controller.report, [run], [page])


def build(controller: Controller, system: str = "") -> gr.Blocks:
    """Build the page, for `gr.Blocks.launch`.

    Args:
        controller: the actions.
        system: the system prompt of a chat model, until a person changes it.
    """
    with gr.Blocks(title="odesteer playground", analytics_enabled=False) as page:
        session = gr.State(Session())
        requested_at = gr.Number(0, visible=False)
        gr.HTML(
            '<div class="pg-head"><h1>odesteer playground</h1><p>'
            f"{controller.shared.name}, unsteered and steered side by side</p></div>"
        )
        with gr.Tabs(selected=STEER) as tabs:
            with gr.Tab("Steer", id=STEER):
                steer = SteerTab(controller, session, requested_at, system)
            with gr.Tab("Fit your own", id="fit"):
                fit_tab(controller, session, tabs, steer)
            with gr.Tab("Reports", id="report"):
                report_tab(controller)
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
    controller: Controller, system: str, host: str, port: int, open_browser: bool = False
) -> tuple[gr.Blocks, str]:
    """Start to serve the page, and return when it answers.

    Args:
        controller: the actions.
        system: the first system prompt.
        host, port: where it listens.
        open_browser: also open it in this machine's browser.

    Returns:
        the running page (`block_thread()` waits until it is interrupted, `close()` ends it)
        and its address.

    Raises:
        OSError: if the port is taken.
    """
    page = build(controller, system)
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
