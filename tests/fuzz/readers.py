"""Readers of strangers' files as functions of bytes, with inputs to begin from.

Each either reads its bytes or refuses them in one line, within `SECONDS`. Used by the seeded
mutations of `test_readers.py` and by the coverage-guided fuzzer of `__main__.py`.
"""

import gzip
import hashlib
import io
import json
import random
import re
import struct
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from odesteer import Contrast, Steering, Target, load
from odesteer.common.limits import parse_json
from odesteer.evaluation.report.run import read_run
from odesteer.extraction.cache_index import header
from odesteer.extraction.shards import Shards, read_about
from odesteer.integrations.control_vectors import Vectors, read_vectors, write_vectors
from odesteer.ode import ConstantField, GradientField, LinearBarrier

SECONDS = 2.0
CONFIG, TENSORS = "steering_config.json", "steering.safetensors"
# Shared memory where there is some: a fuzzer writes thousands of files a second.
FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))

Reader = Callable[[bytes], object]


def of_file(read: Callable[[Path], object], name: str) -> Reader:
    """The reader of a file as one of bytes."""

    def run(data: bytes) -> object:
        path = FOLDER / name
        path.write_bytes(data)
        return read(path)

    return run


def steering(data: bytes) -> object:
    """Load a steering from the length of its configuration, the configuration, and its tensors.

    The checksum is made to fit, so that what lies behind it is reached.
    """
    if len(data) < 4:
        return None
    (length,) = struct.unpack("<I", data[:4])
    config, payload = data[4 : 4 + length], data[4 + length :]
    folder = FOLDER / "steering"
    folder.mkdir(exist_ok=True)
    checksum = hashlib.sha256(payload).hexdigest().encode()
    (folder / CONFIG).write_bytes(config.replace(b"CHECKSUM", checksum))
    (folder / TENSORS).write_bytes(payload)
    return load(folder)


def about(data: bytes) -> object:
    """Read what a directory of shards says of itself, and plan its shards."""

    folder = FOLDER / "shards"
    folder.mkdir(exist_ok=True)
    (folder / "extraction.json").write_bytes(data)
    return Shards(folder, read_about(folder)).parts


def _vectors(suffix: str) -> list[bytes]:
    path = FOLDER / f"seed{suffix}"
    vectors = Vectors({1: torch.ones(4), 2: torch.arange(4.0)}, "llama", {"odesteer.note": "é"})
    first = write_vectors(vectors, path).read_bytes()
    return [first, write_vectors(Vectors({3: torch.ones(1)}), path).read_bytes()]


def _steerings() -> list[bytes]:
    seeds = []
    for one in (
        Steering(ConstantField(torch.ones(4)), 0.4, layer=1),
        Steering(
            GradientField(LinearBarrier(torch.ones(4), torch.tensor(0.5))),
            Target(0.9, budget=2.0),
            layer=2,
            receipts={"rows": [3, 4]},
        ),
    ):
        folder = one.save_pretrained(FOLDER / "seed")
        config, payload = (folder / CONFIG).read_bytes(), (folder / TENSORS).read_bytes()
        config = config.replace(hashlib.sha256(payload).hexdigest().encode(), b"CHECKSUM")
        seeds.append(struct.pack("<I", len(config)) + config + payload)
    return seeds


def _run() -> bytes:
    lines = [
        {
            "kind": "run",
            "schema": 1,
            "config": {},
            "model": {},
            "benchmark": {"notes": ["n"]},
            "folds": [{}],
            "judges": {"perplexity": {"unit": "nats"}},
            "conditions": [{"id": "none", "method": "none", "dose": None, "steps": 3}],
        },
        {"kind": "case", "condition": "none", "case": "1", "scores": {"perplexity": 1.5}},
        {"kind": "note", "text": "é"},
        {"kind": "fit", "condition": "none"},
        {"kind": "end", "cases": 1},
    ]
    return b"\n".join(json.dumps(line).encode() for line in lines) + b"\n"


def _parquet() -> list[bytes]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return []
    file = io.BytesIO()
    parquet.write_table(pa.table({"positive": ["a", "b"], "negative": ["c", "é"]}), file)
    return [file.getvalue()]


PAIRS = [
    {"prompt": "p, é", "positive": 'a "b"', "negative": "c\nd", "positive_reward": 0.5},
    {
        "positive": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        "negative": "z",
    },
    {"text": "t", "label": 1, "group": "g"},
]
JSONL = "\n".join(json.dumps(pair) for pair in PAIRS).encode()
LINES = b'{"positive": "a", "negative": "b"}\n{"text": "c", "label": 0}\n'
CSV = b'prompt,positive,negative\r\n"a,""b""",c,d\ne,"f\ng",h\n'
PLAN = {"schema": 1, "layers": [1, 2], "rows_per_shard": 8}

# A key of JSON, or a value (the group).
VALUE = re.compile(
    rb'"[^"]*"\s*:|("[^"]*"|-?[0-9][0-9.e+-]*|\[[^][]*\]|\{[^{}]*\}|true|false|null)'
)
OTHERS = [
    b"null",
    b"5",
    b"-1",
    b"0.5",
    b"true",
    b"{}",
    b"[]",
    b"[5]",
    b'"x"',
    b'{"a": 1}',
    b"9" * 18,
]

# By name: the reader, and the inputs to begin from.
READERS: dict[str, tuple[Reader, list[bytes]]] = {
    "json": (parse_json, [b'{"a": [1, -2.5e3, null, true, "\\u00e9"]}', b"[[], {}]"]),
    "gguf": (of_file(read_vectors, "v.gguf"), _vectors(".gguf")),
    "svec": (of_file(read_vectors, "v.svec"), _vectors(".svec")),
    "safetensors": (of_file(read_vectors, "v.safetensors"), _vectors(".safetensors")),
    "jsonl": (of_file(Contrast.from_file, "c.jsonl"), [LINES, JSONL]),
    "list": (of_file(Contrast.from_file, "c.json"), [json.dumps(PAIRS[:1]).encode()]),
    "csv": (of_file(Contrast.from_file, "c.csv"), [CSV, b"text,label\na,1\nb,0\n"]),
    "gzip": (of_file(Contrast.from_file, "c.jsonl.gz"), [gzip.compress(LINES * 9, mtime=0)]),
    "parquet": (of_file(Contrast.from_file, "c.parquet"), _parquet()),
    "steering": (steering, _steerings()),
    "results": (of_file(read_run, "results.jsonl"), [_run()]),
    "cache": (of_file(header, "c.safetensors"), [save({"1": torch.ones(2, 2)})]),
    "shards": (about, [json.dumps({**PLAN, "contrast": {"positive": 9, "negative": 7}}).encode()]),
}


def check(name: str, data: bytes) -> bool:
    """Read bytes; whether they were accepted. A refusal is one short line.

    Raises:
        AssertionError: if it takes too long, or the message is long or of several lines.
        Exception: whatever the reader raises and should not.
    """
    read, _ = READERS[name]
    began = time.process_time()
    try:
        read(data)
        return True
    except (ValueError, FileNotFoundError, SafetensorError) as error:
        message = str(error)
        assert len(message) < 800 and message.isprintable(), message
        assert not isinstance(error, UnicodeError | SafetensorError), message
        return False
    finally:
        assert time.process_time() - began < SECONDS, f"{time.process_time() - began:.1f} s"


def mutated(rng: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Cut, splice, repeat or overwrite pieces; numbers at their limits, NUL, nesting, Unicode."""
    evil = [
        *(struct.pack("<Q", n) for n in (0, 1, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)),
        *(b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", "é\u2028\U0001f600".encode(), b"\r"),
        *(b"[" * 2000, b"{" * 9, b'"', b"," * 99, b"\n" * 99, b"]" * 9, b'"a":', b"\\ud800"),
        *(b"NaN", b"1e999", b"-0", b"9" * 50, b"true", b"null", b"{}", b"[]", b"[[]]", b'"x"'),
    ]
    piece = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        at, size, kind = rng.randrange(len(piece) + 1), rng.randrange(1, 32), rng.randrange(9)
        if kind == 0:
            del piece[at:]
        elif kind == 1:
            del piece[at : at + size]
        elif kind == 2:
            piece[at:at] = piece[at : at + size] * rng.choice([1, 1, 100])
        elif kind == 3:
            other = rng.choice(others)
            piece[at:] = other[rng.randrange(len(other) + 1) :]
        elif kind == 4:
            piece[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 5:
            piece[at:at] = rng.choice(evil)
        elif kind >= 7 and (values := [m.span(1) for m in VALUE.finditer(piece) if m[1]]):
            start, end = rng.choice(values)
            piece[start:end] = rng.choice(OTHERS)
        else:
            word = rng.choice(evil)
            piece[at : at + len(word)] = word
    return bytes(piece)
