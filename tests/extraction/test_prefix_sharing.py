"""Shared prefixes are computed once, and nothing else changes."""

from itertools import groupby

import pytest
import torch
from tests.helpers.models import DEPTH, VOCABULARY, constant, model, tokenizer
from transformers import DynamicCache

import odesteer as ods
from odesteer.extraction import pooling
from odesteer.extraction.batching import (
    MIN_PREFIX,
    MIN_SAVED_SHARE,
    shared_prefix_batches,
    shared_prefixes,
    whole_text_batches,
)
from odesteer.extraction.cache_index import MODEL
from odesteer.extraction.extract import extract
from odesteer.extraction.pooling import _Branches, branches, supports_prefix_cache
from odesteer.models.layers import find_layers
from odesteer.testing import ARCHITECTURES

# Their state is no sequence of keys and values, in some of their blocks or in all.
RECURRENT = {
    "qwen3_next",
    "mamba",
    "mamba2",
    "jamba",
    "falcon_h1",
    "granitemoehybrid",
    "recurrent_gemma",
    "lfm2",
}


def random_texts(beginnings=(9, 9, 12, 20), answers=(1, 2, 5, 9, 3), alone=2, seed=0):
    """Rows of token ids in random order, and where each answer starts."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(n):
        return torch.randint(7, VOCABULARY, (n,), generator=generator).tolist()

    rows = []
    for length in beginnings:
        beginning = tokens(length)
        rows += [(beginning + tokens(t), length) for t in answers]
    rows += [(tokens(5), 2) for _ in range(alone)]
    order = torch.randperm(len(rows), generator=generator).tolist()
    return [rows[i][0] for i in order], [rows[i][1] for i in order]


ROWS, STARTS = random_texts()


def difference(rows, others):
    """The largest relative distance of two rows, over all layers."""
    return max(
        float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())
        for a, b in zip(rows, others, strict=True)
    )


def assert_alike(rows, others):
    assert difference(rows, others) < 1e-5


def read(net, share=True, layers=(1, 3), rows=ROWS, starts=STARTS, **settings):
    return extract(net, rows, layers, starts=starts, share=share, **settings)


class Positions:
    """Which blocks run over how many token positions, padding included."""

    def __init__(self, net):
        blocks = list(find_layers(net))
        self._kind, self._numbers = type(blocks[0]), {id(b): i for i, b in enumerate(blocks)}
        self._forward, self.seen, self.runs = self._kind.forward, [0] * len(blocks), 0

    def __enter__(self):
        def forward(block, hidden, *args, **kwargs):
            number = self._numbers[id(block)]
            self.seen[number] += hidden.shape[0] * hidden.shape[1]
            self.runs += number == 0
            return self._forward(block, hidden, *args, **kwargs)

        # In the class: a hook on the model would keep it from sharing.
        self._kind.forward = forward
        return self

    def __exit__(self, *_):
        self._kind.forward = self._forward


# ---- the same values


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_texts_read_the_same_on_every_architecture(name, monkeypatch):
    net = ARCHITECTURES[name].build()
    assert supports_prefix_cache(net) == (name not in RECURRENT)
    verdicts = []
    tries = pooling.Pooler.continues_prefix
    monkeypatch.setattr(
        pooling.Pooler,
        "continues_prefix",
        lambda *args: verdicts.append(tries(*args)) or verdicts[-1],
    )
    for tokens in ("last", "mean", "response"):
        assert_alike(read(net, tokens=tokens), read(net, False, tokens=tokens))
    assert verdicts == ([] if name in RECURRENT else [True] * 3)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("tokens", ["last", "mean", "response"])
def test_whatever_the_batch_and_the_site(name, tokens):
    net = model(name)
    for site in ("residual", "heads"):
        settings = {"tokens": tokens, "site": site}
        expected = read(net, False, batch_tokens=1, **settings)
        for batch_tokens in (1, 30, 64, 10**6):
            assert_alike(read(net, batch_tokens=batch_tokens, **settings), expected)


@pytest.mark.parametrize("tokens", ["last", "mean", "response", "prompt"])
def test_a_contrast_of_questions_reads_the_same(tokens, monkeypatch):
    net, question = model(), "Q: was the cat on the mat under a tree A:"
    other = "Q: is the moon good or bad or the bird A:"
    # One answer begins with the other, one question goes on in all its answers, one is empty.
    contrast = ods.Contrast.from_pairs(
        [(question, "the cat ran"), (question, "the cat"), (other, "a dog")],
        [(question, ""), (question, "the bird sat on mat"), (other, "a dog flew")],
        template="plain",
    )
    with Positions(net) as counted:
        shared = ods.activations(net, tokenizer(), contrast, 2, tokens=tokens)
    monkeypatch.setattr(pooling, "supports_prefix_cache", lambda _net: False)
    with Positions(net) as all_of_it:
        whole = ods.activations(net, tokenizer(), contrast, 2, tokens=tokens)
    assert counted.seen != all_of_it.seen
    assert_alike(shared, whole)


def test_a_text_that_occurs_twice_reads_the_same_twice():
    rows = [ROWS[0], ROWS[0], ROWS[1]]
    found = read(model(), rows=rows, starts=[0] * 3)
    assert torch.equal(found[0][0], found[0][1])
    assert_alike(found, read(model(), False, rows=rows, starts=[0] * 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_shares_too(dtype):
    net = model().to(dtype)
    with Positions(net) as counted:
        some = read(net)
    with Positions(net) as all_of_it:
        others = read(net, False)
    assert counted.seen[0] < all_of_it.seen[0]
    assert difference(some, others) < 10 * torch.finfo(dtype).eps


# ---- wrong sharing is seen


def off_by_three(monkeypatch):
    length = DynamicCache.get_seq_length

    def wrong(cache, *args, **settings):
        found = length(cache, *args, **settings)
        return found + 3 if found else 0

    monkeypatch.setattr(DynamicCache, "get_seq_length", wrong)


def of_another(monkeypatch):
    monkeypatch.setattr(
        pooling, "branches", lambda cache, chosen: branches(cache, [0] * len(chosen))
    )


def without_values(monkeypatch):
    def forgetful(layer, keys, values, *_args, **_kwargs):
        before = torch.zeros_like(layer.values[layer._rows])
        keys = torch.cat([layer.keys[layer._rows], keys], dim=-2)
        return keys, torch.cat([before, values], dim=-2)

    monkeypatch.setattr(_Branches, "update", forgetful)


def one_place_late(monkeypatch):
    made = branches

    def rolled(cache, chosen):
        found = made(cache, chosen)
        for layer in found.layers:
            layer.keys = layer.keys.roll(1, dims=-2)
        return found

    monkeypatch.setattr(pooling, "branches", rolled)


SABOTAGE = [off_by_three, of_another, without_values, one_place_late]


@pytest.mark.parametrize("sabotage", SABOTAGE)
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_comparison_finds_wrong_sharing(name, sabotage, monkeypatch):
    net = model(name)
    expected = read(net, False)
    sabotage(monkeypatch)
    monkeypatch.setattr(pooling.Pooler, "continues_prefix", lambda *_: True)
    with pytest.raises(AssertionError):
        assert_alike(read(net), expected)


@pytest.mark.parametrize("sabotage", [off_by_three, without_values, one_place_late])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_model_that_does_not_go_on_rightly_reads_whole_texts(name, sabotage, monkeypatch):
    net = model(name)
    expected = read(net, False)
    sabotage(monkeypatch)
    assert all(torch.equal(a, b) for a, b in zip(read(net), expected, strict=True))


def test_a_model_that_refuses_a_cache_reads_whole_texts(monkeypatch):
    net = model()
    expected = read(net, False)

    def refuse(*_):
        raise TypeError("no such cache")

    monkeypatch.setattr(_Branches, "update", refuse)
    assert all(torch.equal(a, b) for a, b in zip(read(net), expected, strict=True))


# ---- what is on the model


def test_a_steered_model_reads_whole_texts_all_of_them_steered():
    net = model()
    with constant(layer=1, strength=3.0).attach(net, positions="all"):
        assert not supports_prefix_cache(net)
        some, others = read(net), read(net, False)
        alone = [read(net, rows=[row], starts=[0]) for row in ROWS]
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
    assert_alike(some, [torch.cat(layer) for layer in zip(*alone, strict=True)])
    assert difference(some, read(net)) > 0.1
    assert supports_prefix_cache(net)


def test_layers_that_learn_from_moved_activations_see_all_of_them_moved(monkeypatch):
    net, words = model(), "Q: was the cat on the mat under a tree A:"
    answers = ["the cat ran", "a dog sat", "the moon", "bad bird", "good tree", "a mat"]
    contrast = ods.Contrast.from_pairs(
        [(words, text) for text in answers[:3]], [(words, text) for text in answers[3:]]
    )
    settings = {"method": "caa", "layer": [0, 2], "incremental": True}
    some = ods.fit(net, tokenizer(), contrast, **settings)
    monkeypatch.setattr(pooling, "supports_prefix_cache", lambda _net: False)
    rows = torch.randn(3, net.config.hidden_size)
    for a, b in zip(some.parts, ods.fit(net, tokenizer(), contrast, **settings).parts, strict=True):
        torch.testing.assert_close(a(rows), b(rows))


# ---- less is computed


@pytest.mark.parametrize("deepest", [0, 2, DEPTH - 1])
def test_a_beginning_runs_once_and_nothing_above_the_deepest_block(deepest, monkeypatch):
    net = model()
    monkeypatch.setattr(pooling.Pooler, "continues_prefix", lambda *_: True)
    monkeypatch.setattr(
        type(net.lm_head), "forward", lambda module, x: torch.nn.functional.linear(x, module.weight)
    )
    monkeypatch.setattr(net.lm_head, "weight", None)  # logits would fail
    with Positions(net) as counted:
        read(net, layers=[deepest], batch_tokens=1)  # a text a run: no padding
    with Positions(net) as all_of_it:
        read(net, False, layers=[deepest], batch_tokens=1)
    answers = sum(len(row) - start for row, start in zip(ROWS, STARTS, strict=True) if start > 2)
    assert all_of_it.seen[0] == sum(map(len, ROWS))
    assert counted.seen[0] == (9 + 9 + 12 + 20) + answers + 2 * 5
    for one in (counted, all_of_it):
        assert set(one.seen[: deepest + 1]) == {one.seen[0]}
        assert set(one.seen[deepest + 1 :]) <= {0}


def test_a_question_with_seven_answers_costs_less_than_half():
    rows, starts = random_texts([16, 18, 16, 18, 20, 20] * 3, [3, 8, 10, 5, 12, 4, 9], alone=0)
    net, counts = model(), []
    for share in (True, False):
        with Positions(net) as counted:
            read(net, share, rows=rows, starts=starts, batch_tokens=256)
        counts.append(counted.seen[0])
    assert counts[0] < counts[1] / 2


def test_keys_and_values_of_answers_are_not_kept():
    cache = DynamicCache()
    filled = torch.randn(2, 3, 5, 4)
    for block in range(DEPTH):
        cache.update(filled, filled, block)
    twigs = branches(cache, [1, 0, 1])
    keys, _ = twigs.update(torch.zeros(3, 3, 2, 4), torch.zeros(3, 3, 2, 4), 0)
    assert keys.shape == (3, 3, 7, 4)
    assert torch.equal(keys[:, :, :5], filled[[1, 0, 1]])
    for layer in twigs.layers:
        assert layer.keys.data_ptr() == cache.layers[0].keys.data_ptr() or layer.keys.shape[0] == 2
    assert twigs.get_seq_length() == 5


# ---- which texts


def saved(groups):
    return sum((len(group.members) - 1) * group.length for group in groups)


def best(rows, length=0):
    """The most tokens that rows alike in `length` can save, by trying every length."""
    here = (len(rows) - 1) * length
    if length < MIN_PREFIX or here < MIN_SAVED_SHARE * sum(map(len, rows)):
        here = 0
    # Those that have a token left of their own.
    longer = sorted(row for row in rows if len(row) > length + 1)
    parts = [list(part) for _, part in groupby(longer, key=lambda row: row[: length + 1])]
    return max(here, sum(best(part, length + 1) for part in parts))


@pytest.mark.parametrize("seed", range(20))
def test_the_beginnings_chosen_save_the_most(seed):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randint(2, (30,), generator=generator).tolist()
    rows = []
    for _ in range(25):
        cut, more = torch.randint(1, 28, (2,), generator=generator).tolist()
        rows.append([*common[:cut], *torch.randint(2, (more,), generator=generator).tolist()])
    groups = shared_prefixes(rows)
    members = [i for group in groups for i in group.members]
    assert len(members) == len(set(members))
    for length, some in groups:
        assert len({tuple(rows[i][:length]) for i in some}) == 1
        assert all(len(rows[i]) > length for i in some)
    assert saved(groups) == best(rows)


def test_questions_are_chosen_over_the_instruction_that_all_share():
    instruction, rows = list(range(30)), []
    for question in range(4):
        beginning = [*instruction, *range(100 * question + 40, 100 * question + 55)]
        rows += [[*beginning, answer, 1, 2] for answer in range(3)]
    assert sorted(shared_prefixes(rows)) == [(45, [3 * q, 3 * q + 1, 3 * q + 2]) for q in range(4)]
    bare = [[*instruction, 100 + i, 5, 6] for i in range(8)]
    assert shared_prefixes(bare) == [(30, list(range(8)))]


def test_a_short_beginning_or_a_small_part_of_long_texts_is_not_shared():
    short = list(range(MIN_PREFIX - 1))
    assert shared_prefixes([[*short, 90], [*short, 91]]) == []
    longer = list(range(MIN_PREFIX))
    assert len(shared_prefixes([[*longer, 90], [*longer, 91]])) == 1
    assert shared_prefixes([[*longer, *range(90, 190)], [*longer, *range(200, 300)]]) == []


def test_a_thousand_beginnings_of_one_text_are_no_trouble():
    text = torch.arange(2000).tolist()
    groups = shared_prefixes([text[: i + 2] for i in range(1500)])
    assert saved(groups) > 0


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 10**6])
def test_every_text_is_in_one_run_and_runs_keep_their_size(batch_tokens):
    rows, starts = random_texts([9, 9, 9, 12, 12, 30], range(1, 12), alone=7, seed=1)
    for batches in (
        whole_text_batches(rows, batch_tokens),
        shared_prefix_batches(rows, batch_tokens, starts),
    ):
        assert sorted(i for batch in batches for i in batch.rows) == list(range(len(rows)))
        for batch in batches:
            lengths = [[len(rows[i]) for i in run] for run in batch.runs]
            assert all(len(run) * max(run) <= batch_tokens or len(run) == 1 for run in lengths)
            beginnings = {tuple(rows[i][: batch.shared]) for i in batch.rows}
            assert len(beginnings) * batch.shared <= batch_tokens / 2 or len(beginnings) == 1
            assert all(starts[i] >= batch.shared for i in batch.rows)


# ---- on disk


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MODEL)


@pytest.mark.parametrize("tokens", ["last", "mean", "response"])
def test_what_is_on_disk_is_what_was_computed_to_the_bit(tokens, tmp_path):
    net, settings = model(), {"tokens": tokens, "batch_tokens": 64}
    expected = read(net, **settings)
    for _ in range(2):
        with Positions(net) as counted:
            found = read(net, cache=tmp_path, **settings)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert counted.runs == 0
    assert len(files(tmp_path)) > 3


def test_an_interrupted_call_computes_the_rest_and_no_more(tmp_path):
    net, settings = model(), {"batch_tokens": 64, "cache": tmp_path}
    expected = read(net, **settings)
    whole = files(tmp_path)
    for path in whole[1:3]:
        path.unlink()
    left = {path: path.stat().st_ino for path in files(tmp_path)}
    calls = []
    found = read(net, **settings, progress=lambda *call: calls.append(call))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert files(tmp_path) == whole
    assert {path: path.stat().st_ino for path in left} == left
    done = [rows for rows, _ in calls]
    assert len(done) == 3
    assert done == sorted(set(done))
    assert calls[-1] == (len(ROWS), len(ROWS))


def test_shared_and_whole_texts_are_not_taken_for_each_other(tmp_path, monkeypatch):
    net = model()
    read(net, cache=tmp_path)
    with Positions(net) as counted:
        found = read(net, False, cache=tmp_path)
    assert counted.runs > 0
    assert all(torch.equal(a, b) for a, b in zip(found, read(net, False), strict=True))
    # The same texts in the same order, begun at another token.
    monkeypatch.setattr("odesteer.extraction.batching.shared_prefixes", shorter)
    with Positions(net) as counted:
        found = read(net, cache=tmp_path)
    assert counted.runs > 0
    assert all(torch.equal(a, b) for a, b in zip(found, read(net), strict=True))


def shorter(*args):
    return [group._replace(length=group.length - 1) for group in shared_prefixes(*args)]
