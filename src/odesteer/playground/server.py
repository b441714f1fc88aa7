"""How is the page served? By this machine alone, to this machine alone unless told otherwise.

A policy in every answer forbids the browser any request to another server, whatever a part of
the page might ask for.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr

from odesteer.playground.acts import Acts
from odesteer.playground.look import CSS, HEAD
from odesteer.playground.page import build

_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; worker-src 'self' blob:; form-action 'self'"
)
Message = MutableMapping[str, Any]


class Policy:
    """ASGI middleware that puts the policy into the head of every answer."""

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                policy = (b"content-security-policy", _POLICY.encode())
                message["headers"] = [*message.get("headers", []), policy]
            await send(message)

        await self.app(scope, receive, sent if scope["type"] == "http" else send)


def theme() -> gr.themes.Base:
    """The system's fonts and the colours of our reports."""
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


def serve(
    acts: Acts, system: str, host: str, port: int, opened: bool = False, wait: bool = True
) -> tuple[gr.Blocks, str]:
    """Serve the page, and wait until it is interrupted unless told otherwise.

    Args:
        acts: what the page does.
        system: the first system prompt.
        host, port: where it listens.
        opened: also open it in this machine's browser.
        wait: block until interrupted.

    Returns:
        the running page (`close()` ends it) and its address.

    Raises:
        OSError: if the port is taken.
    """
    from starlette.middleware import Middleware

    page = build(acts, system)
    page.queue(default_concurrency_limit=8, max_size=64)
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        inbrowser=opened,
        prevent_thread_lock=True,
        quiet=True,
        show_error=True,
        theme=theme(),
        css=CSS,
        head=HEAD,
        footer_links=[],
        app_kwargs={"middleware": [Middleware(Policy)]},
    )
    if wait:
        page.block_thread()
    return page, address
