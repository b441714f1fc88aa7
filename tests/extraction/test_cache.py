"""Cached activations are those of the same call, to the bit, whoever else writes or is killed."""

import fcntl
import hashlib
import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.extraction.test_extract import texts
from tests.helpers.forked import Forked
from tests.helpers.models import ARCHITECTURES, DEPTH, constant, model, tokenizer
from torch import nn

import odesteer as ods
from odesteer.extraction.cache_index import MODEL, cached_models, remove, trim
from odesteer.extraction.extract import activations
from odesteer.models.fingerprint import _content, fingerprint, obstacle
from odesteer.models.layers import find_layers

CONTRAST = ods.Contrast.from_pairs(texts(20), texts(20, seed=1))
SMALL = 40  # padded tokens a batch: many batches


def read(net, folder, layers=(0, 2), contrast=CONTRAST, **settings):
    settings = {"batch_tokens": SMALL, "cache": folder, **settings}
    return activations(net, tokenizer(), contrast, list(layers), **settings)


class Forwards:
    """How often the first block runs."""

    def __init__(self, net):
        self.count, self._forward = 0, type(find_layers(net)[0]).forward
        self._kind = type(find_layers(net)[0])

    def __enter__(self):
        def forward(block, *args, **kwargs):
            self.count += block.self_attn.layer_idx == 0
            return self._forward(block, *args, **kwargs)

        # In the class: what sits in the instance could change what is computed.
        self._kind.forward = forward
        return self

    def __exit__(self, *_):
        self._kind.forward = self._forward


def forwards(net, *args, **settings):
    with Forwards(net) as counted:
        result = read(net, *args, **settings)
    return counted.count, result


def same(one, two):
    return one.keys() == two.keys() and all(
        torch.equal(a, b) for key in one for a, b in zip(one[key], two[key], strict=True)
    )


def files(folder):
    return sorted(path for path in Path(folder).rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def fresh():
    return read(model(), False)


# ---- the same values


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("tokens", ["last", "mean", "response"])
@pytest.mark.parametrize("site", ["residual", "heads"])
def test_what_is_read_is_what_was_computed_to_the_bit(name, tokens, site, tmp_path):
    net = model(name)
    expected = read(net, False, tokens=tokens, site=site)
    written = read(net, tmp_path, tokens=tokens, site=site)
    found = read(net, tmp_path, tokens=tokens, site=site)
    assert same(written, expected)
    assert same(found, expected)


def test_nothing_runs_a_second_time(tmp_path, fresh):
    net = model()
    many, _ = forwards(net, tmp_path)
    assert many > 5
    none, found = forwards(net, tmp_path)
    assert none == 0
    assert same(found, fresh)


def test_a_bfloat16_model_is_another_model(tmp_path):
    half = model().bfloat16()
    expected = read(half, False)
    read(model(), tmp_path)
    assert same(read(half, tmp_path), expected)
    assert same(read(half, tmp_path), expected)


def test_layers_are_found_one_by_one_and_only_missing_ones_computed(tmp_path, fresh):
    net = model()
    read(net, tmp_path, [2])
    count, both = forwards(net, tmp_path, [0, 2])
    assert count > 0
    assert same(both, fresh)
    for layers in ([0], [2], [2, 0], [0 - DEPTH]):
        count, some = forwards(net, tmp_path, layers)
        assert count == 0
        assert same(some, {key: fresh[key] for key in some})


def test_progress_reaches_the_end_whatever_is_found(tmp_path):
    net, calls = model(), []
    for layers in ([2], [0, 2], [0, 2]):
        read(net, tmp_path, layers, progress=lambda *call: calls.append(call))
        done = [rows for rows, _ in calls]
        assert done == sorted(set(done))
        assert calls[-1] == (40, 40)
        calls.clear()


@pytest.mark.parametrize(
    "other",
    [
        {"tokens": "mean"},
        {"site": "heads"},
        {"batch_tokens": 60},
        {"contrast": ods.Contrast.from_pairs(texts(20), texts(20, seed=2))},
        {"layers": (1, 3)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_another_question_is_computed(other, tmp_path):
    net = model()
    read(net, tmp_path)
    count, some = forwards(net, tmp_path, **other)
    assert count > 0
    assert same(some, read(net, False, **other))


def test_where_a_response_starts_is_part_of_the_question(tmp_path):
    net = model()
    one = ods.Contrast.from_pairs([("the cat sat", "on the mat")], [("a", "dog")])
    two = ods.Contrast.from_pairs([("the cat", "sat on the mat")], [("a", "dog")])
    assert one.tokens(tokenizer()) == two.tokens(tokenizer())
    rows = [
        read(net, tmp_path, [1], contrast, tokens="response")[1][0] for contrast in (one, two, two)
    ]
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(rows[1], rows[2])


def test_the_end_of_a_prompt_is_the_last_token_of_that_text(tmp_path):
    net = model()
    rows = ods.Contrast.from_pairs([("the cat", "sat")], [("a dog", "ran")], template="plain")
    read(net, tmp_path, [1], rows, tokens="prompt")
    bare = ods.Contrast.from_pairs(["the cat"], ["a dog"])
    count, found = forwards(net, tmp_path, [1], bare)
    assert count == 0
    assert same(found, read(net, False, [1], bare))


def test_fit_and_tune_read_what_they_wrote(tmp_path):
    net = model()
    for call in (
        lambda: ods.fit(net, tokenizer(), CONTRAST, method="caa", layer=1, cache=tmp_path),
        lambda: ods.fit(net, tokenizer(), CONTRAST, method="mimic", layer=[0, 2], cache=tmp_path),
    ):
        one = call()
        names = files(tmp_path)
        two = call()
        assert files(tmp_path) == names
        rows = torch.randn(3, net.config.hidden_size)
        for a, b in zip(getattr(one, "parts", [one]), getattr(two, "parts", [two]), strict=True):
            assert torch.equal(a(rows), b(rows))


# ---- which model it is


def first(net, name="mlp.down_proj.weight"):
    return find_layers(net)[0].get_parameter(name)


def swap_rows(net):
    weight = net.get_input_embeddings().weight
    weight[[3, 4]] = weight[[4, 3]].clone()


CHANGES = {
    "one weight": lambda net: first(net)[7, 3].add_(1e-6),
    "a sign": lambda net: net.lm_head.weight.view(-1)[-1].mul_(-1.0),
    "a row": lambda net: net.get_input_embeddings().weight[5].zero_(),
    "two rows": swap_rows,
    "through .data": lambda net: first(net, "input_layernorm.weight").data.add_(0.1),
    "the configuration": lambda net: setattr(net.config, "rms_norm_eps", 1e-3),
    "a buffer that is not saved": lambda net: net.get_buffer("model.rotary_emb.inv_freq").mul_(0.5),
    "the precision": lambda net: net.bfloat16(),
    "the attention": lambda net: net.set_attn_implementation("eager"),
    "a module": lambda net: setattr(find_layers(net)[1], "mlp", nn.Identity()),
    "an activation function": lambda net: setattr(find_layers(net)[1].mlp, "act_fn", nn.ReLU()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_any_change_of_a_model_makes_it_another(what):
    net = model()
    assert fingerprint(net) == fingerprint(model())
    with torch.no_grad():
        CHANGES[what](net)
    assert fingerprint(net) != fingerprint(model())


@pytest.mark.parametrize("size", [1, 7, 4095, 4096, 4097, 3 * 4096 + 5])
@pytest.mark.parametrize("offset", [0, 3])
def test_every_byte_of_a_tensor_counts_wherever_it_lies(size, offset):
    generator = torch.Generator().manual_seed(size)
    data = torch.randint(256, (size + offset,), dtype=torch.uint8, generator=generator)
    part = data[offset:]
    before = _content(part)
    assert _content(part.clone()) == before
    for place in {0, size // 3, size // 2, size - 1}:
        for bit in (0, 7):
            part[place] ^= 1 << bit
            assert _content(part) != before
            part[place] ^= 1 << bit
    assert _content(part) == before


def test_what_does_not_change_the_activations_is_the_same_model(tmp_path):
    net = model()
    before = fingerprint(net)
    net.train()
    net.requires_grad_(False)
    net(input_ids=torch.ones(1, 3, dtype=torch.long), output_hidden_states=True)
    assert fingerprint(net) == before
    assert obstacle(net) is None
    net.save_pretrained(tmp_path)
    again = type(net).from_pretrained(tmp_path).eval()
    assert fingerprint(again) == fingerprint(type(net).from_pretrained(tmp_path))
    assert obstacle(again) is None


def test_an_adapter_that_is_switched_off_is_another_model():
    class Adapted(nn.Linear):
        """As PEFT's layers are: what acts is an attribute, not a tensor."""

        active_adapters = ("default",)
        disable_adapters = False

    net = model()
    old = find_layers(net)[0].mlp.down_proj
    adapted = Adapted(old.in_features, old.out_features, bias=False)
    adapted.load_state_dict(old.state_dict())
    find_layers(net)[0].mlp.down_proj = adapted
    on = fingerprint(net)
    adapted.disable_adapters = True
    off = fingerprint(net)
    adapted.active_adapters = ("other",)
    assert len({on, off, fingerprint(net), fingerprint(model())}) == 4


def test_a_trained_model_gets_its_own_activations(tmp_path):
    net = model()
    read(net, tmp_path)
    with torch.no_grad():
        first(net).mul_(1.1)
    assert same(read(net, tmp_path), read(net, False))


# ---- nothing but the model


def replaced_forward(net):
    block = find_layers(net)[0]
    own = block.forward
    block.forward = lambda *args, **kwargs: own(*args, **kwargs)
    return lambda: delattr(block, "forward")


def on_meta(net):
    weight = first(net)
    mlp = find_layers(net)[0].mlp.down_proj
    mlp.weight = nn.Parameter(weight.detach().to("meta"))
    return lambda: setattr(mlp, "weight", weight)


OBSTACLES = {
    "a steering": (lambda net: constant().attach(net).remove, r"forward hook \(of odesteer"),
    "a hook": (
        lambda net: find_layers(net)[3].register_forward_hook(lambda *_: None).remove,
        r"layers\.3 carries a forward hook",
    ),
    "a hook before": (
        lambda net: net.register_forward_pre_hook(lambda *_: None).remove,
        r"LlamaForCausalLM carries a forward hook",
    ),
    "a global hook": (
        lambda net: nn.modules.module.register_module_forward_hook(lambda *_: None).remove,
        "a global forward hook",
    ),
    "a replaced forward": (replaced_forward, r"the forward of model\.layers\.0 was replaced"),
    "offloaded": (on_meta, r"down_proj\.weight is not in memory"),
}


@pytest.mark.parametrize("what", OBSTACLES)
def test_whatever_may_change_what_is_computed_is_said_and_keeps_the_cache_out(what, tmp_path):
    put_on, words = OBSTACLES[what]
    net = model()
    read(net, tmp_path)
    before = files(tmp_path)
    take_off = put_on(net)
    try:
        assert obstacle(net) is not None
        if what != "offloaded":  # meta tensors compute nothing
            with pytest.warns(UserWarning, match=rf"afresh and not cached: .*{words}"):
                some = read(net, tmp_path, [1])
            assert same(some, read(net, False, [1]))
    finally:
        take_off()
    assert files(tmp_path) == before
    assert obstacle(net) is None


def test_steered_activations_are_neither_read_nor_written(tmp_path):
    net = model()
    plain = read(net, tmp_path, [2])
    before = {path: path.read_bytes() for path in files(tmp_path)}
    with (
        constant(layer=1).attach(net, positions="all"),
        pytest.warns(UserWarning, match="not cached"),
    ):
        steered = read(net, tmp_path, [2])
    assert not torch.equal(steered[2][0], plain[2][0])
    assert {path: path.read_bytes() for path in files(tmp_path)} == before


def test_layers_that_learn_from_moved_activations_do_so_with_a_cache(tmp_path):
    net = model()
    settings = {"method": "caa", "layer": [0, 2], "incremental": True}
    plain = ods.fit(net, tokenizer(), CONTRAST, **settings)
    for _ in range(2):
        cached = ods.fit(net, tokenizer(), CONTRAST, **settings, cache=tmp_path)
        rows = torch.randn(3, net.config.hidden_size)
        for a, b in zip(plain.parts, cached.parts, strict=True):
            assert torch.equal(a(rows), b(rows))


# ---- damage


DAMAGE = {
    "empty": lambda data: b"",
    "cut in the header": lambda data: data[:20],
    "cut in the numbers": lambda data: data[:-7],
    "longer": lambda data: data + b"\0" * 8,
    "a changed number": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "a changed name": lambda data: data.replace(b'"2":{', b'"1":{'),
    "a changed sum": lambda data: data.replace(b'"sum:2":"', b'"sum:2":"0'),
    "another schema": lambda data: data.replace(b'"schema":"2"', b'"schema":"9"'),
    "no safetensors": lambda data: b"x" * len(data),
    "a huge header": lambda data: (2**60).to_bytes(8, "little") + data[8:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_computed_again_and_mended(damage, tmp_path, fresh):
    net = model()
    read(net, tmp_path)
    whole = {p: p.read_bytes() for p in files(tmp_path) if p.name != MODEL}
    broken = list(whole)[::3]
    for path in broken:
        path.write_bytes(DAMAGE[damage](whole[path]))
        assert path.read_bytes() != whole[path]
    assert cached_models(tmp_path)[0].rows > 0  # can be listed
    count, found = forwards(net, tmp_path)
    assert count == len(broken)
    assert same(found, fresh)
    count, found = forwards(net, tmp_path)
    assert count == 0
    assert same(found, fresh)


def test_a_file_that_vanishes_is_computed_again(tmp_path, fresh, monkeypatch):
    net = model()
    read(net, tmp_path)
    from odesteer.extraction import cache

    opened = cache.safe_open

    def vanish(path, **settings):
        path.unlink()
        return opened(path, **settings)

    monkeypatch.setattr(cache, "safe_open", vanish)
    assert same(read(net, tmp_path), fresh)


def test_a_folder_that_cannot_be_written_is_said_once_and_nothing_else(tmp_path, fresh):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="Activations are not cached") as said:
        assert same(read(model(), tmp_path / "file"), fresh)
    assert len([w for w in said if "not cached" in str(w.message)]) == 1


# ---- several processes


def start(saved, folder, mode):
    return Forked(read_and_wait, saved, folder, mode)


def read_and_wait(saved, folder, mode):
    """Read as the others do, but wait for good in the middle, or for all before ("race")."""
    from transformers import AutoModelForCausalLM

    from odesteer.common import files as saving

    net = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    replace, writes = saving.os.replace, []

    def say_and_wait():
        print("here", flush=True)
        with gate(folder, fcntl.LOCK_SH):
            pass

    def stop_in_a_write(source, target):
        writes.append(target)
        if len(writes) == 5:
            say_and_wait()
        replace(source, target)

    def stop_in_the_middle(done, total):
        if done >= total / 2:
            say_and_wait()

    if mode == "race":
        say_and_wait()
    elif mode == "write":
        saving.os.replace = stop_in_a_write
    found = read(net, folder, progress=stop_in_the_middle if mode == "batch" else None)
    data = b"".join(t.numpy().tobytes() for rows in found.values() for t in rows)
    print(hashlib.sha256(data).hexdigest(), flush=True)


@contextmanager
def gate(folder, kind):
    """Shut while somebody holds it with LOCK_EX."""
    with folder.with_suffix(".gate").open("w") as file:
        fcntl.flock(file, kind)
        yield


def line(process):
    return process.stdout.readline().strip()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(saved):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()


@pytest.mark.parametrize("mode", ["batch", "write"])
def test_what_a_killed_process_has_computed_is_not_computed_again(
    mode, saved, loaded, fresh, tmp_path
):
    with gate(tmp_path, fcntl.LOCK_EX):
        process = start(saved, tmp_path, mode)
        assert line(process) == "here"
        process.send_signal(signal.SIGKILL)
        process.wait()
    left = [path for path in files(tmp_path) if path.name.startswith(".")]
    assert len(left) == (mode == "write")
    done = [path for path in files(tmp_path) if path.suffix == ".safetensors"]
    assert done
    before = {path: path.read_bytes() for path in done}
    batches, _ = forwards(loaded, False)
    count, found = forwards(loaded, tmp_path)
    assert count == batches - len(done)
    assert same(found, fresh)
    assert {path: path.read_bytes() for path in done} == before
    # What the killed writer left is gone with the next who opens the cache.
    assert not [path for path in files(tmp_path) if path.name.startswith(".")]


def test_two_processes_write_one_cache(saved, loaded, fresh, tmp_path):
    with gate(tmp_path, fcntl.LOCK_EX):
        both = [start(saved, tmp_path, "race") for _ in range(2)]
        assert [line(process) for process in both] == ["here", "here"]
    sums = [line(process) for process in both]
    assert [process.wait() for process in both] == [0, 0]
    data = b"".join(t.numpy().tobytes() for rows in fresh.values() for t in rows)
    assert sums == [hashlib.sha256(data).hexdigest()] * 2
    assert not [path for path in files(tmp_path) if path.name.startswith(".")]
    count, found = forwards(loaded, tmp_path)
    assert count == 0
    assert same(found, fresh)


# ---- what is kept


def test_a_file_holds_a_batch_and_the_list_tells_what_is_there(tmp_path):
    net = model()
    read(net, tmp_path, [0, 2])
    read(net, tmp_path, [1], tokens="mean")
    names = [path for path in files(tmp_path) if path.name != MODEL]
    assert sum(len(load_file(path).get("2", ())) for path in names) == 40
    (one,) = cached_models(tmp_path)
    assert one.name == "LlamaForCausalLM"
    assert one.key == fingerprint(net)
    assert one.layers == {"residual-last": [0, 2], "residual-mean": [1]}
    assert one.rows == 80
    assert one.size == sum(path.stat().st_size for path in names)


def test_what_was_used_least_lately_goes_first(tmp_path, monkeypatch):
    net = model()
    read(net, tmp_path, [0])
    read(net, tmp_path, [1])
    for path in files(tmp_path):
        os.utime(path, (1e9, 1e9))
    read(net, tmp_path, [0])  # used
    (one,) = cached_models(tmp_path)
    monkeypatch.setenv("ODESTEER_CACHE_GB", str(0.6 * one.size / 1e9))
    read(net, tmp_path, [0])  # nothing is written, so nothing has to go
    assert cached_models(tmp_path)[0].size == one.size
    trim(tmp_path, int(0.6 * one.size))
    assert cached_models(tmp_path)[0].layers["residual-last"][0] == 0
    count, _ = forwards(net, tmp_path, [0])
    assert count == 0
    read(net, tmp_path, [3])
    assert cached_models(tmp_path)[0].size <= 0.6 * one.size


def test_a_size_that_is_no_number_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ODESTEER_CACHE_GB", "large")
    with pytest.raises(ValueError, match="ODESTEER_CACHE_GB is a number of gigabytes; got 'large'"):
        read(model(), tmp_path)
    assert not files(tmp_path)


def test_only_what_a_cache_wrote_is_removed(tmp_path):
    read(model(), tmp_path)
    read(model(seed=1), tmp_path)
    key = fingerprint(model())
    mine = [tmp_path / "notes.txt", tmp_path / key / "notes.txt", tmp_path / "results" / "a.txt"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert remove(tmp_path, older_than=1) == (0, 0)
    assert remove(tmp_path, model="nobody/nothing") == (0, 0)
    count, size = remove(tmp_path, model=key[:8])
    assert count > 5
    assert size > 0
    (left,) = cached_models(tmp_path)[:1]
    assert left.key == fingerprint(model(seed=1))
    for path in files(tmp_path):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    assert remove(tmp_path, older_than=1)[0] > 5
    assert [path.read_text() for path in mine] == ["mine"] * 3
    assert not [path for path in files(tmp_path) if path.suffix == ".safetensors"]


def test_true_is_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ODESTEER_CACHE", str(tmp_path))
    read(model(), True)
    assert cached_models(tmp_path / "activations")


def test_who_has_no_home_computes_without_a_cache(fresh, loaded, monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("ODESTEER_CACHE", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.warns(UserWarning, match="not cached: .*no home directory.*ODESTEER_CACHE"):
        assert same(read(loaded, True), fresh)


def test_a_cache_that_is_emptied_meanwhile_goes_on(tmp_path, monkeypatch, recwarn):
    from odesteer.extraction import cache as module

    whole, emptied = module.write_whole, []

    def write(path, payload, **settings):
        if path.suffix == ".safetensors" and not emptied:
            emptied.append(remove(tmp_path))
        whole(path, payload, **settings)

    monkeypatch.setattr(module, "write_whole", write)
    read(model(), tmp_path)
    assert emptied and not [one for one in recwarn if "not cached" in str(one.message)]
    assert len([path for path in files(tmp_path) if path.suffix == ".safetensors"]) > 1
