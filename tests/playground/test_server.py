"""The server of the page: whom it answers, and when it says that it runs."""

import socket

import pytest
from tests.helpers import models as tiny
from tests.playground import small

gradio = pytest.importorskip("gradio")
httpx = pytest.importorskip("httpx")

from odesteer.playground.app import allowed_hosts, serve  # noqa: E402
from odesteer.playground.controller import Controller  # noqa: E402
from odesteer.playground.library import SavedSteering  # noqa: E402


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    library = {"curved": SavedSteering(tiny.quadratic(), "kept/it")}
    controller = Controller(small.shared(), library, tmp_path_factory.mktemp("page"), {})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        # What Gradio's own check says on a machine too busy to answer within 3 seconds.
        patch.setattr("gradio.networking.url_ok", lambda url: False)
        page, address = serve(controller, "127.0.0.1", port)
    with httpx.Client(base_url=address) as client:
        yield client
    page.close(verbose=False)


def test_a_busy_machine_does_not_stop_the_start(client):
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:{port}", 200),
        ("localhost:{port}", 200),
        ("LOCALHOST", 200),
        ("evil.example", 400),
        ("evil.example:{port}", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost.evil.example:{port}", 400),
        ("", 400),
    ],
)
def test_finding_12_a_rebound_name_is_not_answered(client, host, status):
    named = {"Host": host.format(port=client.base_url.port)}
    answer = client.get("/config", headers=named)
    assert answer.status_code == status
    assert "default-src 'self'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1", "[::1]"])
def test_a_page_for_this_machine_knows_this_machine_only(host):
    assert {"localhost", "127.0.0.1", host.strip("[]")} <= set(allowed_hosts(host))
    assert "*" not in allowed_hosts(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "lab.example"])
def test_a_page_for_other_machines_answers_to_any_name(host):
    assert allowed_hosts(host) == ["*"]
