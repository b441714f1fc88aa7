"""Routes of vLLM's application, as the server that is tested has them."""

import json
from typing import Any

PATH = "/routes-of-this-application"


class Listing:
    """ASGI middleware (`--middleware`) that answers `PATH` with [[path, methods], ...]."""

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """See https://asgi.readthedocs.io."""
        if scope.get("path") != PATH:
            await self._app(scope, receive, send)
            return
        routes = [
            [route.path, sorted(getattr(route, "methods", None) or ())]
            for route in scope["app"].routes
        ]
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(routes).encode()})
