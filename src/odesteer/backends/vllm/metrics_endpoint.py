"""HTTP endpoints and Prometheus metrics of a server's steerings.

    GET /v1/steerings    the steerings, and what a client may know of them
    GET /metrics         vLLM's own, with odesteer_* beside them

The counters are kept by the workers, on their devices, and fetched for each GET /metrics.
"""

from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from odesteer.backends.vllm.registry import SteeringRegistry

PATH = "/v1/steerings"
Message = MutableMapping[str, Any]


class Endpoint:
    """Entry point `vllm.endpoint_plugins`; see `vllm.plugins.endpoint_plugins.interface`."""

    name = "odesteer"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._registry: SteeringRegistry | None = None
        self._collector = SteeringCollector()

    def attach_router(self, app: Any) -> None:
        """Add the route, and the middleware that refreshes the counters."""
        app.add_api_route(PATH, self._list, methods=["GET"], tags=["odesteer"])
        app.add_middleware(RefreshMiddleware, refresh=self._refresh)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Keep the engine's client, and register the counters."""
        if engine_client is None:
            return
        self._engine = engine_client
        self._registry = SteeringRegistry.of(engine_client.vllm_config.additional_config)
        if self._registry is not None:
            from vllm.v1.metrics.prometheus import get_prometheus_registry

            get_prometheus_registry().register(self._collector)

    async def _list(self) -> dict[str, Any]:
        """List the steerings of this server."""
        data = [] if self._registry is None else self._registry.describe()
        return {"object": "list", "data": data}

    async def _refresh(self) -> None:
        if self._registry is not None:
            self._collector.update(await self._engine.collective_rpc("odesteer_stats"))


class SteeringCollector:
    """Collector of a server's steering counters for `prometheus_client`."""

    def __init__(self) -> None:
        self._latest: list[dict[str, Any]] = []

    def update(self, workers: Iterable[Iterable[dict[str, Any]]]) -> None:
        """Keep the workers' totals; ranks of a tensor-parallel group report the same."""
        latest: dict[tuple[str, int], dict[str, Any]] = {}
        for worker in workers:
            for stats in worker:
                key = (stats["steering"], stats["layer"])
                if key not in latest or stats["tokens"] > latest[key]["tokens"]:
                    latest[key] = stats
        self._latest = list(latest.values())

    def collect(self) -> Iterable[Any]:
        """Return the counters as metric families."""
        from prometheus_client.core import CounterMetricFamily

        labels = ["steering", "layer"]
        tokens = CounterMetricFamily(
            "odesteer_steered_tokens", "Tokens that a steering moved.", labels=labels
        )
        displacement = CounterMetricFamily(
            "odesteer_displacement",
            "How far it moved them in all, in activation space; over the tokens, the mean.",
            labels=labels,
        )
        for stats in self._latest:
            values = [stats["steering"], str(stats["layer"])]
            tokens.add_metric(values, stats["tokens"])
            displacement.add_metric(values, stats["displacement"])
        return [tokens, displacement]


class RefreshMiddleware:
    """ASGI middleware that calls `refresh` before /metrics is answered."""

    def __init__(self, app: Callable[..., Awaitable[None]], refresh: Callable[[], Awaitable[None]]):
        self._app, self._refresh = app, refresh

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """Handle a connection, see https://asgi.readthedocs.io."""
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/metrics":
            await self._refresh()
        await self._app(scope, receive, send)
