"""A steering goes to the Hub and comes back, over HTTP to a hub of our own on this machine."""

import hashlib
import json
import logging
import re
import time

import pytest
import torch
from tests.helpers import fake_hub as fake
from tests.helpers.command_line import run as command
from tests.helpers.models import constant, two_gaussians

from odesteer import ODESteer, Steering, load
from odesteer.steering.hub import FILES
from odesteer.steering.serialization import CARD, CONFIG, TENSORS

ROWS = two_gaussians(6, 6)[0]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub is this one, the cache is empty, and nobody is logged in."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    with fake.running() as server:
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        settings = {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": template,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
        }
        for name, value in settings.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.chdir(tmp_path)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()


@pytest.fixture(scope="module")
def steering():
    return ODESteer(gamma=1.0, C=1.0).fit(*two_gaussians(30, 30), layer=1, strength=0.7)


def test_what_is_pushed_is_what_is_read(hub, steering):
    address = steering.push_to_hub("me/truthful", token=fake.TOKEN)
    assert address.startswith(f"{hub.address}/me/truthful/commit/")
    loaded = Steering.from_pretrained("me/truthful")
    assert torch.equal(loaded(ROWS), steering(ROWS))
    assert loaded.receipts == steering.receipts


def test_the_pushed_files_are_those_that_are_saved(hub, steering, tmp_path):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    folder = steering.save_pretrained(tmp_path / "here")
    pushed = hub.files("me/truthful")
    assert set(pushed) == {".gitattributes", *FILES}
    for name in FILES:
        assert pushed[name] == (folder / name).read_bytes()


def test_several_layers_go_and_come_back(hub):
    layered = Steering.of((constant(0), constant(2, seed=1)))
    layered.push_to_hub("me/layers", token=fake.TOKEN)
    for loaded in (load("me/layers"), Steering.from_pretrained("me/layers")):
        assert loaded.layer == (0, 2)
        rows = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
        assert torch.equal(loaded.parts[1](rows), layered.parts[1](rows))


def test_only_our_files_are_fetched(hub, steering):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    hub.commit("me/truthful", "main", {"evil.py": b"boom", "x/steering.pt": b"boom"}, "more")
    steering.from_pretrained("me/truthful")
    fetched = {path.rsplit("/", 1)[1] for _, path, _ in hub.requests if "/resolve/" in path}
    assert fetched == set(FILES)


def test_every_push_is_one_commit_with_its_message(hub, steering):
    before = len(hub.commits)
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    steering.with_strength(2.0).push_to_hub(
        "me/truthful", token=fake.TOKEN, commit_message="Stronger"
    )
    messages = [commit["message"] for commit in hub.commits.values()][before + 1 :]
    assert messages == ["odesteer at layer 1", "Stronger"]


def test_a_revision_is_written_and_read_by_its_name_and_by_its_commit(hub, steering):
    first = steering.push_to_hub("me/truthful", token=fake.TOKEN).rsplit("/", 1)[1]
    strong = steering.with_strength(2.0)
    strong.push_to_hub("me/truthful", token=fake.TOKEN, revision="strong")
    assert load("me/truthful").strength == steering.dose
    assert load("me/truthful", revision="strong").strength == strong.dose
    assert load("me/truthful", revision=first).strength == steering.dose


def test_a_private_repository_needs_a_login(hub, steering, monkeypatch):
    steering.push_to_hub("me/secret", private=True, token=fake.TOKEN)
    assert hub.private["me/secret"]
    with pytest.raises(FileNotFoundError, match=r"'me/secret'.*HF_TOKEN"):
        load("me/secret")
    monkeypatch.setenv("HF_TOKEN", fake.TOKEN)
    assert torch.equal(load("me/secret")(ROWS), steering(ROWS))


def test_a_token_is_in_no_file_and_no_message(hub, steering, tmp_path, capfd):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    with pytest.raises(PermissionError) as refused:
        steering.push_to_hub("me/truthful", token="hf_aWrongOne")
    printed = "".join(capfd.readouterr())
    assert "hf_" not in str(refused.value) and "hf_" not in printed
    contents = b"".join(hub.files("me/truthful").values())
    kept = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"hf_" not in contents and b"hf_" not in kept


def test_a_local_directory_comes_before_the_hub(hub, steering):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    steering.with_strength(9.0).save_pretrained("me/truthful")
    before = len(hub.requests)
    assert load("me/truthful").dose.size == 9.0
    assert len(hub.requests) == before
    with pytest.raises(ValueError, match="local directory and has no revision 'main'"):
        load("me/truthful", revision="main")


def test_a_copy_that_was_fetched_before_is_used_while_the_hub_is_away(hub, steering, monkeypatch):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    load("me/truthful")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(load("me/truthful")(ROWS), steering(ROWS))


@pytest.mark.parametrize("offline", [True, False])
def test_offline_says_so_and_what_to_do(hub, offline, monkeypatch):
    from huggingface_hub import constants

    if offline:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        # Nobody listens on port 1.
        nobody = "http://127.0.0.1:1"
        monkeypatch.setattr(constants, "ENDPOINT", nobody)
        template = nobody + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(ConnectionError, match="'me/truthful' is no local directory") as raised:
        load("me/truthful")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


def test_what_is_not_on_the_hub_is_named(hub, steering):
    with pytest.raises(FileNotFoundError, match="'me/nothing'"):
        load("me/nothing")
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    with pytest.raises(FileNotFoundError, match="'me/truthful' has no revision 'v9'"):
        load("me/truthful", revision="v9")
    hub.repositories["me/model"] = {}
    hub.commit("me/model", "main", {"config.json": b"{}"}, "a model")
    with pytest.raises(FileNotFoundError, match=r"steering_config\.json is missing"):
        load("me/model")


def test_what_is_no_name_of_a_repository_is_not_looked_for(hub):
    for name in ("nowhere", "/nowhere/at/all", "../nowhere", "a/b/c", "me/", "me/..", "-a/b"):
        with pytest.raises(FileNotFoundError, match="no such directory"):
            load(name)
    assert not hub.requests


def test_a_damaged_repository_is_refused_like_a_damaged_directory(hub, steering):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    files = hub.files("me/truthful")
    config = json.loads(files["steering_config.json"])
    config["field"]["type"] = "os.system"
    hub.commit("me/truthful", "main", {"steering_config.json": json.dumps(config).encode()}, "x")
    with pytest.raises(ValueError, match=r"Unknown part of a steering 'os\.system'"):
        load("me/truthful")


def test_what_cannot_be_saved_makes_no_repository(hub):
    from odesteer.ode import GradientField, ModuleBarrier

    barrier = ModuleBarrier(torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match="it is code"):
        Steering(GradientField(barrier)).push_to_hub("me/code", token=fake.TOKEN)
    assert not hub.requests


# ---- a server that means harm (HF_ENDPOINT), or is broken


def endless():
    while True:
        yield b"x" * 2**16


def headed(**changes):
    """The file as it is, under other headers."""
    return lambda handler, data, headers: handler.answer(200, data, **{**headers, **changes})


def body(pieces, **changes):
    """Right headers, and another body."""

    def answer(handler, data, headers):
        if handler.command == "HEAD":
            return handler.answer(200, data, **headers)
        return handler.stream(pieces(data), **headers, **changes)

    return answer


def unmeasured(handler, data, headers):
    handler.stream([data[:100]], **headers)


HOSTILE = {
    "endless": (CONFIG, body(lambda _: endless()), r"longer than the 8,388,608 bytes"),
    "endless card": (CARD, body(lambda _: endless()), r"longer than the 1,048,576 bytes"),
    "huge claim": (
        TENSORS,
        lambda handler, data, headers: handler.stream([], content_length=str(2**40), **headers),
        r"longer than the 34,359,738,368 bytes",
    ),
    "no length": (TENSORS, unmeasured, "does not say how long it is"),
    "cut off": (TENSORS, body(lambda data: [data[:100]]), r"size \d+ but has size 100"),
    "bomb": (CARD, body(lambda _: endless(), content_encoding="gzip"), r"compressed \(gzip\)"),
    "etag of a path": (CONFIG, headed(etag='"../../../../evil"'), "etag = .* is no hash"),
    "commit of a path": (CONFIG, headed(x_repo_commit="../../evil"), "x-repo-commit = .* no hash"),
    "page": (CONFIG, body(lambda _: [b"<html>"]), r"size \d+ but has size 6"),
    "error": (CONFIG, lambda handler, *_: handler.answer(503, b"", retry_after="86400"), "reached"),
    "loop": (CONFIG, lambda handler, *_: handler.answer(302, location=handler.path), "reached"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_server_gets_one_line_and_leaves_nothing(hub, steering, tmp_path, kind):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    before = set(tmp_path.rglob("*"))
    file, answer, words = HOSTILE[kind]
    hub.hostile[file] = answer
    with pytest.raises((ValueError, OSError), match=words) as refused:
        load("me/truthful")
    assert "\n" not in str(refused.value)
    after = {path for path in tmp_path.rglob("*") if path not in before and path.is_file()}
    assert not [path for path in after if not path.is_relative_to(tmp_path / "cache")]
    assert not [path for path in after if path.suffix == ".incomplete" or "evil" in path.name]
    # What was refused is not kept: it is there once the server is well.
    hub.hostile.clear()
    assert torch.equal(load("me/truthful")(ROWS), steering(ROWS))


def test_a_slow_server_is_not_waited_for(hub, steering, monkeypatch):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    monkeypatch.setattr("odesteer.steering.hub.GRACE", 0.0)
    monkeypatch.setattr("odesteer.steering.hub.RATE", 1e12)
    with pytest.raises(
        ConnectionError, match=r"sent [\d,]+ bytes of steering_config.json in 0 seconds"
    ):
        load("me/truthful")


def test_a_list_of_files_is_not_read(hub, steering):
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    hub.requests.clear()
    load("me/truthful")
    assert not [path for _, path, _ in hub.requests if path.startswith("/api/")]


def test_a_token_does_not_follow_to_another_host(hub, steering, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake.TOKEN)
    steering.push_to_hub("me/truthful")
    with fake.running() as elsewhere:
        address = elsewhere.address.replace("127.0.0.1", "localhost") + "/stolen"
        for when in ("HEAD", "GET"):

            def away(handler, data, headers, when=when):
                if handler.command != when:
                    return handler.answer(200, data, **headers)
                size = {"x_linked_size": str(len(data))}
                return handler.answer(302, **headers, **size, location=address)

            hub.hostile[TENSORS] = away
            with pytest.raises(OSError):
                load("me/truthful")
        assert elsewhere.requests
        assert {authorization for _, _, authorization in elsewhere.requests} == {None}


# ---- the same server, pushed to


def answering(*arguments, **headers):
    return lambda handler: handler.answer(*arguments, **headers)


def sent_on(handler):
    """To another host: http://localhost is none for a client of http://127.0.0.1."""
    address = handler.server.address.replace("127.0.0.1", "localhost")
    handler.answer(307, location=address + handler.path)


def echoing(handler):
    """The token, where an address belongs that errors quote."""
    handler.answer(307, location=f"{fake.TOKEN}://x")


def dripping():
    while True:
        time.sleep(0.05)
        yield b" "


PUSHED = {
    "error": (answering(500, b""), "status 500"),
    "later": (answering(503, b"", retry_after="86400"), "status 503"),
    "page": (answering(200, b"<html>"), "UnusableAnswer: Expecting value|disconnected"),
    "list": (answering(200, [1]), "TypeError|AttributeError|disconnected"),
    "null": (answering(200, b"null"), "TypeError|AttributeError|disconnected"),
    "other host": (sent_on, "another host|LocalProtocolError"),
    "loop": (lambda handler: handler.answer(307, location=handler.path), "TooManyRedirects"),
    "token": (echoing, "status 404"),
    "endless": (lambda handler: handler.stream(endless()), r"goes on after 1,\d{3},\d{3} bytes"),
    "dripping": (lambda handler: handler.stream(dripping()), "goes on after"),
    "silent": (lambda handler: time.sleep(10.0), "has not answered|timed out"),
}
ROUTES = ("create", "preupload", "batch", "upload", "take")
# Every answer at one route, and those that never end at each.
PLACES = {(kind, ROUTES[i % len(ROUTES)]) for i, kind in enumerate(PUSHED)}
PLACES |= {(kind, route) for kind in ("endless", "silent") for route in ROUTES}


@pytest.mark.parametrize(("kind", "route"), sorted(PLACES))
def test_a_push_to_a_hostile_server_ends_in_one_line(
    hub, steering, tmp_path, monkeypatch, kind, route
):
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(seconds / 10))  # between attempts
    monkeypatch.setenv("HF_TOKEN", fake.TOKEN)
    folder = steering.save_pretrained(tmp_path / "here")
    hub.hostile[route], words = PUSHED[kind]
    with monkeypatch.context() as hostile:
        hostile.setattr("odesteer.steering.hub.SILENCE", 0.3)
        refused = command("push", folder, "me/truthful")
    *_, error = refused.stderr.strip().splitlines()
    assert refused.exit_code == 2 and len(error) < 300
    assert re.search(f"error: .*({words})", error), refused.output
    assert fake.TOKEN not in refused.output
    hub.hostile.clear()
    assert command("push", folder, "me/truthful").exit_code == 0
    assert torch.equal(load("me/truthful")(ROWS), steering(ROWS))


def test_a_token_is_pushed_to_no_other_host(hub, steering):
    with fake.running() as elsewhere:
        address = elsewhere.address.replace("127.0.0.1", "localhost")

        def away(handler):
            handler.answer(307, location=address + handler.path)

        def verified_elsewhere(handler):
            """The client is to report an upload at another host, which it does with the token."""
            oid = hashlib.sha256(tensors).hexdigest()
            actions = {
                "upload": {"href": f"{hub.address}/lfs/{oid}"},
                "verify": {"href": f"{address}/verify"},
            }
            objects = [{"oid": oid, "size": len(tensors), "actions": actions}]
            handler.answer(200, {"transfer": "basic", "objects": objects})

        steering.push_to_hub("me/truthful", token=fake.TOKEN)
        tensors = hub.files("me/truthful")[TENSORS]
        for route, answer in {
            **dict.fromkeys(("create", "preupload", "batch", "take"), away),
            "batch": verified_elsewhere,
        }.items():
            hub.hostile = {route: answer}
            with pytest.raises(ConnectionError, match="another host"):
                steering.push_to_hub("me/truthful", token=fake.TOKEN)
        assert not elsewhere.requests


def test_an_address_that_is_none_is_not_shown(hub, steering):
    hub.hostile["take"] = answering(200, {"commitUrl": "\x1b[2J" * 100, "commitOid": "x"})
    with pytest.raises(ConnectionError, match="cannot be used") as refused:
        steering.push_to_hub("me/truthful", token=fake.TOKEN)
    assert str(refused.value).isprintable() and len(str(refused.value)) < 300


def test_a_push_leaves_the_client_as_it_was(hub, steering):
    from huggingface_hub.utils import get_session

    before = {event: list(hooks) for event, hooks in get_session().event_hooks.items()}
    level = logging.getLogger("huggingface_hub").level
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    assert get_session().event_hooks == before
    assert logging.getLogger("huggingface_hub").level == level


def test_a_directory_is_pushed_as_it_is_and_pulled_as_it_was(hub, steering, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake.TOKEN)
    folder = steering.save_pretrained(tmp_path / "here")
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nWritten by hand.\n")
    pushed = command("push", folder, "me/truthful", "--private", "--message", "Mine", "--json")
    assert pushed.exit_code == 0, pushed.output
    said = json.loads(pushed.stdout)
    assert hub.private["me/truthful"]
    assert hub.commits[said["commit"].rsplit("/", 1)[1]]["message"] == "Mine"
    pulled = command("pull", "me/truthful", "--out", tmp_path / "there", "--json")
    assert json.loads(pulled.stdout) == {
        "path": str(tmp_path / "there"),
        "method": "odesteer",
        "layers": [1],
    }
    for name in FILES:
        assert (tmp_path / "there" / name).read_bytes() == (folder / name).read_bytes()
    assert "hf_" not in pushed.output + pulled.output


def test_a_branch_is_pushed_and_pulled(hub, steering, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake.TOKEN)
    for strength, more in ((0.7, []), (2.0, ["--revision", "strong"])):
        folder = steering.with_strength(strength).save_pretrained(tmp_path / f"{strength}")
        assert command("push", folder, "me/truthful", *more).exit_code == 0
    shown = command("pull", "me/truthful", "--revision", "strong", "--out", tmp_path / "there")
    assert shown.exit_code == 0 and load(tmp_path / "there").dose.size == 2.0
    assert "odesteer at layer 1" in shown.stdout


def test_nothing_is_pushed_or_written_that_cannot_be_loaded(hub, steering, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", fake.TOKEN)
    folder = steering.save_pretrained(tmp_path / "here")
    (folder / "steering.safetensors").write_bytes(b"damaged")
    before = len(hub.requests)
    refused = command("push", folder, "me/truthful")
    assert refused.exit_code == 2 and "does not match its checksum" in refused.stderr
    assert len(hub.requests) == before
    assert command("push", "me/nowhere", "me/truthful").exit_code == 2
    steering.push_to_hub("me/truthful", token=fake.TOKEN)
    hub.commit("me/truthful", "main", {"steering.safetensors": b"damaged"}, "x")
    refused = command("pull", "me/truthful", "--out", tmp_path / "there")
    assert refused.exit_code == 2 and not (tmp_path / "there").exists()


def test_the_commands_say_what_to_do_without_a_login_or_a_name(hub, steering, tmp_path):
    folder = steering.save_pretrained(tmp_path / "here")
    refused = command("push", folder, "me/truthful")
    assert refused.exit_code == 2 and "hf auth login" in refused.stderr
    assert refused.stderr.count("\n") == 2  # what it does, and why it did not
    (tmp_path / "me").mkdir()
    steering.save_pretrained(tmp_path / "me/local")
    refused = command("pull", "me/local", "--out", tmp_path / "there")
    assert refused.exit_code == 2 and "is a directory here" in refused.stderr
