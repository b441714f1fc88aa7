"""HTTP endpoints and Prometheus metrics of a server's steerings.

    GET /v1/steerings    which there are, and what they need
    GET /metrics         vLLM's own, with odesteer_* beside them

The counters are kept by the workers, on their devices, and fetched when somebody looks.
"""

from argparse import Namespace
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from odesteer.backends.vllm.registry import SteeringRegistry

PATH = "/v1/steerings"
Message = MutableMapping[str, Any]


class Endpoint:
    """The entry point `vllm.endpoint_plugins`; see `vllm.plugins.endpoint_plugins.interface`."""

    name = "odesteer"
    required_tasks = ("generate",)

    def __init__(self) -> None:
        self._engine: Any = None
        self._catalogue: SteeringRegistry | None = None
        self._counts = Counts()

    def attach_router(self, app: Any) -> None:
        """Add the route, and look at the workers before the metrics are read."""
        app.add_api_route(PATH, self._list, methods=["GET"], tags=["odesteer"])
        app.add_middleware(Refreshing, refresh=self._refresh)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """The engine is there."""
        if engine_client is None:
            return
        self._engine = engine_client
        self._catalogue = SteeringRegistry.of(engine_client.vllm_config.additional_config)
        if self._catalogue is not None:
            from vllm.v1.metrics.prometheus import get_prometheus_registry

            get_prometheus_registry().register(self._counts)

    async def _list(self) -> dict[str, Any]:
        """The steerings of this server."""
        found = [] if self._catalogue is None else self._catalogue.about()
        return {"object": "list", "data": found}

    async def _refresh(self) -> None:
        if self._catalogue is not None:
            self._counts.of(await self._engine.collective_rpc("odesteer_stats"))


class Counts:
    """Counters in the form that Prometheus reads."""

    def __init__(self) -> None:
        self._latest: list[dict[str, Any]] = []

    def of(self, workers: Iterable[Iterable[dict[str, Any]]]) -> None:
        """Keep what the workers have said: ranks of a tensor-parallel group say the same."""
        latest: dict[tuple[str, int], dict[str, Any]] = {}
        for worker in workers:
            for one in worker:
                key = (one["steering"], one["layer"])
                if key not in latest or one["tokens"] > latest[key]["tokens"]:
                    latest[key] = one
        self._latest = list(latest.values())

    def collect(self) -> Iterable[Any]:
        """For `prometheus_client`."""
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
        for one in self._latest:
            values = [one["steering"], str(one["layer"])]
            tokens.add_metric(values, one["tokens"])
            displacement.add_metric(values, one["displacement"])
        return [tokens, displacement]


class Refreshing:
    """ASGI middleware that runs something before /metrics is answered."""

    def __init__(self, app: Callable[..., Awaitable[None]], refresh: Callable[[], Awaitable[None]]):
        self._app, self._refresh = app, refresh

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        """See https://asgi.readthedocs.io."""
        if scope["type"] == "http" and scope["path"].rstrip("/") == "/metrics":
            await self._refresh()
        await self._app(scope, receive, send)
