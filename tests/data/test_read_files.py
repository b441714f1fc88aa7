"""A contrast is the same whatever kind of file or data set its rows come from."""

import csv
import gzip
import json

import pytest
from tests.helpers.models import tokenizer

from odesteer import Contrast
from odesteer.data import Example
from odesteer.data.read_files import rows as file_rows

PAIRS = [
    {"prompt": "the cat, é", "positive": 'a "good" cat', "negative": "a\nbad dog"},
    {"prompt": "a dog", "positive": "sat", "negative": "ran"},
]
LABELLED = [
    {"text": "good", "label": 1, "topic": "t", "reward": 0.5},
    {"text": "bad", "label": 0, "topic": "t", "reward": -1.0},
]


def write_jsonl(path, rows):
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(text, encoding="utf-8")


def write_json(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_csv(path, rows, delimiter=",", encoding="utf-8"):
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_spreadsheet(path, rows):
    write_csv(path, rows, encoding="utf-8-sig")  # with a byte-order mark


def write_tsv(path, rows):
    write_csv(path, rows, "\t")


def write_parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)


def write_gzip(path, rows):
    text = "\n".join(map(json.dumps, rows))
    path.write_bytes(gzip.compress(text.encode()))


FILES = {
    "c.jsonl": write_jsonl,
    "c.ndjson": write_jsonl,
    "c.JSONL": write_jsonl,
    "c.json": write_json,
    "c.csv": write_csv,
    "sheet.csv": write_spreadsheet,
    "c.tsv": write_tsv,
    "c.parquet": write_parquet,
    "c.jsonl.gz": write_gzip,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("rows", [PAIRS, LABELLED], ids=["pairs", "labelled"])
def test_every_kind_of_file_is_its_rows(name, rows, tmp_path):
    FILES[name](tmp_path / name, rows)
    assert Contrast.from_file(tmp_path / name) == Contrast.from_rows(rows)


@pytest.mark.parametrize("name", FILES)
def test_columns_are_named_as_the_file_names_them(name, tmp_path):
    theirs = [{"question": "the cat", "chosen": "sat", "rejected": "ran", "id": 3}]
    columns = {"prompt": "question", "positive": "chosen", "negative": "rejected"}
    FILES[name](tmp_path / name, theirs)
    ours = Contrast.from_rows([{"prompt": "the cat", "positive": "sat", "negative": "ran"}])
    assert Contrast.from_file(tmp_path / name, columns=columns) == ours


def test_a_label_or_reward_of_another_name_is_a_number_in_a_csv_file_too(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("comment,toxic,score\ngood,0,0.25\nbad,1,1\n")
    columns = {"text": "comment", "label": "toxic", "reward": "score"}
    contrast = Contrast.from_file(path, columns=columns)
    assert [e.response for e in contrast.positive] == ["bad"]
    assert contrast.rewards == ([1.0], [0.25])


def test_an_empty_cell_is_no_value(tmp_path):
    path = tmp_path / "c.csv"
    path.write_text("prompt,positive,negative\n,sat,ran\n")
    assert Contrast.from_file(path).positive[0].prompt is None
    path.write_text("prompt,positive,negative\nthe cat,sat,\n")
    with pytest.raises(ValueError, match=r"Line 2 of .*has the keys prompt, positive; a contrast"):
        Contrast.from_file(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", b'{"positive": "a"', r"Line 1 of '.*c\.jsonl' is not JSON"),
        ("c.jsonl", b"[" * 10**5, "is not JSON"),
        ("c.json", b'{"positive": "a"}', "is not a list of JSON objects"),
        ("c.json", b"[3]", r"Row 1 of .*is not a JSON object: 3"),
        ("c.jsonl", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("c.csv", b"\xff\xfe\x00", "is not UTF-8 text"),
        ("c.csv", b"positive,negative\na,b,c\n", "Line 2 of .*more cells than the header"),
        ("c.csv", b'positive,negative\na,"b\n', r"Line \d of .*unexpected end of data"),
        ("c.csv", b"text,label\na,yes\n", "Line 2 of .*label is a number; got 'yes'"),
        ("c.csv", b"", r"c\.csv' has no rows; a contrast needs examples of both"),
        ("c.jsonl", b"\n", r"c\.jsonl' has no rows"),
        ("c.json", b"[]", r"c\.json' has no rows"),
        ("c.csv", b"text,label\na,1\nb,1\n", "has 2 positive texts and no negative one"),
        ("c.csv", b"text,label\na,0\n", "has 1 negative texts and no positive one"),
        ("c.csv", b"text;label\na;1\n", "has the keys text;label"),
        ("c.parquet", b"PAR1 or not", "cannot be read as Parquet"),
        ("c.jsonl.gz", b"not gzip", "is not a whole gzip file"),
        (
            "c.jsonl.gz",
            gzip.compress(b'{"positive": "a"}' * 99, mtime=0)[:20],
            "is not a whole gzip file",
        ),
        ("c.txt", b"", r"ends in \.jsonl, .*\.parquet .*; got '.*c\.txt'"),
        ("c", b"", r"ends in \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(name, content, message, tmp_path):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        Contrast.from_file(tmp_path / name)
    assert "\n" not in str(error.value)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"pip install 'odesteer\[data\]', or save the rows as"):
        Contrast.from_file(tmp_path / "c.parquet")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        Contrast.from_file(tmp_path / "nowhere.csv")


def test_rows_are_read_one_by_one(tmp_path):
    write_jsonl(tmp_path / "c.jsonl", PAIRS)
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write("\nbroken")
    places = file_rows(tmp_path / "c.jsonl")
    assert [next(places)[1], next(places)[1]] == PAIRS
    with pytest.raises(ValueError, match="Line 3"):
        next(places)


# ---- data sets of preferences


USER = {"role": "user", "content": "the cat"}
SYSTEM = {"role": "system", "content": "good"}
SAT, RAN = ({"role": "assistant", "content": word} for word in ("sat", "ran"))
CHOSEN = {"positive": "chosen", "negative": "rejected"}


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "sat", "rejected": "ran", "prompt": "the cat"},
        {"chosen": [USER, SAT], "rejected": [USER, RAN], "prompt": "the cat"},
        {"chosen": [USER, SAT], "rejected": [USER, RAN]},
        {"chosen": [SAT], "rejected": [RAN], "prompt": "the cat"},
        {"chosen": [SAT], "rejected": [RAN], "prompt": [USER]},
    ],
    ids=["texts", "conversations", "implicit prompt", "turn and text", "turn and messages"],
)
def test_every_form_of_a_preference_data_set_is_the_same_contrast(row):
    tok = tokenizer(chat=True)
    contrast = Contrast.from_rows([row], columns=CHOSEN)
    (sat,), (ran,) = contrast.tokens(tok)
    assert tok.decode(sat) == "<s> <user> the cat <end> <assistant> sat"
    assert tok.decode(ran) == "<s> <user> the cat <end> <assistant> ran"
    assert contrast.is_paired


def test_messages_keep_their_system_turn_in_a_parquet_file(tmp_path):
    row = {"chosen": [SYSTEM, USER, SAT], "rejected": [SYSTEM, USER, RAN]}
    write_parquet(tmp_path / "c.parquet", [row])
    contrast = Contrast.from_file(tmp_path / "c.parquet", columns=CHOSEN)
    assert contrast.positive == (Example((SYSTEM, USER), "sat", contrast.groups[0][0]),)


def test_a_hugging_face_data_set_is_its_rows():
    datasets = pytest.importorskip("datasets")
    some = datasets.Dataset.from_list([{"question": "q", "chosen": [USER, SAT], "rejected": "ran"}])
    columns = {**CHOSEN, "prompt": "question"}
    assert Contrast.from_rows(some, columns=columns) == Contrast.from_rows(
        some.to_list(), columns=columns
    )
    with pytest.raises(ValueError, match=r"'train'.*dataset\[\"train\"\]"):
        Contrast.from_rows(datasets.DatasetDict({"train": some}))


def test_columns_name_keys_that_there_are():
    with pytest.raises(ValueError, match=r"Unknown key of a contrast 'positve'. Did you mean 'pos"):
        Contrast.from_rows(PAIRS, columns={"positve": "chosen"})
    with pytest.raises(ValueError, match=r"Row 1: has the keys prompt, pos.*, negative; a contr"):
        Contrast.from_rows([{"prompt": "p", "pos": "a", "negative": "b"}], columns=CHOSEN)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"train": PAIRS}, r"Row 1 is not a mapping.*'train'.*dataset\[\"train\"\]"),
        ([{"prompt": 5, "positive": "a", "negative": "b"}], "Row 1: A prompt is a text or chat"),
        ([{"positive": [USER, {"role": "assistant"}], "negative": "b"}], "assistant's turn is a t"),
        ([{"positive": [SAT], "negative": [RAN]}], "Row 1: Chat messages of a contrast end with"),
    ],
)
def test_rows_of_another_form_are_named(rows, message):
    with pytest.raises(ValueError, match=message):
        Contrast.from_rows(rows)
