"""Shards are the same to the bit whoever computed them, and hold every text once."""

import json
import signal
from pathlib import Path

import pytest
import torch
from tests.extraction.shards.conftest import LAYERS, ROWS, equal, start
from tests.helpers import models as tiny

import odesteer as ods
from odesteer.common.jobs import Claim
from odesteer.extraction.shards import ShardFolder, parts
from odesteer.extraction.tokenize import Tokens
from odesteer.models.loading import load_model


@pytest.fixture
def once(model: str, contrast: ods.Contrast, tmp_path: Path) -> ods.Shards:
    """What a single process computes."""
    return ods.extract_shards(model, contrast, LAYERS, tmp_path / "once", rows_per_shard=ROWS)


@pytest.mark.parametrize(
    ("n", "m", "rows"), [(20, 24, 12), (1, 1, 2), (1, 9, 2), (7, 7, 100), (1000, 3, 8)]
)
def test_every_text_is_in_one_shard_and_both_classes_in_each(n: int, m: int, rows: int) -> None:
    plan = parts(n, m, rows)
    assert [i for part in plan for i in part.positive] == list(range(n))
    assert [i for part in plan for i in part.negative] == list(range(m))
    assert all(part.positive and part.negative for part in plan)
    assert all(part.weight <= rows + 1 for part in plan) or len(plan) == min(n, m)


def test_a_shard_is_what_activations_gives_of_its_texts(
    once: ods.Shards, model: str, contrast: ods.Contrast
) -> None:
    net, tokenizer = load_model(model)
    assert len(once) == once.computed == 4
    for shard in once:
        texts = ods.Contrast(
            tuple(contrast.positive[i] for i in shard.positive),
            tuple(contrast.negative[i] for i in shard.negative),
        )
        expected = ods.activations(net, tokenizer, texts, LAYERS)
        for layer, (positive, negative) in shard.layers.items():
            assert torch.equal(positive, expected[layer][0])
            assert torch.equal(negative, expected[layer][1])


@pytest.mark.parametrize("tokens", ["last", "mean", "response", "prompt"])
def test_one_shard_of_all_is_what_activations_gives(
    model: str, contrast: ods.Contrast, tmp_path: Path, tokens: Tokens
) -> None:
    loaded = load_model(model)
    shards = ods.extract_shards(loaded, contrast, [-1, 1], tmp_path / "all", tokens=tokens)
    expected = ods.activations(*loaded, contrast, [1, -1], tokens=tokens)
    by_layer = shards.load()
    assert list(by_layer) == [1, tiny.DEPTH - 1]
    for layer, classes in expected.items():
        assert all(map(torch.equal, by_layer[layer], classes))
        assert all(map(torch.equal, shards.load(layer), classes))


def test_what_is_loaded_is_fitted_on(once: ods.Shards, contrast: ods.Contrast) -> None:
    positive, negative = once.load(2)
    assert (len(positive), len(negative)) == once.sizes == (20, 24)
    assert positive.dtype == torch.float32
    assert ods.CAA().fit(positive, negative, layer=2, groups=contrast.groups).layer == 2


def test_killed_before_and_after_a_shard_is_whole_it_goes_on(
    once: ods.Shards, model: str, file: Path, contrast: ods.Contrast, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    for kill_at, when, whole in ((1, "whole", 1), (2, "cut off", 2)):
        process = start(model, file, folder, kill_at=kill_at, when=when)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert len(list((folder / "shards").glob("[0-9]*"))) == whole
        left = [path for path in (folder / "shards").iterdir() if path.name.startswith(".")]
        assert len(left) == (when == "cut off")
    again = ods.extract_shards(model, contrast, LAYERS, folder, rows_per_shard=ROWS)
    assert again.computed == 2
    assert equal(once.path, folder)  # nothing is left of what was cut off, either
    assert ods.extract_shards(model, contrast, LAYERS, folder, rows_per_shard=ROWS).computed == 0


def test_two_processes_share_a_directory(
    once: ods.Shards, model: str, file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "shared"
    pair = [start(model, file, folder), start(model, file, folder)]
    outputs = [process.communicate() for process in pair]
    assert [process.returncode for process in pair] == [0, 0]
    assert all(output.split()[-1] == "44" for output in outputs)  # both wait for all
    assert equal(once.path, folder)
    assert not list((folder / "claims").iterdir())


def test_what_another_process_is_at_is_left_to_it(
    once: ods.Shards, model: str, file: Path, tmp_path: Path
) -> None:
    folder = ShardFolder(tmp_path / "shared")
    (folder.path / "claims").mkdir(parents=True)
    claim = Claim.take(folder.path / "claims" / "0")
    assert claim is not None
    process = start(model, file, folder.path)
    with claim:
        others = sum(part.weight for part in once.parts[1:])
        assert any(int(line) == others for line in process.stdout)
        assert not folder.part(0).exists()
    process.communicate()
    assert process.returncode == 0
    assert equal(once.path, folder.path)


def test_whoever_joins_computes_with_as_many_threads(
    once: ods.Shards, model: str, contrast: ods.Contrast
) -> None:
    assert once.about["threads"] == 1
    (once.path / "shards" / "00001.safetensors").unlink()
    torch.set_num_threads(2)
    again = ods.extract_shards(model, contrast, LAYERS, once.path, rows_per_shard=ROWS)
    assert again.computed == 1 and torch.get_num_threads() == 2
    for layer, classes in once.load().items():
        assert all(map(torch.equal, again.load(layer), classes))


def test_another_extraction_is_refused_with_what_differs(
    once: ods.Shards, model: str, contrast: ods.Contrast
) -> None:
    def extract(net: object = model, texts: ods.Contrast = contrast, **others: object) -> None:
        options: dict[str, object] = {"layer": LAYERS, "rows_per_shard": ROWS, **others}
        ods.extract_shards(net, texts, out=once.path, **options)  # type: ignore[arg-type]

    again = r"holds another extraction: it differs in {}.*Choose another --out"
    with pytest.raises(ValueError, match=again.format(r"layers \(there \[1, 2\], here \[1\]\)")):
        extract(layer=1)
    with pytest.raises(ValueError, match=again.format(r"layers \(there \[1, 2\], here \[2, 3\]")):
        extract(layer=[-1, -2])
    with pytest.raises(ValueError, match=again.format(r"contrast\.")):
        extract(texts=ods.Contrast(contrast.positive[:-1], contrast.negative))
    with pytest.raises(ValueError, match=again.format(r"tokens \(there 'last', here 'mean'\)")):
        extract(tokens="mean")
    with pytest.raises(ValueError, match=again.format("rows_per_shard")):
        extract(rows_per_shard=10)
    with pytest.raises(ValueError, match=again.format("tokenizer")):
        extract(net=(load_model(model)[0], tiny.tokenizer(chat=False)))
    net, tokenizer = load_model(model)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] += 1.0
    with pytest.raises(ValueError, match=again.format("model_fingerprint")):
        extract(net=(net, tokenizer))
    assert equal(once.path, once.path) and len(list(once)) == 4


def test_a_damaged_or_foreign_shard_is_computed_again(
    once: ods.Shards, model: str, contrast: ods.Contrast, tmp_path: Path
) -> None:
    whole = ods.extract_shards(model, contrast, LAYERS, tmp_path / "whole", rows_per_shard=ROWS)
    other = ods.extract_shards(model, contrast, [1], tmp_path / "other", rows_per_shard=ROWS)
    first, second, third, _ = sorted((once.path / "shards").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    second.write_bytes((other.path / "shards" / second.name).read_bytes())
    third.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"has 1 of 4 shards; 00000\.safetensors is missing, cut"):
        ods.Shards.open(once.path)
    again = ods.extract_shards(model, contrast, LAYERS, once.path, rows_per_shard=ROWS)
    assert again.computed == 3
    assert equal(whole.path, once.path)


def test_a_changed_number_is_noticed_where_it_is_read(once: ods.Shards) -> None:
    path = once.path / "shards" / "00002.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    shards = ods.Shards.open(once.path)
    with pytest.raises(ValueError, match=r"00002\.safetensors' is damaged.*Remove it"):
        shards.load()


def test_what_cannot_be_is_said(
    once: ods.Shards, model: str, contrast: ods.Contrast, tmp_path: Path
) -> None:
    loaded = load_model(model)
    out = tmp_path / "none"
    with pytest.raises(ValueError, match=r"layers 1, 2; got 3"):
        once.load(3)
    with pytest.raises(FileNotFoundError, match=r"No activations at '.*none'"):
        ods.Shards.open(out)
    with pytest.raises(ValueError, match="layer is an empty list"):
        ods.extract_shards(loaded, contrast, [], out)
    with pytest.raises(ValueError, match="at least one positive and one negative"):
        ods.extract_shards(loaded, contrast, 1, out, rows_per_shard=1)
    with pytest.raises(ValueError, match="give its name or directory"):
        ods.extract_shards(loaded, contrast, 1, out, engine="ray")
    with (
        tiny.constant().attach(loaded[0]),
        pytest.raises(ValueError, match="carries a forward hook"),
    ):
        ods.extract_shards(loaded, contrast, 1, out)
    assert not out.exists()
    for nonsense in ("{", "[]"):
        (once.path / "extraction.json").write_text(nonsense)
        with pytest.raises(ValueError, match=r"extraction\.json' cannot be read: it is damaged"):
            ods.extract_shards(loaded, contrast, 1, once.path)
        with pytest.raises(ValueError, match=r"extraction\.json' cannot be used"):
            ods.Shards.open(once.path)
    (once.path / "extraction.json").unlink()
    with pytest.raises(ValueError, match=r"holds shards and no extraction\.json"):
        ods.extract_shards(loaded, contrast, 1, once.path)


def test_texts_that_are_cut_are_counted(model: str, contrast: ods.Contrast, tmp_path: Path) -> None:
    short = ods.extract_shards(
        load_model(model), contrast, 1, tmp_path / "short", max_tokens=20, rows_per_shard=ROWS
    )
    with pytest.warns(UserWarning, match=f"{short.truncated} of 44 texts are longer"):
        ods.activations(*load_model(model), contrast, 1, max_tokens=20)
    assert json.loads((short.path / "extraction.json").read_text())["max_tokens"] == 20
