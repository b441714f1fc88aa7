"""An operator changes the default of a steering while the server runs; whole requests follow."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tests.backends.vllm.test_middleware import Application, Sampling, config  # noqa: F401

from odesteer import Angle
from odesteer.backends.vllm import ask
from odesteer.backends.vllm.live_defaults import LiveDefaults
from odesteer.backends.vllm.middleware import Endpoint, SteeringCollector
from odesteer.backends.vllm.registry import SteeringRegistry
from odesteer.backends.vllm.request import SteeringRequest
from odesteer.ode import Time

PATH = "/v1/completions"


@pytest.fixture
def live(config: dict[str, Any]) -> LiveDefaults:  # noqa: F811
    registry = SteeringRegistry.of(config)
    assert registry is not None
    return LiveDefaults(registry)


@pytest.fixture
def app(config: dict[str, Any], live: LiveDefaults) -> Application:  # noqa: F811
    app = Application(config)
    app.state.odesteer = live
    return app


def test_requests_that_name_no_dose_get_the_default_of_now(
    app: Application, live: LiveDefaults
) -> None:
    live.set("kind", {"angle": 0.4})
    for body in ({"model": "m:kind"}, {"vllm_xargs": ask("kind")}):
        assert app.requests(PATH, body) == (SteeringRequest("kind", Angle(0.4)),)
    assert app.requests(PATH, {"model": "m:calm"}) == (SteeringRequest("calm"),)
    own = {"vllm_xargs": ask("kind", strength=2.0)}
    assert app.requests(PATH, own) == (SteeringRequest("kind", Time(2.0)),)
    live.set("kind", {"target": 0.9, "angle": 0.5})
    expected = SteeringRequest("kind", Angle(0.5), probability=0.9)
    assert app.requests(PATH, {"model": "m:kind"}) == (expected,)
    live.set("kind", {})
    assert app.requests(PATH, {"model": "m:kind"}) == (SteeringRequest("kind"),)


def test_one_that_is_turned_off_steers_nobody_whatever_dose_is_named(
    app: Application, live: LiveDefaults
) -> None:
    live.set("kind", {"enabled": False})
    both = {"odesteer": json.dumps([{"name": "kind", "angle": 0.3}, {"name": "calm"}])}
    for body in ({"model": "m:kind"}, {"vllm_xargs": ask("kind", angle=0.3, target=0.9)}):
        [request] = app.requests(PATH, body)
        assert request.dose_at(Angle(0.2)) == Time(0.0) and request.dose_at(Angle(0.2)).is_zero
    assert [each.dose for each in app.requests(PATH, {"vllm_xargs": both})] == [Time(0.0), None]
    # Also where the parameters name it, and the body does not.
    app.params = Sampling(ask("kind", angle=0.3))
    [request] = app.requests("/inference/v1/generate", {"model": "m"})
    assert request.dose == Time(0.0)
    live.set("kind", {"enabled": True})
    [request] = app.requests("/inference/v1/generate", {"model": "m"})
    assert request.dose == Angle(0.3)


def test_a_request_keeps_the_default_of_its_arrival(live: LiveDefaults) -> None:
    live.set("kind", {"angle": 0.4})
    arrived = live.changed
    live.set("kind", {"enabled": False})
    live.set("calm", {"angle": 0.1})
    assert arrived == {"kind": SteeringRequest("kind", Angle(0.4))}


@pytest.mark.parametrize(
    "name, fields, line",
    [
        ("kin", {"angle": 0.1}, "Did you mean 'kind'?"),
        ("kind", {"angel": 0.1}, "Did you mean 'angle'?"),
        ("kind", {"angle": "much"}, "angle is a number between -10000 and 10000; got 'much'."),
        ("kind", {"angle": 0.1, "strength": 1}, "takes a strength or an angle, not both"),
        ("kind", {"target": 2}, "a target is a probability between 0 and 1"),
        ("kind", {"enabled": 0}, "enabled is true or false; got int."),
        ("kind", {"enabled": False, "angle": 0.1}, "leave one of them out"),
        ("kind", [0.1], "A default is an object; got list."),
    ],
)
def test_what_no_request_could_ask_for_changes_nothing(
    live: LiveDefaults, name: str, fields: Any, line: str
) -> None:
    live.set("kind", {"angle": 0.4})
    before = live.changed
    with pytest.raises(ValueError) as error:
        live.set(name, fields)
    assert line in str(error.value) and "\n" not in str(error.value)
    assert live.changed is before


def endpoint(live: LiveDefaults, processes: int = 1) -> Endpoint:
    made = Endpoint()
    made._live, made._processes = live, processes
    return made


def test_the_list_and_the_metrics_say_what_is_on(live: LiveDefaults) -> None:
    pytest.importorskip("prometheus_client")
    assert endpoint(live).change("kind", {"angle": 0.4})["dose"] == "angle 0.4"
    assert endpoint(live).change("calm", {"enabled": False})["enabled"] is False
    assert {each["name"]: (each["dose"], each["enabled"]) for each in live.describe()} == {
        "kind": ("angle 0.4", True),
        "calm": ("angle 0.2", False),
    }
    collector = SteeringCollector()
    collector.live = live
    [on] = [family for family in collector.collect() if family.name == "odesteer_enabled"]
    assert {each.labels["steering"]: each.value for each in on.samples} == {"kind": 1, "calm": 0}


def test_several_processes_would_not_agree(live: LiveDefaults) -> None:
    with pytest.raises(ValueError, match="2 API processes"):
        endpoint(live, 2).change("kind", {"angle": 0.4})
    assert not live.changed


def test_over_http_it_is_a_route_with_errors_in_vllms_form(live: LiveDefaults) -> None:
    fastapi = pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    app, made = fastapi.FastAPI(), endpoint(live)
    made._refresh = lambda: None  # type: ignore[method-assign, assignment]
    made.attach_router(app)
    client = TestClient(app)
    told = client.post("/v1/steerings/kind", json={"angle": 0.4})
    assert told.status_code == 200 and told.json()["dose"] == "angle 0.4"
    listed = client.get("/v1/steerings").json()["data"]
    assert [each["dose"] for each in listed] == ["angle 0.4", "angle 0.2"]
    for name, body, status in (
        ("kind", b'{"angle": "x"}', 400),
        ("cold", b"{}", 404),
        ("kind", b"{", 400),
    ):
        told = client.post(f"/v1/steerings/{name}", content=body)
        assert told.status_code == status and told.json()["error"]["code"] == status
    assert SimpleNamespace(**told.json()["error"]).type == "BadRequestError"
