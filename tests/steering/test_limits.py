"""Files too large, too deep, or leading elsewhere are refused before they are read."""

import hashlib
import json
import os
import struct
import time

import pytest
import torch
from safetensors.torch import save as dump_tensors
from tests.helpers.steerings import FIELDS, D

from odesteer import Steering, load, ode
from odesteer.common import limits as strict

CONFIG, TENSORS = "steering_config.json", "steering.safetensors"


@pytest.fixture
def folder(tmp_path):
    return Steering(FIELDS["constant"](), 0.4, layer=1).save_pretrained(tmp_path / "it")


def refused(folder, words, error=ValueError):
    """`load` refuses the directory at once, in one short line with these words."""
    began = time.process_time()
    with pytest.raises(error, match=words) as raised:
        load(folder)
    message = str(raised.value)
    assert time.process_time() - began < 3.0
    assert str(folder) in message and "\n" not in message and len(message) <= 400
    return message


def edit(folder, **values):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **values}))


def put(folder, payload):
    """Other tensors, with the checksum that they have."""
    (folder / TENSORS).write_bytes(payload)
    edit(folder, sha256=hashlib.sha256(payload).hexdigest())


# ---- sizes


@pytest.mark.parametrize(("name", "size"), [(CONFIG, 2**30), (TENSORS, 2**40)])
def test_a_huge_file_is_refused_by_its_size(name, size, folder):
    os.truncate(folder / name, size)  # sparse: takes no room on disk
    refused(folder, f"{name}.*bytes, more than")


def test_a_tensor_file_that_is_not_what_was_saved_is_never_in_memory(folder, monkeypatch):
    os.truncate(folder / TENSORS, 2**28)
    monkeypatch.setattr(
        "odesteer.steering.serialization.load_tensors", lambda _: pytest.fail("was read")
    )
    refused(folder, "does not match its checksum")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**31, 10**8 + 1])
def test_a_header_that_claims_more_than_there_is_is_refused(length, folder):
    put(folder, struct.pack("<Q", length) + b"{}" + bytes(100))
    refused(folder, "its header claims")


def test_a_header_of_a_hundred_megabytes_of_spaces_is_refused(folder):
    header = b"{}" + b" " * 10**8
    put(folder, struct.pack("<Q", len(header)) + header)
    refused(folder, "its header claims 100,000,002 bytes")


def test_a_header_that_describes_another_size_is_refused(folder):
    payload = (folder / TENSORS).read_bytes()
    put(folder, payload + b"more")
    refused(folder, "incomplete metadata, file not fully covered")


def test_an_empty_tensor_cannot_become_a_full_one(folder):
    put(folder, dump_tensors({"field.direction": torch.zeros(0, 2**40)}))
    refused(folder, "no side may be longer")


@pytest.mark.parametrize("depth", [101, 900, 10**5, 10**6])
def test_deep_nesting_is_refused(depth, folder):
    text = (folder / CONFIG).read_text().rstrip()[:-1]
    (folder / CONFIG).write_text(f'{text}, "x": {"[" * depth}{"]" * depth}}}')
    # A million brackets are a million values as well, and those are counted first.
    refused(folder, "nested deeper than 100 levels" if depth < 10**6 else "more than 200,000")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" + "{}," * 10**6 + "{}]", "more than 200,000 values"),
        ('["' + "x" * 9 * 10**6 + '"]', "bytes, more than"),
        ("9" * 10**6, "beyond 64 bits"),
        ("[" + "{}," * 60_000 + "{}]", "has no 'field'"),
        ('[{"field": [' + "[]," * 60_000 + "[]]}]", "is an object with its type"),
    ],
)
def test_many_parts_and_long_values_are_refused(text, words, folder):
    before = (folder / CONFIG).read_text().rstrip()[:-1]
    (folder / CONFIG).write_text(f'{before}, "parts": {text}}}')
    refused(folder, words)


def test_a_steering_may_have_no_more_steps_than_anyone_would_wait_for(folder, tmp_path):
    edit(folder, steps=1001)
    refused(folder, "steps may be at most 1000")
    with pytest.raises(ValueError, match="steps may be at most 1000"):
        Steering(FIELDS["constant"](), steps=1001).save_pretrained(tmp_path / "other")
    assert not (tmp_path / "other").exists()


# ---- numbers and names


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_no_finite_number_is_refused_everywhere(number, folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"receipts": {}', f'"receipts": {{"x": {number}}}'))
    refused(folder, "not finite")


def test_a_key_given_twice_is_refused(folder):
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"steps": 1', '"steps": 1, "steps": 2'))
    refused(folder, "gives 'steps' twice")


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "a/b", "", "a b", "é"])
def test_a_tensor_is_named_by_its_place_and_nothing_else(name, folder):
    put(folder, dump_tensors({name: torch.zeros(2), "field.direction": torch.ones(D)}))
    refused(folder, "is no name of a tensor")
    assert sorted(file.name for file in folder.parent.iterdir()) == ["it"]


@pytest.mark.parametrize(
    "kind", [torch.int32, torch.bool, torch.uint8, torch.float8_e4m3fn, torch.complex64]
)
def test_a_tensor_of_another_type_is_refused(kind, folder):
    put(folder, dump_tensors({"field.direction": torch.ones(D).to(kind)}))
    refused(folder, "is of type")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_numbers_that_nothing_can_be_computed_with_are_refused(value, folder, tmp_path):
    direction = torch.ones(D)
    direction[2] = value
    put(folder, dump_tensors({"field.direction": direction}))
    refused(folder, "the direction of a ConstantField holds NaN")
    with pytest.raises(ValueError, match="holds NaN"):
        Steering(ode.ConstantField(direction)).save_pretrained(tmp_path / "other")


@pytest.mark.parametrize("shape", [(), (0,), (1, D), (D, 1)])
def test_a_tensor_of_another_shape_is_refused(shape, folder):
    put(folder, dump_tensors({"field.direction": torch.ones(shape)}))
    refused(folder, "is not a steering")


def test_a_bias_that_would_broadcast_is_refused(tmp_path):
    field = ode.GradientField(ode.LinearBarrier(torch.ones(D), torch.ones(4)))
    with pytest.raises(ValueError, match=r"a log-odds \[4\] that is of another shape"):
        Steering(field).save_pretrained(tmp_path)


def test_parts_of_different_widths_are_refused(tmp_path):
    parts = [ode.LinearBarrier(torch.ones(d)) for d in (4, 5)]
    with pytest.raises(ValueError, match="is not a steering"):
        Steering(ode.GradientField(ode.AndBarrier(parts))).save_pretrained(tmp_path)


# ---- places


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_a_link_out_of_the_directory_is_not_followed(name, folder, tmp_path):
    secret = tmp_path / "secret"
    (folder / name).rename(secret)
    (folder / name).symlink_to(secret)
    message = refused(folder, f"{name}.*a link to a file outside")
    assert "secret" not in message


def test_a_linked_directory_and_a_link_inside_are_followed(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    (folder / CONFIG).rename(folder / "real.json")
    (folder / CONFIG).symlink_to("real.json")
    assert load(tmp_path / "link").method == "custom"


def test_the_links_of_the_cache_of_the_hub_are_followed_within_it(folder, tmp_path):
    snapshot = tmp_path / "cache" / "models--me--x" / "snapshots" / "abc"
    blobs = tmp_path / "cache" / "models--me--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, TENSORS):
        (folder / name).rename(blobs / name)
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    assert load(snapshot).method == "custom"
    (blobs / CONFIG).rename(tmp_path / "outside")
    (snapshot / CONFIG).unlink()
    (snapshot / CONFIG).symlink_to(tmp_path / "outside")
    refused(snapshot, "a link to a file outside")


@pytest.mark.parametrize("name", [CONFIG, TENSORS])
def test_what_is_no_file_is_missing(name, folder):
    (folder / name).unlink()
    for make in (os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)):
        make(folder / name)
        refused(folder, f"{name} is missing", FileNotFoundError)
        (os.rmdir if (folder / name).is_dir() else os.unlink)(folder / name)


def test_saving_over_a_link_replaces_the_link_and_not_what_it_leads_to(folder, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    for name in (CONFIG, TENSORS, "README.md"):
        (folder / name).unlink()
        (folder / name).symlink_to(outside)
    Steering(FIELDS["zero"]()).save_pretrained(folder)
    assert outside.read_text() == "mine"
    assert load(folder).hidden_size is None


# ---- what is written is what is read


def test_what_is_no_json_is_not_saved(tmp_path):
    for receipts in ({"x": float("nan")}, {"x": object()}, {"x": 10**40}, {"\ud800": 1}):
        with pytest.raises(ValueError, match=r"cannot be saved: its steering_config\.json"):
            Steering(ode.ZeroField(), receipts=receipts).save_pretrained(tmp_path / "it")
    assert not (tmp_path / "it").exists()


def test_several_layers_are_checked_like_one(tmp_path):
    parts = tuple(Steering(FIELDS["constant"](), layer=i) for i in range(2))
    folder = Steering.of(parts).save_pretrained(tmp_path / "it")
    config = json.loads((folder / CONFIG).read_text())
    for parts, words in (
        (None, "no list of objects"),
        ([], "needs at least one part"),
        ([config["parts"][0]] * 2, "Two parts are at one place"),
        ([{}], "has no 'field'"),
        ([[]], "no list of objects"),
        ([config["parts"][0] | {"layer": None}, config["parts"][1]], "needs a layer"),
    ):
        edit(folder, parts=parts)
        refused(folder, words)


def test_the_limits_leave_room_for_eighty_layers():
    """A part's configuration with receipts of every kind, eighty times."""
    receipts = {"layers": {str(i): {"auc": 0.5, "log_loss": 0.6, "ece": 0.1} for i in range(40)}}
    receipts["reliability"] = [{"probability": 0.1, "frequency": 0.1, "n": 5}] * 10
    part, _ = Steering(FIELDS["or"](), receipts=receipts).only.describe()
    text = json.dumps({"parts": [part] * 80}, indent=2).encode()
    assert len(strict.parse_json(text)["parts"]) == 80
