"""Sources of a contrast, and the groups that stay together."""

import json

import pytest
from datasets import Dataset
from tests.helpers.models import tokenizer

from odesteer import Contrast
from odesteer.data import Example

TURNS = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sat"}]


def test_a_row_is_a_text_a_pair_or_chat_messages():
    contrast = Contrast.from_pairs(["sat", ("the cat", "sat"), TURNS], ["ran"] * 3)
    assert contrast.positive == (
        Example(None, "sat", "0"),
        Example("the cat", "sat", "1"),
        Example((TURNS[0],), "sat", "2"),
    )


def test_a_pair_may_have_chat_messages_as_its_prompt():
    contrast = Contrast.from_pairs([(TURNS[:1], "sat")], [(TURNS[:1], "ran")])
    (sat,), (ran,) = contrast.tokens(tokenizer(chat=True))
    as_turns = Contrast.from_pairs([TURNS], ["ran"])
    assert as_turns.tokens(tokenizer(chat=True))[0] == [sat]
    assert sat[:-1] == ran[:-1]
    assert sat[-1] != ran[-1]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (5, "got 5"),
        (None, "got None"),
        (("a", 3), "pair of texts"),
        (("a", "b", "c"), "got"),
        ([], "got"),
        (TURNS[:1], r"assistant's turn.*\['user'\]"),
        (TURNS[1:], r"after at least one.*\['assistant'\]"),
    ],
)
def test_a_row_of_another_form_is_shown(row, words):
    with pytest.raises(ValueError, match=words):
        Contrast.from_pairs([row], ["b"])


@pytest.mark.parametrize(
    ("positive", "negative", "empty"), [([], ["a"], "positive"), (["a"], [], "neg")]
)
def test_both_classes_need_examples(positive, negative, empty):
    with pytest.raises(ValueError, match=f"the {empty}.* class is empty"):
        Contrast.from_pairs(positive, negative)


def test_equal_counts_pair_up_and_others_stand_alone():
    assert Contrast.from_pairs(list("abc"), list("xyz")).groups == (list("012"), list("012"))
    with pytest.warns(UserWarning, match="3 positive and 2 negative texts do not pair up"):
        one, two = Contrast.from_pairs(list("abc"), list("xy")).groups
    assert len({*one, *two}) == 5


def test_given_groups_are_kept_positives_first():
    contrast = Contrast.from_pairs(list("ab"), list("xyz"), groups=["p", "q", "q", "r", "p"])
    assert contrast.groups == (["p", "q"], ["q", "r", "p"])
    with pytest.raises(ValueError, match=r"2 \+ 3; got 4"):
        Contrast.from_pairs(list("ab"), list("xyz"), groups=["p"] * 4)


def test_pair_rows_and_labelled_rows_say_the_same():
    pairs = Contrast.from_rows([{"prompt": "the cat", "positive": "sat", "negative": "ran"}])
    labelled = Contrast.from_rows(
        [
            {"prompt": "the cat", "response": "ran", "label": 0},
            {"prompt": "the cat", "text": "sat", "label": 1},
        ]
    )
    assert pairs == labelled


def test_rows_of_one_prompt_group_or_topic_belong_together():
    rows = [
        {"prompt": "p", "positive": "a", "negative": "b"},
        {"prompt": "p", "positive": "c", "negative": "d"},
        {"prompt": "q", "group": "g", "positive": "e", "negative": "f"},
        {"prompt": "p", "group": "g", "positive": "g", "negative": "h"},
        {"topic": "t", "text": "i", "label": 1},
        {"topic": "t", "text": "j", "label": 1},
        {"text": "k", "label": 1},
        {"text": "l", "label": 1},
    ]
    groups = Contrast.from_rows(rows).groups[0]
    assert groups[0] == groups[1]
    assert groups[2] == groups[3]
    assert groups[4] == groups[5]
    assert len(set(groups)) == 5


def test_a_text_that_looks_like_a_row_number_is_no_row_number():
    rows = [
        {"prompt": "2", "positive": "a", "negative": "b"},
        {"positive": "c", "negative": "d"},
    ]
    assert len(set(Contrast.from_rows(rows).groups[0])) == 2


def test_a_jsonl_file_is_its_rows(tmp_path):
    rows = [
        {"prompt": "é the", "positive": "a", "negative": "b\u2028c"},
        {"positive": "c", "negative": "d"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (tmp_path / "c.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    read = Contrast.from_jsonl(tmp_path / "c.jsonl", template="plain")
    made = Contrast.from_rows(rows, template="plain")
    assert [e.response for e in read.negative] == [e.response for e in made.negative]
    assert read.template == "plain"
    assert read.positive[0] == made.positive[0]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        Contrast.from_jsonl(tmp_path / "nowhere.jsonl")


GOOD = {"positive": "a", "negative": "b"}


@pytest.mark.parametrize(
    "bad",
    [
        {"positive": "a"},
        {"text": "a"},
        {"text": "a", "label": 2},
        {"text": "a", "label": "1"},
        {},
        {"positive": 5, "negative": "b"},
        {"text": None, "label": 1},
    ],
    ids=str,
)
def test_a_row_that_cannot_be_read_is_named_by_its_number(bad):
    with pytest.raises(ValueError, match=r"[Rr]ow 3\b"):
        Contrast.from_rows([GOOD, GOOD, bad])


@pytest.mark.parametrize("line", ["{", "[1]", "3", '{"positive": "a"}'])
@pytest.mark.parametrize("before", [[json.dumps(GOOD)] * 2, [json.dumps(GOOD), ""]])
def test_a_line_that_cannot_be_read_is_named_by_its_number(line, before, tmp_path):
    (tmp_path / "c.jsonl").write_text("\n".join([*before, line]))
    with pytest.raises(ValueError, match=r"\b([Ll]ine|[Rr]ow) 3\b"):
        Contrast.from_jsonl(tmp_path / "c.jsonl")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_split_has_no_group_in_common_and_loses_nothing(share):
    groups = [i % 10 for i in range(30)] + [i % 10 for i in range(40)]
    contrast = Contrast.from_pairs(["a"] * 30, ["b"] * 40, groups=groups)
    one, two = contrast.split(share)
    in_one, in_two = ({*part.groups[0], *part.groups[1]} for part in (one, two))
    assert not in_one & in_two
    assert len(in_one) == 10 * share
    assert len(one.positive) + len(two.positive) == 30
    assert len(one.negative) + len(two.negative) == 40


def test_a_split_follows_its_seed_and_keeps_the_template():
    contrast = Contrast.from_pairs(["a"] * 20, ["b"] * 20, template="plain")
    assert contrast.split(seed=3) == contrast.split(seed=3) != contrast.split(seed=4)
    assert {part.template for part in contrast.split()} == {"plain"}


def test_permuted_labels_turn_half_of_the_pairs_round_or_deal_the_labels_anew():
    up, down = [f"p{i}" for i in range(10)], [f"n{i}" for i in range(10)]
    paired = Contrast.from_pairs(up, down, template="plain")
    shuffled = paired.shuffled()
    assert shuffled.is_paired and shuffled.groups == paired.groups
    assert shuffled.template == "plain" and shuffled == paired.shuffled() != paired.shuffled(1)
    texts = [example.response for example in shuffled.positive]
    assert sum(text.startswith("n") for text in texts) == 5
    for a, b in zip(shuffled.positive, shuffled.negative, strict=True):
        assert {a.response, b.response} == {f"p{a.group}", f"n{a.group}"}
    uneven = Contrast.from_pairs(up, down[:4]).shuffled()
    assert (len(uneven.positive), len(uneven.negative)) == (10, 4)
    both = uneven.positive + uneven.negative
    assert sorted(example.response for example in both) == sorted(up + down[:4])


def test_a_single_group_cannot_be_split():
    with pytest.raises(ValueError, match="has 1"):
        Contrast.from_pairs(list("ab"), list("cd"), groups=[1] * 4).split()


def test_tokens_follow_the_template_of_the_contrast():
    rows = ([("the cat", "sat")], [("the cat", "ran")])
    tok = tokenizer(chat=True)
    for template, start in (("auto", "<s> <user> the cat <end> <assistant>"), ("plain", None)):
        (sat,), (ran,) = Contrast.from_pairs(*rows, template=template).tokens(tok)
        start = start or "<s> the cat"
        assert " ".join(tok.convert_ids_to_tokens(sat)) == f"{start} sat"
        assert " ".join(tok.convert_ids_to_tokens(ran)) == f"{start} ran"


def test_graded_labels_are_read_with_the_texts_and_only_count_when_all_are_there():
    pairs = [
        {"positive": "a", "negative": "b", "positive_reward": 4, "negative_reward": 1.5},
        {"positive": "c", "negative": "d", "positive_reward": 3.0, "negative_reward": 2},
    ]
    assert Contrast.from_rows(pairs).rewards == ([4.0, 3.0], [1.5, 2.0])
    labelled = [{"text": "a", "label": 1, "reward": 0.9}, {"text": "b", "label": 0, "reward": 0.2}]
    assert Contrast.from_rows(labelled).rewards == ([0.9], [0.2])
    del labelled[0]["reward"]
    assert Contrast.from_rows(labelled).rewards is None
    with pytest.raises(ValueError, match=r"Row 1: has the reward 'high'; a graded label"):
        Contrast.from_rows([{"text": "a", "label": 1, "reward": "high"}])


@pytest.mark.parametrize(
    "data",
    [
        Contrast.from_pairs(["good", "fine"], ["bad", "poor"]),
        {"positive": ["good", "fine"], "negative": ["bad", "poor"]},
        [{"positive": "good", "negative": "bad"}, {"positive": "fine", "negative": "poor"}],
        Dataset.from_dict({"positive": ["good", "fine"], "negative": ["bad", "poor"]}),
    ],
    ids=["contrast", "dictionary", "rows", "data set"],
)
def test_what_is_meant_by_a_contrast_is_one(data):
    contrast = Contrast.of(data)
    assert [each.response for each in contrast.positive] == ["good", "fine"]
    assert [each.response for each in contrast.negative] == ["bad", "poor"]


def test_a_path_is_a_contrast_too(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"positive": "good", "negative": "bad"}')
    assert Contrast.of(str(path)) == Contrast.of(path) == Contrast.from_file(path)


@pytest.mark.parametrize("data", [["good", "fine"], 3, None, {"good": 1}])
def test_what_is_no_contrast_is_told_what_to_call(data):
    with pytest.raises(ValueError, match=r"Contrast.from_pairs\(positives, negatives\)"):
        Contrast.of(data)
