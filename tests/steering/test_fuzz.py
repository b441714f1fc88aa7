"""Whatever is in its files, a steering loads and works, or is refused in one line.

Seeded mutations of the files of every class that can be saved. The checksum is made to fit in
most of them, so that what lies behind it is tested too.
"""

import copy
import hashlib
import json
import math
import random
import resource
import struct
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from tests.helpers.steerings import FIELDS, D

from odesteer import Calibration, Steering, Target, load
from odesteer.steering.coverage import Coverage

MUTATIONS = 38  # of each steering: more than 1,000 in all
SECONDS, MEGABYTES = 3.0, 400
CONFIG, TENSORS = "steering_config.json", "steering.safetensors"


def _layered():
    parts = [
        Steering(FIELDS[name](), 0.3, layer=i) for i, name in enumerate(("constant", "metric"))
    ]
    return Steering.of(tuple(parts))


def _target():
    return Steering(
        FIELDS["quadratic"](),
        Target(0.9, budget=2.0, coverage=0.8),
        solver="great-circle",
        steps=4,
        layer=1,
        calibration=Calibration(0.7, -0.2),
        coverage=Coverage.of(np.linspace(-2.0, 2.0, 40), np.repeat([0, 1], 20)),
        receipts={"rows": [3, 4], "held_out": {"auc": 0.9}},
        model={"name": "tiny", "layers": 4},
    )


STEERINGS = {
    **{
        name: lambda make=make: Steering(make(), 0.4, solver="heun", steps=3, layer=1)
        for name, make in FIELDS.items()
    },
    "several layers": _layered,
    "target": _target,
}

DEEP = json.loads("[" * 300 + "]" * 300)
EVIL = [
    *(None, True, False, 0, -1, 1, 7, 2**31, 2**62, 2**63, -(2**70), 10**30, 10**400),
    *(0.5, -0.5, 1e-300, 1e-45, 1e20, 1e38, 1e300, -1e308, math.nan, math.inf, -math.inf),
    *("", "x", "é", "\0", "\ud800", "a" * 5000, "../../../etc/passwd", "__class__", "os.system"),
    *("__import__('os').system('true')", "ModuleBarrier", "Evil", "ConstantField", "ZeroField"),
    *("LinearBarrier", "time", "target", "dopri5", "rk4", "heads", "gelu", "nan", "Infinity"),
    *([], {}, [[]], [{}], [None] * 50, {"": None}, {"type": "ZeroField", "barrier": None}, DEEP),
    *({"type": "Evil"}, {"type": []}, {"type": {}}, {"tensor": []}, {"tensor": "../x"}),
    *({"__class__": "os.system"}, {"__reduce__": ["os.system", ["true"]]}, {"tensor": None}),
]
TYPES = ["I64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "F16", "BF16", "F64", "C64", "x"]
CASTS = [torch.int64, torch.int32, torch.bool, torch.uint8, torch.float8_e4m3fn]
CASTS += [torch.float16, torch.bfloat16, torch.float64, torch.complex64]


# ---- mutations: (random, configuration, payload) -> both as bytes


def _bytes(rng, data):
    """A bit flipped, a piece cut off, left out, doubled, put in or overwritten."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at, n = rng.randrange(len(data) + 1), rng.randrange(1, 24)
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + n]
        elif kind == 3:
            data[at:at] = data[at : at + n]
        elif kind == 4:
            data[at:at] = rng.randbytes(n)
        else:
            data[at : at + n] = rng.choice([bytes(n), b"\xff" * n, b"[" * n, b'"' * n, b"9" * n])
    return bytes(data)


def _places(tree, found):
    """Every (container, key) of a JSON tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, dict | list):
            _places(value, found)
    return found


def _tree(rng, tree):
    """Values of a JSON tree replaced, nudged, moved, left out or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = _places(tree, [])
        if not places:
            return json.dumps(rng.choice(EVIL)).encode("utf-8", "surrogatepass")
        container, key = rng.choice(places)
        value, kind = container[key], rng.randrange(8)
        if kind <= 3:
            container[key] = copy.deepcopy(rng.choice(EVIL))
        elif kind == 4 and isinstance(value, int | float) and abs(value) < 1e300:
            container[key] = value * rng.choice([-1, 0, 0.5, 3, 1e6, 1e30]) + rng.choice([0, 1])
        elif kind == 5:
            other, there = rng.choice(places)
            container[key] = json.loads(json.dumps(other[there]))
        elif kind == 6:
            del container[key]
        elif isinstance(container, dict):
            container[rng.choice(["__class__", "type", "tensor", "x", "../x"])] = container.pop(key)
    text = json.dumps(tree)
    if rng.random() < 0.1 and isinstance(tree, dict) and tree:
        name = rng.choice(list(tree))
        text = f"{{{json.dumps(name)}: {json.dumps(rng.choice(EVIL))}, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


def _tensors(rng, payload):
    """Tensors of other types, shapes and values, too few, too many, or under other names."""
    tensors = load_tensors(payload)
    for _ in range(rng.choice([1, 1, 2])):
        if not tensors:
            break
        name = rng.choice(sorted(tensors))
        value, kind = tensors[name].clone(), rng.randrange(9)
        flat = value.view(-1) if value.numel() else value
        if kind == 0:
            value = (value.real if value.is_complex() else value).to(rng.choice(CASTS))
        elif kind == 1 and value.numel() and value.is_floating_point():
            evil = rng.choice([math.nan, math.inf, -math.inf, 1e30, -3e38, 1e-40, 0.0, -1.0])
            flat[rng.randrange(flat.numel())] = evil
        elif kind == 1 and value.numel() and value.dtype == torch.int64:
            flat[rng.randrange(flat.numel())] = rng.choice([-1, 10**6, 2**40, 0, 3])
        elif kind == 2:
            value = rng.choice(
                [value[None], value[..., None], value.flatten(), value.mT.contiguous()]
                if value.dim() > 1
                else [value[None], value[..., None]]
            )
        elif kind == 3 and value.dim():
            value = value[: max(0, value.shape[0] - rng.randrange(1, 4))]
        elif kind == 4:
            value = (
                value.expand(3, *value.shape)
                if rng.random() < 0.5
                else torch.cat([flat.view(-1)] * 2)
            )
        elif kind == 5:
            value = value.new_zeros(
                rng.choice([(0,), (0, 10**6), (D, 0), (10**12, 0), (0, 2**62), ()])
            )
        elif kind == 6:
            value = (value.double() * rng.choice([-1, 0, 1000])).to(value.dtype)
        elif kind == 7:
            tensors[rng.choice(["../../x", "x", "", "/etc/passwd", "field"])] = value
        if kind == 8 or rng.random() < 0.1:
            del tensors[name]
        else:
            tensors[name] = value
    # Clones: the format refuses tensors that share memory.
    return dump_tensors({name: value.clone().contiguous() for name, value in tensors.items()})


def _header(rng, payload):
    """A header that says something else, of the length it claims or of another one."""
    length = int.from_bytes(payload[:8], "little")
    header, rest = payload[8 : 8 + length], payload[8 + length :]
    tree = json.loads(header)
    if tree and rng.random() < 0.4:
        entry = tree[rng.choice(list(tree))]
        key = rng.choice(["dtype", "shape", "data_offsets"])
        numbers = [[0, 4], [4, 0], [D], [0], [], [2**40], [2**63, 2], [-1], [0, 10**9], [1] * 40]
        entry[key] = rng.choice(TYPES if key == "dtype" else numbers)
        header = json.dumps(tree).encode()
    elif rng.random() < 0.6:
        header = _tree(rng, tree)
    else:
        header = _bytes(rng, header)
    length = len(header)
    if rng.random() < 0.2:
        length = rng.choice([0, 1, 7, length - 1, length + 1, 2**24, 2**32, 2**63, 2**64 - 1])
    return struct.pack("<Q", max(length, 0)) + header + rest


def mutated(rng, config, payload):
    """(what was done, configuration, payload); the checksum fits unless that is the mutation."""
    kind = rng.choice(
        ["config", "tree", "tree", "tree", "payload", "tensors", "header", "checksum"]
    )
    if kind == "config":
        return kind, _bytes(rng, config), payload
    if kind == "tree":
        return kind, _tree(rng, json.loads(config)), payload
    change = {"payload": _bytes, "tensors": _tensors, "header": _header, "checksum": _bytes}[kind]
    changed = change(rng, payload)
    if kind != "checksum":
        old, new = (hashlib.sha256(each).hexdigest().encode() for each in (payload, changed))
        config = config.replace(old, new)
    return kind, config, changed


# ---- what may come of it


class Watch:
    """What Python is asked to do while it is on: files written, code run, modules imported."""

    def __init__(self):
        self.on, self.seen = False, []

    def __call__(self, event, arguments):
        if not self.on:
            return
        if event == "open":
            path, mode, flags = arguments
            if (mode and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & 3):
                self.seen.append((event, path))
        elif event.split(".")[0] in ("exec", "compile", "import", "pickle", "socket", "subprocess"):
            self.seen.append((event, str(arguments)[:100]))
        elif event.startswith("os.") and event not in ("os.listdir", "os.scandir"):
            self.seen.append((event, arguments))


@pytest.fixture(scope="module")
def watch():
    # An audit hook stays for the life of the process; switched off it does nothing.
    hook = Watch()
    sys.addaudithook(hook)
    return hook


def works(steering):
    """The steering moves activations to finite places, and knows their probability."""
    parts = steering.parts if len(steering.parts) > 1 else [steering]
    for part in parts:
        generator = torch.Generator().manual_seed(1)
        rows = torch.randn(6, part.hidden_size or D, generator=generator)
        moved = part(rows)
        assert moved.shape == rows.shape and bool(moved.isfinite().all())
        if part.field.barrier is not None:
            probability = part.probability(rows)
            assert bool(((probability >= 0) & (probability <= 1)).all())
    return True


def outcome(folder, watch):
    """True for a steering that works, False for one that is refused as it should be."""
    watch.seen, watch.on = [], True
    began = time.process_time()
    try:
        steering = load(folder)
    except (ValueError, FileNotFoundError) as error:
        steering, message = None, str(error)
    finally:
        watch.on = False
    assert time.process_time() - began < SECONDS
    assert not watch.seen
    if steering is not None:
        return works(steering)
    assert str(folder) in message and "\n" not in message and message.isprintable(), message
    assert len(message) <= 400 and message.endswith("."), message
    return False


def tally(name, folder, watch, mutations):
    """How many mutated files of a steering load (True) and are refused (False)."""
    folder = STEERINGS[name]().save_pretrained(folder)
    config, payload = (folder / CONFIG).read_bytes(), (folder / TENSORS).read_bytes()
    assert works(load(folder))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rng = random.Random(name)
    count = {True: 0, False: 0}
    for number in range(mutations):
        kind, new_config, new_payload = mutated(rng, config, payload)
        (folder / CONFIG).write_bytes(new_config)
        (folder / TENSORS).write_bytes(new_payload)
        try:
            loaded = outcome(folder, watch)
        except Exception as error:
            raise AssertionError(f"mutation {number} ({kind}): {error!r}") from error
        count[loaded] += 1
        assert not (loaded and kind == "checksum" and new_payload != payload)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert sys.platform != "linux" or grown < 1024 * MEGABYTES
    return count


@pytest.mark.parametrize("name", STEERINGS)
def test_a_mutated_steering_works_or_is_refused_in_one_line(name, tmp_path, watch):
    count = tally(name, tmp_path, watch, MUTATIONS)
    assert count[False] > 0.5 * MUTATIONS, count


def test_mutations_are_neither_all_fatal_nor_all_harmless(tmp_path, watch):
    # One in forty is harmless: too few to be counted on among the mutations of one class.
    count = tally("quadratic", tmp_path, watch, 10 * MUTATIONS)
    assert count[True] > 0.01 * 10 * MUTATIONS and count[False] > 0.5 * 10 * MUTATIONS, count
