"""Batches hold every row once within their limits, and padding is masked on either side."""

import pytest
import torch
from tests.helpers import models as tiny

from odesteer.models.batching import batches, end_tokens, pad

LENGTHS = [3, 9, 1, 4, 4, 12, 2, 7]


@pytest.mark.parametrize("longest_first", [False, True])
@pytest.mark.parametrize(
    "limits",
    [{}, {"rows": 3}, {"tokens": 16}, {"weights": [5] * 8, "weight": 12}, {"rows": 2, "tokens": 9}],
)
def test_every_row_is_in_one_batch_within_the_limits(limits: dict, longest_first: bool) -> None:
    parts = list(batches(LENGTHS, **limits, longest_first=longest_first))
    order = [i for part in parts for i in part]
    assert sorted(order) == list(range(len(LENGTHS)))
    assert [LENGTHS[i] for i in order] == sorted(LENGTHS, reverse=longest_first)
    for part in parts:
        assert len(part) <= limits.get("rows", len(LENGTHS))
        width = max(LENGTHS[i] for i in part)
        assert len(part) == 1 or width * len(part) <= limits.get("tokens", 1000)
        assert sum(limits.get("weights", [0] * 8)[i] for i in part) <= limits.get("weight", 0)


def test_padding_stands_before_or_after_the_rows() -> None:
    ids, mask = pad([[1, 2, 3], [4]], 9, left=True)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    ids, mask = pad([[1, 2, 3], []], left=False)
    assert ids.tolist() == [[1, 2, 3], [0, 0, 0]] and mask.tolist() == [[1, 1, 1], [0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.long


def test_a_model_ends_where_its_own_settings_say_or_else_its_tokenizer() -> None:
    net, tokenizer = tiny.model(), tiny.tokenizer()
    net.generation_config.eos_token_id = [3, 5]
    assert end_tokens(net, tokenizer) == {3, 5}
    net.generation_config.eos_token_id = None
    tokenizer.eos_token = "<end>"
    assert end_tokens(net, tokenizer) == {tokenizer.eos_token_id}
    tokenizer.eos_token = None
    assert end_tokens(net, tokenizer) == set()
