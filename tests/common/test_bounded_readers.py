"""Files from strangers cost no more than their limits, and what is ambiguous in them is refused."""

import gzip
import json
import resource
import struct
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from odesteer import Contrast
from odesteer.common import limits as strict
from odesteer.integrations.control_vectors import Vectors, read_vectors, write_vectors

MEGABYTES, SECONDS = 200, 2.0


def peak():
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def refused(read, path, words):
    """`read` refuses the file in one line with these words, soon and in little memory."""
    began, before = time.process_time(), peak()
    with pytest.raises(ValueError, match=words) as raised:
        read(path)
    assert time.process_time() - began < SECONDS
    assert sys.platform != "linux" or peak() - before < MEGABYTES * 2**20
    message = str(raised.value)
    assert str(path) in message and "\n" not in message and len(message) < 500
    return message


# ---- GGUF


def text(value):
    return struct.pack("<Q", len(value)) + value


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def tensor(name=b"direction.1", shape=(4,), kind=0, offset=0):
    sides = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sides + struct.pack("<IQ", kind, offset)


ARCHITECTURE = key(b"general.architecture", 8, text(b"controlvector"))


def gguf(keys=(), tensors=(), data=bytes(32), counts=None):
    """A GGUF file: the architecture, these keys and tensors, and their data; or other counts."""
    counts = counts or (len(tensors), 1 + len(keys))
    head = b"GGUF" + struct.pack("<IQQ", 3, *counts) + ARCHITECTURE + b"".join([*keys, *tensors])
    return head + bytes(-len(head) % 32) + data


@pytest.mark.parametrize("megabytes", [1, 30])
def test_finding_4_a_large_array_in_a_gguf_header_is_passed_over(megabytes, tmp_path):
    n = megabytes * 2**20
    array = key(b"x", 9, struct.pack("<IQ", 0, n) + bytes(n))
    path = tmp_path / "v.gguf"
    path.write_bytes(gguf([array], [tensor()], np.arange(4, dtype="<f4").tobytes()))
    began = time.process_time()
    assert read_vectors(path).directions[1].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert time.process_time() - began < 1.0


HUGE = (2**16 + 1, 2**32, 2**63, 2**64 - 1)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        *((gguf(counts=(n, 1)), "header claims .* entries") for n in HUGE),
        *((gguf(counts=(0, n)), "header claims .* entries") for n in HUGE),
        *(
            (gguf([key(b"x", 9, struct.pack("<IQ", 8, n))]), "header claims .* entries")
            for n in HUGE
        ),
        *(
            (gguf([key(b"x", 9, struct.pack("<IQ", 12, n))]), "header is cut off")
            for n in (2**32, 2**61, 2**63, 2**64 - 1)
        ),
        *((gguf([key(b"x", 8, struct.pack("<Q", n))]), "a text of .* bytes") for n in HUGE[1:]),
        (gguf([key(b"x", 9, struct.pack("<IQ", 9, 1) * 1000)]), "array of arrays"),
        (gguf([key(b"x", 9, struct.pack("<IQ", 99, 1))]), "of an unknown type"),
        (gguf([key(b"x", 99, b"")]), "unknown type 99"),
        (gguf([key(b"x", 8, text(b"\xff"))]), "not UTF-8"),
        (gguf([key(b"x", 7, b"\1")] * 2), "gives 'x' twice"),
        *(
            (gguf([key(b"general.alignment", 4, struct.pack("<I", n))], [tensor()]), "are aligned")
            for n in (0, 3, 2**31)
        ),
        *((gguf(tensors=[tensor(shape=(n,))]), "has the shape") for n in (0, 2**20 + 1, 2**63)),
        (gguf(tensors=[tensor(shape=(2**20,) * 4)]), "its tensors have"),
        (gguf(tensors=[tensor(shape=(1,) * 5)]), "5 dimensions"),
        (gguf(tensors=[tensor(shape=(9,))]), "its tensors have|ends beyond the file"),
        *((gguf(tensors=[tensor(offset=n)]), "ends beyond the file") for n in (32, 2**63)),
        (gguf(tensors=[tensor(kind=12)]), "of type 12; a control vector has float32"),
        *(
            (gguf(tensors=[tensor(b"direction." + name)]), "named by its layer, 0 to 999")
            for name in (b"01", b"+1", b"1_0", b"-1", b"1000", "١".encode(), b"9" * 5000)
        ),
        (gguf(tensors=[tensor(), tensor(offset=16)]), "two directions of layer 1"),
        (gguf().replace(b"controlvector", b"llama\0\0\0\0\0\0\0\0"), "holds a llama"),
        (gguf()[:20], "header is cut off"),
        (b"GGUF", "header is cut off"),
        (b"", "does not begin with GGUF"),
    ],
)
def test_finding_4_numbers_in_a_gguf_header_cost_nothing(payload, words, tmp_path):
    (tmp_path / "v.gguf").write_bytes(payload)
    refused(read_vectors, tmp_path / "v.gguf", words)


def test_finding_4_tensors_that_share_their_bytes_do_not_multiply_the_file(tmp_path):
    tensors = [tensor(b"direction.%d" % i, (2**18,)) for i in range(1, 500)]
    (tmp_path / "v.gguf").write_bytes(gguf(tensors=tensors, data=bytes(2**20)))
    refused(read_vectors, tmp_path / "v.gguf", r"its tensors have 523,239,424 bytes of")


def test_the_other_byte_order_is_read(tmp_path):
    package = pytest.importorskip("gguf")
    path = tmp_path / "v.gguf"
    writer = package.GGUFWriter(path, "controlvector", endianess=package.GGUFEndian.BIG)
    writer.add_tensor("direction.2", np.arange(4, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_vectors(path).directions[2].tolist() == [0.0, 1.0, 2.0, 3.0]


# ---- other control vectors


@pytest.mark.parametrize("suffix", [".svec", ".safetensors", ".gguf"])
@pytest.mark.parametrize(("layers", "width"), [(40, 5120)])
def test_finding_9_vectors_of_a_large_model_come_back(suffix, layers, width, tmp_path):
    vectors = Vectors({layer: torch.randn(width) for layer in range(1, 1 + layers)})
    back = read_vectors(write_vectors(vectors, tmp_path / f"v{suffix}"))
    assert all(torch.equal(back.directions[i], d) for i, d in vectors.directions.items())


@pytest.mark.slow
def test_finding_9_the_limits_leave_room_for_the_largest_model(tmp_path):
    vectors = Vectors({layer: torch.randn(16384) for layer in range(1, 127)})
    for suffix in (".svec", ".safetensors", ".gguf"):
        back = read_vectors(write_vectors(vectors, tmp_path / f"v{suffix}"))
        assert torch.equal(back.directions[126], vectors.directions[126])


@pytest.mark.parametrize("suffix", [".gguf", ".svec", ".safetensors"])
def test_a_sparse_file_is_refused_by_its_size(suffix, tmp_path):
    path = tmp_path / f"v{suffix}"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    refused(read_vectors, path, "has 3,221,225,472 bytes, more than the 67,108,864")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_finding_12_tensors_that_are_no_floats_are_refused(dtype, tmp_path):
    save_file({"direction.1": torch.ones(4, dtype=dtype)}, tmp_path / "v.safetensors")
    refused(read_vectors, tmp_path / "v.safetensors", "may be F64, F32, F16, BF16")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("1", "direction.1"), "two directions of layer 1"),
        *(((name,), "named by its layer") for name in ("01", "direction.01", "1_0", "layer")),
    ],
)
def test_finding_12_layers_with_ambiguous_names_are_refused(names, words, tmp_path):
    save_file({name: torch.ones(4) for name in names}, tmp_path / "v.safetensors")
    refused(read_vectors, tmp_path / "v.safetensors", words)
    (tmp_path / "v.svec").write_text(json.dumps({"directions": {name: [1.0] for name in names}}))
    refused(read_vectors, tmp_path / "v.svec", words)


@pytest.mark.parametrize(
    ("directions", "words"),
    [
        ('{"1": [true, 0.5]}', "layer 1 is no list of numbers"),
        ('{"1": [1.0], "1": [2.0]}', "gives '1' twice"),
        ('{"1": []}', r"layer 1 is no vector of finite numbers \(its shape is \[0\]\)"),
        ('{"1": [1e300]}', "no vector of finite numbers"),
        ('{"1": ' + "[" * 50 + "]" * 50 + "}", "layer 1 is no"),
        ('{"1": [' + "[]," * 2 * 10**6 + "[]]}", "layer 1 is no list|more than 2,097,152 values"),
        ("[" * 10**6 + "]" * 10**6, "nested deeper than 100"),
    ],
)
def test_finding_12_what_is_no_list_of_numbers_is_refused(directions, words, tmp_path):
    (tmp_path / "v.svec").write_text(f'{{"directions": {directions}}}')
    refused(read_vectors, tmp_path / "v.svec", words)


# ---- data files


def gzipped(path, pieces):
    with gzip.open(path, "wb", compresslevel=1) as file:
        for piece in pieces:
            file.write(piece)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("c.jsonl.gz", "Line 1 of .* has more than the 8,388,608 characters"),
        ("c.csv.gz", "Line 1 of .* has more than the 8,388,608 characters"),
        ("c.json.gz", "has 67,108,865 bytes, more than the 67,108,864"),
    ],
)
def test_finding_10_a_line_without_an_end_is_not_read(name, words, tmp_path):
    gzipped(tmp_path / name, [b"x" * 2**20] * 80)
    refused(Contrast.from_file, tmp_path / name, words)


@pytest.mark.parametrize("name", ["c.jsonl.gz", "c.csv.gz", "c.json.gz"])
def test_finding_10_a_gzip_bomb_of_short_lines_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(strict, "MIN_ALLOWANCE", 2**20)
    monkeypatch.setattr(strict, "MAX_RATIO", 50)
    cells = b"a" * 1000 + b",b"
    lines = [b"positive,negative\n", *([cells + b"\n"] * 2000)]
    if "csv" not in name:
        lines = [b" " * 1000 + b"\n"] * 2000
    (tmp_path / name).write_bytes(gzip.compress(b"".join(lines)))
    refused(Contrast.from_file, tmp_path / name, "becomes more than 1,048,576 bytes when it is")


def test_rows_that_are_nearly_alike_are_no_bomb(tmp_path):
    prompt = "You are a helpful assistant. " * 200
    rows = [{"prompt": prompt, "positive": f"yes {i}", "negative": f"no {i}"} for i in range(300)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(lines))
    assert len(Contrast.from_file(tmp_path / "c.jsonl.gz").positive) == 300


@pytest.mark.parametrize("count", [8, 300])
def test_a_gzip_file_that_is_damaged_in_the_middle_is_refused(count, tmp_path):
    payload = bytearray(gzip.compress(b'{"positive": "a", "negative": "b"}\n' * 99))
    payload[12:20] = b"\xff" * 8  # zlib's own error, which is none of gzip's
    (tmp_path / "c.jsonl.gz").write_bytes(payload)
    refused(Contrast.from_file, tmp_path / "c.jsonl.gz", "is not a whole gzip file")


def test_too_many_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(strict, "MAX_ROWS", 100)
    for name in ("c.jsonl", "c.csv"):
        (tmp_path / name).write_text("\n" * 101)
        refused(Contrast.from_file, tmp_path / name, "more than the 100 lines")


def test_a_row_that_goes_on_over_many_lines_has_an_end(tmp_path):
    (tmp_path / "c.csv").write_text("positive,negative\n" + f'"{"a" * 100}\n",' * 10**5)
    refused(Contrast.from_file, tmp_path / "c.csv", "row of more than the 8,388,608 characters")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("c.jsonl", '{"positive": "a", "positive": "b", "negative": "c"}', "'positive' twice"),
        ("c.json", '[{"positive": "a", "positive": "b"}]', "'positive' twice"),
        ("c.csv", "positive,negative,positive\na,b,c\n", "two columns of the name 'positive'"),
        ("c.tsv", "text\ttext\na\tb\n", "two columns of the name 'text'"),
        ("c.csv", ",".join(f"c{i}" for i in range(1001)) + "\n", "has 1,001 columns"),
        ("c.jsonl", r'{"positive": "\ud800", "negative": "c"}', "surrogate"),
        ("c.jsonl", '{"positive": "a", "negative": NaN}', "not finite"),
    ],
)
def test_finding_12_keys_and_columns_that_are_there_twice_are_refused(
    name, content, words, tmp_path
):
    (tmp_path / name).write_text(content)
    refused(Contrast.from_file, tmp_path / name, words)


def test_columns_and_cells_that_a_spreadsheet_leaves_empty_are_none(tmp_path):
    (tmp_path / "c.csv").write_text("positive,negative,,\na,b,,\nc,d\n")
    contrast = Contrast.from_file(tmp_path / "c.csv")
    assert [e.response for e in (*contrast.positive, *contrast.negative)] == ["a", "c", "b", "d"]


def test_finding_10_a_parquet_file_is_measured_before_it_is_decompressed(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "c.parquet"
    # Once in a dictionary, and a reference a row: the file has a few kilobytes.
    texts = pa.DictionaryArray.from_arrays([0] * 2000, ["a" * 10**4])
    table = pa.table({"positive": texts, "negative": texts})
    parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 10**4
    refused(Contrast.from_file, path, "becomes more than 16,777,216 bytes when it is decompressed")
    monkeypatch.setattr(strict, "MIN_ALLOWANCE", 0)
    parquet.write_table(table, path, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", lambda *_: pytest.fail("was read"))
    refused(Contrast.from_file, path, "becomes more than .* bytes when it is decompressed")
    monkeypatch.setattr("odesteer.data.read_files.MAX_ROWS", 1999)
    parquet.write_table(pa.table({"text": ["a"] * 2000}), path)
    refused(Contrast.from_file, path, "has 2,000 rows, more than the 1,999")


def test_finding_12_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pa.table([["a"], ["b"], ["c"]], names=["positive", "negative", "positive"])
    parquet.write_table(table, tmp_path / "c.parquet")
    refused(Contrast.from_file, tmp_path / "c.parquet", "two columns of the name 'positive'")
