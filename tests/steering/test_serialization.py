"""A saved steering is read as it was written, whole or not at all, and never as code."""

import hashlib
import json
import os
import signal
import sys
import threading

import pytest
import torch
from tests.helpers.models import two_gaussians
from tests.helpers.steerings import FIELDS, ROWS, D
from torch import nn

from odesteer import CAA, Angle, Calibration, ODESteer, PathLength, Steering, Target, Time, ode
from odesteer.common.files import _aside, write_whole
from odesteer.steering.serialization import CLASSES


def whole(strength=1.5):
    return Steering(
        FIELDS["quadratic"](),
        strength,
        solver="rk4",
        steps=3,
        layer=-2,
        method="mine é",
        hyperparameters={"C": 1.0},
        calibration=Calibration(0.7, -0.2),
        receipts={"rows": [3, 4]},
        model={"name": "tiny"},
    )


def older():
    return Steering(FIELDS["constant"](), method="older")


def test_the_fields_here_use_every_class_that_can_be_saved():
    used = {type(part).__name__ for make in FIELDS.values() for part in make().modules()}
    assert used - {"ModuleList"} == set(CLASSES)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_and_barrier_comes_back_bit_for_bit(name, tmp_path):
    steering = Steering(FIELDS[name](), 0.4, solver="heun", steps=3)
    loaded = Steering.from_pretrained(steering.save_pretrained(tmp_path))
    assert torch.equal(loaded(ROWS), steering(ROWS))
    assert (~loaded).field(ROWS).equal((~steering).field(ROWS))
    if steering.field.barrier is not None:
        assert torch.equal(loaded.probability(ROWS), steering.probability(ROWS))


@pytest.mark.parametrize(
    "dose",
    [
        Time(-2.0),
        PathLength(0.3),
        Angle(-0.2),
        Target(0.7, budget=2.0),
        Target(0.9, budget=Angle(0.4)),
    ],
    ids=str,
)
def test_every_dose_comes_back(dose, tmp_path):
    loaded = Steering.from_pretrained(whole(dose).save_pretrained(tmp_path))
    assert loaded.strength == dose
    assert torch.equal(loaded(ROWS), whole(dose)(ROWS))


def test_everything_a_steering_knows_comes_back(tmp_path):
    steering = whole()
    loaded = Steering.from_pretrained(steering.save_pretrained(tmp_path / "new" / "folder"))
    for name in ("solver", "steps", "layer", "method", "hyperparameters", "calibration"):
        assert getattr(loaded, name) == getattr(steering, name)
    assert loaded.receipts == steering.receipts
    assert loaded.model == steering.model


def test_compositions_come_back(tmp_path):
    a = ODESteer(gamma=1.0, C=1.0).fit(*two_gaussians(30, 30, D), layer=1)
    b = CAA().fit(*two_gaussians(30, 30, D, seed=5), layer=1)
    steering = (a & ~b) | ~(a & b)
    loaded = Steering.from_pretrained(steering.save_pretrained(tmp_path))
    assert torch.equal(loaded(ROWS), steering(ROWS))
    assert loaded.method == steering.method


def test_saving_over_an_older_steering_replaces_it(tmp_path):
    older().save_pretrained(tmp_path)
    whole().save_pretrained(tmp_path)
    assert Steering.from_pretrained(tmp_path).method == whole().method


def test_a_module_barrier_refuses_to_be_saved_and_writes_nothing(tmp_path):
    steering = Steering(ode.GradientField(ode.ModuleBarrier(nn.Linear(D, 1))))
    with pytest.raises(ValueError, match="ModuleBarrier cannot be saved: it is code"):
        steering.save_pretrained(tmp_path / "it")
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("name", ["steering.safetensors", "steering_config.json"])
def test_a_missing_file_is_named(name, tmp_path):
    (whole().save_pretrained(tmp_path) / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        Steering.from_pretrained(tmp_path)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Steering.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + b"\x7f", lambda b: b""])
def test_a_damaged_tensor_file_fails_its_checksum(damage, tmp_path):
    file = whole().save_pretrained(tmp_path) / "steering.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match="checksum"):
        Steering.from_pretrained(tmp_path)


def _set(path, value):
    def edit(config):
        *before, last = path
        for key in before:
            config = config[key]
        config[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (_set(["schema"], 99), "schema 99"),
        (lambda config: config.pop("schema"), "schema None"),
        (_set(["field", "type"], "Evil"), "Unknown part of a steering 'Evil'"),
        (_set(["field", "barrier", "type"], "ModuleBarrier"), "Unknown part .*'ModuleBarrier'"),
        (_set(["field", "barrier", "type"], "os.system"), "Unknown part"),
        (_set(["field", "type"], "LinearBarrier"), "LinearBarrier is made of weight, bias"),
        (_set(["field", "barrier", "basis", "tensor"], "nothing"), "tensor 'nothing' is missing"),
        (_set(["dose", "type"], "tyme"), "Did you mean 'time'"),
        (_set(["dose"], {}), "not a steering"),
        (_set(["solver"], "rk5"), "Unknown solver 'rk5'"),
        (_set(["steps"], "many"), "not a steering"),
        (_set(["calibration"], {"slope": 1}), "not a steering"),
        (_set(["field"], None), "not a steering"),
        (_set(["field"], []), "not a steering"),
        (lambda config: config.pop("layer"), "not a steering"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(edit, words, tmp_path):
    file = whole().save_pretrained(tmp_path) / "steering_config.json"
    config = json.loads(file.read_text())
    edit(config)
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        Steering.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"'])
def test_a_configuration_that_is_no_json_object_is_refused(text, tmp_path):
    (whole().save_pretrained(tmp_path) / "steering_config.json").write_text(text)
    with pytest.raises(ValueError, match=r"not valid JSON|schema None"):
        Steering.from_pretrained(tmp_path)


def test_a_tensor_file_that_is_no_safetensors_is_refused_though_its_checksum_fits(tmp_path):
    folder = whole().save_pretrained(tmp_path)
    (folder / "steering.safetensors").write_bytes(b"pickle")
    config = json.loads((folder / "steering_config.json").read_text())
    config["sha256"] = hashlib.sha256(b"pickle").hexdigest()
    (folder / "steering_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="steering"):
        Steering.from_pretrained(folder)


@pytest.mark.parametrize("succeed", [0, 1, 2])
@pytest.mark.parametrize("over_an_older_one", [False, True])
def test_an_interrupted_save_is_whole_or_noticed_and_leaves_no_scraps(
    succeed, over_an_older_one, tmp_path, monkeypatch
):
    if over_an_older_one:
        older().save_pretrained(tmp_path)
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) > succeed:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        whole().save_pretrained(tmp_path)
    names = {"README.md", "steering.safetensors", "steering_config.json"}
    assert {file.name for file in tmp_path.iterdir()} <= names
    if over_an_older_one and succeed == 0:
        assert Steering.from_pretrained(tmp_path).method == "older"
    else:
        with pytest.raises((ValueError, FileNotFoundError), match=r"checksum|missing"):
            Steering.from_pretrained(tmp_path)


def test_a_file_from_before_sites_and_revisions_still_loads(tmp_path):
    file = whole().save_pretrained(tmp_path) / "steering_config.json"
    config = json.loads(file.read_text())
    del config["site"]
    config["model"] = {"name": "me/llama", "type": "llama", "layers": 4, "hidden_size": D}
    file.write_text(json.dumps(config))
    loaded = Steering.from_pretrained(tmp_path)
    assert loaded.site == "residual"
    assert torch.equal(loaded(ROWS), whole()(ROWS))


# ---- several writers, and those that are killed


def test_two_writers_of_one_directory_leave_one_of_the_two(tmp_path, monkeypatch):
    whole().save_pretrained(tmp_path)
    replace, second = os.replace, threading.Thread(target=older().save_pretrained, args=[tmp_path])

    def interrupted(source, target):
        replace(source, target)
        if second.ident is None:
            second.start()
            second.join(0.3)  # it ends now if nothing holds it back

    monkeypatch.setattr(os, "replace", interrupted)
    whole(0.5).save_pretrained(tmp_path)
    second.join()
    assert Steering.from_pretrained(tmp_path).method == "older"


def killed_at(number, folder):
    """A process that saves over a directory and is killed at its n-th file operation."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    count = 0

    def audit(event, arguments):
        nonlocal count
        if event in ("open", "os.rename", "os.chmod", "os.remove"):
            count += str(arguments[0]).startswith(str(folder))
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)
    try:
        older().save_pretrained(folder)
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_writer_killed_at_any_file_operation_leaves_the_old_or_the_new_or_a_refusal(tmp_path):
    files = sorted(path.name for path in whole().save_pretrained(tmp_path / "new").iterdir())
    refused = number = 0
    while True:
        number += 1
        folder = whole().save_pretrained(tmp_path / str(number))
        if killed_at(number, folder) == 0:
            break
        try:
            assert Steering.from_pretrained(folder).method in ("older", "mine é")
        except ValueError as error:
            assert "checksum" in str(error)
            refused += 1
        older().save_pretrained(folder)
        assert Steering.from_pretrained(folder).method == "older"
        assert sorted(path.name for path in folder.iterdir()) == files
    assert number > 8
    assert refused <= 2  # only between the renames, which follow one another


def test_what_writes_still_is_not_taken_for_abandoned(tmp_path):
    with _aside(tmp_path / "a.json", b"1") as name:
        write_whole(tmp_path / "a.json", b"2")
        assert os.path.exists(name)
    (tmp_path / ".a.json.0123abcd").write_bytes(b"of a writer that was killed")
    (tmp_path / ".b.json.0123abcd").write_bytes(b"of another file")
    write_whole(tmp_path / "a.json", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.json.0123abcd", "a.json"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs resource limits")
def test_a_full_disk_is_told_with_the_name_of_the_file_and_changes_nothing(tmp_path):
    import resource

    before = {path: path.read_bytes() for path in whole().save_pretrained(tmp_path).iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(OSError, match=r"too large: .*README\.md"):
            older().save_pretrained(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
