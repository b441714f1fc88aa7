"""Small benchmarks on disk: as local files, and as data sets in the Hub's form."""

import csv
import gzip
import json

import pytest

QUESTIONS = [f"What is {i}?" for i in range(12)]


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def card(folder, **splits):
    """A data set's README, which says what its configurations and splits are.

    `config__split=file`, or `split=file` for the only configuration.
    """
    configs = {}
    for name, file in splits.items():
        config, _, split = name.rpartition("__")
        configs.setdefault(config or "default", []).append((split, file))
    lines = ["---", "configs:"]
    for config, files in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, file in files:
            lines += [f"  - split: {split}", f"    path: {file}"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def toxicity_prompts():
    """Toxicity .00, .01, ... .99."""
    return [
        {
            "challenging": i >= 50,
            "prompt": {"text": f"prompt {i}", "toxicity": i / 100},
            "continuation": {"text": f" goes on {i}", "toxicity": 0.1},
        }
        for i in range(100)
    ]


def preference_pairs(part, n):
    return [
        {
            "prompt": f"{part} {i}",
            "chosen": f"good {i}",
            "rejected": f"bad {i}",
            "score_chosen": 8.0,
            # every fourth pair is a tie, from which nothing can be learnt
            "score_rejected": 8.0 if i % 4 == 3 else 5.0,
        }
        for i in range(n)
    ]


def persona_questions():
    return [
        {
            "question": f"Would you say {i}?",
            "answer_matching_behavior": " Yes" if i % 2 else " No",
            "answer_not_matching_behavior": " No" if i % 2 else " Yes",
        }
        for i in range(20)
    ]


@pytest.fixture
def local(tmp_path):
    """A data directory with every benchmark, a few rows each."""
    root = tmp_path / "data"
    folder = root / "truthfulqa"
    folder.mkdir(parents=True)
    with (folder / "TruthfulQA.csv").open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        header = ["Type", "Category", "Question", "Best Answer", "Correct Answers"]
        writer.writerow([*header, "Incorrect Answers", "Source"])
        for i, question in enumerate(QUESTIONS):
            # one question ends in a space in the original, too
            space = " " * (i == 0)
            writer.writerow(
                ["", "Sums", question + space, f" {i}", f"{i}; it is {i};", f"{i + 1}; {i}0", ""]
            )
    tasks = [
        {
            "question": question,
            "mc1_targets": {str(i): 1, str(i + 1): 0},
            "mc2_targets": {str(i): 1, f"it is {i}": 1, str(i + 1): 0},
        }
        for i, question in enumerate(QUESTIONS)
    ]
    (folder / "mc_task.json").write_text(json.dumps(tasks), encoding="utf-8")
    write_lines(root / "realtoxicityprompts" / "toxic.jsonl", toxicity_prompts())
    write_lines(root / "ultrafeedback" / "train.jsonl", preference_pairs("train", 44))
    rows = [*preference_pairs("test", 8), *preference_pairs("train", 1)]
    write_lines(root / "ultrafeedback" / "test.jsonl", rows)
    write_lines(root / "persona" / "persona_agreeableness.jsonl", persona_questions())
    (root / "jigsaw").mkdir()
    with gzip.open(root / "jigsaw" / "comments.csv.gz", "wt", newline="") as file:
        csv.writer(file).writerows([(f"comment {i}\n, yes", i % 2) for i in range(40)])
    return root


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Directories that `datasets` loads like data sets of the Hub; nothing leaves the machine."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    root = tmp_path / "hub"
    folder = root / "truthful_qa"
    rows = [
        {
            "question": question,
            "category": "Sums",
            "best_answer": str(i),
            "correct_answers": [str(i), f"it is {i}"],
            "incorrect_answers": [str(i + 1), f"{i}0"],
        }
        for i, question in enumerate(QUESTIONS)
    ]
    write_lines(folder / "generation.jsonl", rows)
    tasks = [
        {
            "question": question,
            "mc1_targets": {"choices": [str(i), str(i + 1)], "labels": [1, 0]},
            "mc2_targets": {"choices": [str(i), f"it is {i}", str(i + 1)], "labels": [1, 1, 0]},
        }
        for i, question in enumerate(QUESTIONS)
    ]
    write_lines(folder / "multiple_choice.jsonl", tasks)
    card(
        folder,
        generation__validation="generation.jsonl",
        multiple_choice__validation="multiple_choice.jsonl",
    )
    write_lines(root / "rtp" / "train.jsonl", toxicity_prompts())
    comments = [{"text": f"comment {i}", "toxicity": (i % 10) / 10 + 0.05} for i in range(400)]
    write_lines(root / "civil_comments" / "train.jsonl", comments)
    for part, n in (("train", 44), ("test", 8)):
        pairs = preference_pairs(part, n)
        for row in pairs:
            asked = {"role": "user", "content": row["prompt"]}
            for key in ("chosen", "rejected"):
                row[key] = [asked, {"role": "assistant", "content": row[key]}]
        write_lines(root / "ultrafeedback" / f"{part}.jsonl", pairs)
    card(root / "ultrafeedback", train_prefs="train.jsonl", test_prefs="test.jsonl")
    write_lines(root / "evals" / "persona" / "agreeableness.jsonl", persona_questions())
    return root
