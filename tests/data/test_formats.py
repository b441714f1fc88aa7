"""A file of any known format is the contrast that it is meant to be."""

import json
from dataclasses import dataclass

import pytest

from odesteer import Contrast
from odesteer.data.confounds import confounds

USER = {"role": "user", "content": "How are you?"}
WELL, ILL = ({"role": "assistant", "content": text} for text in ("Well.", "Ill."))
ANSWERS = {"answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
EMPTY = {"output_concept": "EEEEE", "concept_id": -1, "category": "negative"}


def axbench(number, output, category="positive", genre="text"):
    return {
        "input": f"Question {output}?",
        "output": output,
        "output_concept": f"concept {number}",
        "concept_genre": genre,
        "category": category,
        "dataset_category": "instruction",
        "concept_id": number,
    }


def texts(contrast):
    return tuple([e.response for e in side] for side in (contrast.positive, contrast.negative))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("pairs", {"positive": "Well.", "negative": "Ill.", "prompt": "How are you?"}),
        ("preference", {"prompt": "How are you?", "chosen": "Well.", "rejected": "Ill."}),
        ("preference", {"prompt": [USER], "chosen": [WELL], "rejected": [ILL]}),
        ("preference", {"chosen": [USER, WELL], "rejected": [USER, ILL]}),
        ("bipo", {"question": "How are you?", "matching": "Well.", "not_matching": "Ill."}),
        (
            "model-written-evals",
            {
                "question": "How are you?",
                "answer_matching_behavior": " Well.",
                "answer_not_matching_behavior": " Ill.",
            },
        ),
    ],
)
def test_a_format_is_recognised_and_may_be_named(name, row, tmp_path):
    contrast = Contrast.from_rows([row])
    assert texts(contrast) == (["Well."], ["Ill."]) and contrast.is_paired
    prompt = contrast.positive[0].prompt
    assert prompt == "How are you?" or prompt == (USER,) or prompt == [USER]
    assert Contrast.from_rows([row], format=name) == contrast == Contrast.of([row])
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row))
    assert texts(Contrast.from_file(file, format=name)) == texts(contrast)


def test_labelled_formats_give_one_text_a_row():
    rows = [{"prompt": "a", "completion": text, "label": text == "b"} for text in "bc"]
    assert texts(Contrast.from_rows(rows)) == (["b"], ["c"])
    rows = [{"question": "?", "statement": "I am kind.", **ANSWERS}]
    rows += [{**rows[0], "statement": "I am not.", "answer_matching_behavior": " No"}]
    assert texts(Contrast.from_rows(rows, format="model-written-statements")) == (
        ["I am kind."],
        ["I am not."],
    )
    assert texts(Contrast.from_rows(rows)) == (["Yes", "No"], ["No", "No"])
    rows[0]["answer_matching_behavior"] = " (A)"
    with pytest.raises(ValueError, match=r"Row 1: .*matched by Yes or No; got '\(A\)'"):
        Contrast.from_rows(rows, format="model-written-statements")


def test_pairs_of_texts_are_rows_in_files_and_lists(tmp_path):
    pairs = [("good", "bad"), ("fine", "poor")]
    contrast = Contrast.of(pairs)
    assert texts(contrast) == (["good", "fine"], ["bad", "poor"]) and contrast.is_paired
    (tmp_path / "p.json").write_text(json.dumps(pairs))
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    for name in ("p.json", "p.jsonl"):
        assert texts(Contrast.from_file(tmp_path / name)) == texts(contrast)


def test_dataclasses_of_other_libraries_are_rows():
    @dataclass
    class DatasetEntry:  # repeng
        positive: str
        negative: str

    @dataclass
    class SteeringVectorTrainingSample:  # steering-vectors
        positive_str: str
        negative_str: str
        read_positive_token_index: int | None = None

    for kind in (DatasetEntry, SteeringVectorTrainingSample):
        assert texts(Contrast.of([kind("good", "bad")])) == (["good"], ["bad"])


ROWS = [
    axbench(0, "a"),
    axbench(1, "b", genre="code"),
    axbench(0, "hard", "hard negative"),
    {**axbench(0, "none"), **EMPTY},
    {**axbench(0, "none in code", genre="code"), **EMPTY},
    axbench(1, "no", "negative"),
]


def test_axbench_is_one_concept_with_the_shared_negatives_of_its_genre():
    assert texts(Contrast.from_rows(ROWS, format="axbench:0")) == (["a"], ["hard", "none"])
    expected = (["b"], ["none in code", "no"])
    assert texts(Contrast.from_rows(ROWS, format="axbench:concept 1")) == expected
    assert texts(Contrast.from_rows(ROWS[:1] + ROWS[3:4])) == (["a"], ["none"])
    for name in ("axbench", "axbench:7", None):
        with pytest.raises(
            ValueError, match=r"one concept at a time.* axbench:0. There are: 0 con"
        ):
            Contrast.from_rows(ROWS, format=name)


@pytest.mark.parametrize(
    ("rows", "format", "words"),
    [
        ([{"a": 1}], "bipo", r"Row 1: has the keys a; the format 'bipo' has matching, not_m"),
        ([{"a": 1}], None, "formats pairs, labelled, preference, .*steering-vectors"),
        ([{"a": 1}], "bippo", "Unknown format 'bippo'. Did you mean 'bipo'"),
        ([{"a": 1}], "bipo:3", "Only the format axbench"),
        ([ROWS[0], {"input": "a"}], None, "Row 2: has the keys input; the format 'axbench' has"),
        ([ROWS[0], 3], None, "Row 2: has the keys 3; the format 'axbench' has"),
        ([{"chosen": "a", "rejected": "b"}, {"chosen": "a"}], None, "Row 2: .*'preference' has"),
        ([{"chosen": 3, "rejected": "b"}], None, "Row 1: A row of a contrast is a text"),
        ([{**ROWS[3]}], None, "There are: none"),
    ],
)
def test_what_is_not_of_the_format_is_said_in_one_line(rows, format, words):
    with pytest.raises(ValueError, match=words) as caught:
        Contrast.from_rows(rows, format=format)
    assert "\n" not in str(caught.value)


def test_a_format_and_columns_are_two_answers_to_one_question():
    with pytest.raises(ValueError, match="give it or columns"):
        Contrast.from_rows([{"a": "b"}], columns={"positive": "a"}, format="pairs")


def test_a_trait_file_is_pointed_to_what_writes_its_answers(tmp_path):
    file = tmp_path / "evil.json"
    file.write_text(json.dumps({"instruction": [], "questions": [], "eval_prompt": ""}))
    with pytest.raises(ValueError, match=r"odesteer pairs --from .*evil\.json --with MODEL"):
        Contrast.from_file(file)


def test_unbalanced_and_repeated_texts_are_noted():
    few = Contrast.from_pairs([f"a word{i}" for i in range(40)], [f"b word{i}" for i in range(10)])
    assert any("40 positive and 10 negative texts" in note for note in confounds(few))
    again = Contrast.from_pairs(["one", "two"] * 10, [f"b word{i}" for i in range(20)])
    assert "18 of 20 positive texts repeat an earlier one" in " ".join(confounds(again))
    # The same answer to other questions is no repetition.
    evals = [{"question": f"{i}?", **ANSWERS} for i in range(20)]
    assert not any("repeat" in note for note in confounds(Contrast.from_rows(evals)))


# ---- files as their authors publish them


def test_published_files_are_read_as_they_are(data_dir):
    bipo = Contrast.from_file(data_dir / "bipo" / "power-seeking_train.csv.gz")
    assert len(bipo.positive) == len(bipo.negative) > 600 and bipo.is_paired
    evals = Contrast.from_file(data_dir / "persona" / "persona_agreeableness.jsonl")
    assert {e.response for e in evals.positive} == {"Yes", "No"} and evals.is_paired
    statements = Contrast.from_file(
        data_dir / "persona" / "narcissism.jsonl.gz", format="model-written-statements"
    )
    assert len(statements.positive) > 400 < len(statements.negative)
    feedback = Contrast.from_file(data_dir / "ultrafeedback" / "test.jsonl")
    assert len(feedback.positive) == 200


def test_published_axbench_is_read_by_concept(data_dir):
    pytest.importorskip("pyarrow")
    folder = data_dir / "axbench" / "prod_2b_l10_v1"
    train = Contrast.from_file(folder / "train_data.parquet", format="axbench:0")
    assert (len(train.positive), len(train.negative)) == (72, 72)
    test = Contrast.from_file(folder / "latent_eval_data.parquet", format="axbench:0")
    assert (len(test.positive), len(test.negative)) == (36, 41)
    with pytest.raises(ValueError, match="one concept at a time"):
        Contrast.from_file(folder / "train_data.parquet")
