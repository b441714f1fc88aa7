"""The gallery: shares at equal displacement, and one picture of it."""

import json
from pathlib import Path

import pytest
import torch
from experiments.gallery import measure as gallery
from experiments.gallery.measure import Scene
from experiments.gallery.plot import gallery_figure
from experiments.gallery.result import DOSES, PERFECT, SHOWN, UNSTEERED, Gallery
from experiments.gallery.toy_data import PLANES
from PIL import Image

from odesteer.methods import METHODS, NoSteering, PaperODESteer
from odesteer.ode import Time

POINTS = 60


@pytest.fixture(scope="module")
def result() -> Gallery:
    return gallery.run(["caa", "repe", "mimic", "odesteer-gaussian"], points=POINTS)


def test_it_holds_every_method_plane_and_dose(result: Gallery) -> None:
    assert result.methods == [UNSTEERED, "caa", "repe", "mimic", "odesteer-gaussian", PERFECT]
    assert len(result.outcomes) == len(result.methods) * len(PLANES) * len(DOSES)
    assert all(outcome.share.n == POINTS for outcome in result.outcomes)


@pytest.mark.parametrize("plane", PLANES)
def test_an_outcome_can_be_measured_again(result: Gallery, plane: str) -> None:
    scene = Scene.draw(PLANES[plane], POINTS, 0)
    unit = float(PLANES[plane].distance(scene.held_out[:, :2]).mean())
    assert result.distances[plane] == pytest.approx(unit)
    for name in ("mimic", "odesteer-gaussian"):
        steering = gallery.fit(METHODS[name](), scene)
        for dose in DOSES:
            outcome = result.outcome(name, plane, dose)
            assert outcome.strength is not None
            moved = steering.with_strength(Time(outcome.strength))(scene.held_out)
            length = float((moved - scene.held_out).norm(dim=-1).mean())
            assert length == pytest.approx(outcome.moved * unit, rel=1e-4)
            assert outcome.falls_short or length == pytest.approx(dose * unit, rel=1e-2)
            arrived = PLANES[plane].desired(moved[:, :2]).float().mean()
            assert outcome.share.mean == pytest.approx(float(arrived))


def test_a_map_that_ends_before_the_dose_says_so(result: Gallery) -> None:
    # MiMiC's gate, a linear probe, opens for half of a ring: the whole map is not enough.
    outcome = result.outcome("mimic", "rings", 3.0)
    assert outcome.falls_short and outcome.strength == 1.0 and outcome.moved < 3.0


def test_no_effect_is_the_unsteered_share(monkeypatch: pytest.MonkeyPatch) -> None:
    class Still(NoSteering):
        name = "still"

    monkeypatch.setitem(METHODS, "still", Still)
    result = gallery.run(["still"], points=POINTS)
    for plane in PLANES:
        for dose in DOSES:
            still = result.outcome("still", plane, dose)
            assert still.share == result.outcome(UNSTEERED, plane, dose).share
            assert still.moved == 0.0 and still.falls_short


def test_nobody_beats_the_best_possible(result: Gallery) -> None:
    for outcome in result.outcomes:
        best = result.outcome(PERFECT, outcome.plane, outcome.dose)
        assert best.share.mean == 1.0 and outcome.share.mean <= best.share.mean
        assert best.moved == pytest.approx(1.0, abs=1e-3)


def test_the_best_possible_spends_the_displacement_on_the_nearest() -> None:
    scene = Scene.draw(PLANES["rings"], POINTS, 0)
    distance = scene.distance.sort().values
    half = gallery._perfect("rings", 0.5, scene)
    count = round(half.share.mean * POINTS)
    budget = 0.5 * distance.sum()
    assert distance[:count].sum() <= 1.001 * budget < distance[: count + 1].sum() * 1.001


def test_tracks_start_at_held_out_negatives_and_end_where_they_are_steered(
    result: Gallery,
) -> None:
    scene = Scene.draw(PLANES["gaussians"], POINTS, 0)
    for name in ("mimic", "odesteer-gaussian"):
        tracks = torch.as_tensor(result.panels[name, "gaussians"].tracks)
        nearest = torch.cdist(tracks[0], scene.held_out[:, :2]).min(dim=1)
        assert (nearest.values < 1e-3).all()  # cdist rounds
        strength = result.outcome(name, "gaussians", SHOWN).strength
        assert strength is not None
        steering = gallery.fit(METHODS[name](), scene).with_strength(Time(strength))
        ends = steering(scene.held_out[nearest.indices])[:, :2]
        assert torch.allclose(tracks[-1], ends, atol=1e-5)


def test_a_sketch_of_few_buckets_stands_for_one_of_many() -> None:
    scene = Scene.draw(PLANES["moons"], POINTS, 0)
    many = PaperODESteer().fit(scene.positive, scene.negative, calibrate=False)
    few = gallery.fit(PaperODESteer(), scene)
    directions = many.field(scene.held_out), few.field(scene.held_out)
    assert torch.cosine_similarity(*directions, dim=-1).min() > 0.999


def test_the_table_is_written_as_json(result: Gallery, tmp_path: Path) -> None:
    result.save(tmp_path / "gallery.json")
    tree = json.loads((tmp_path / "gallery.json").read_text())
    assert tree == json.loads(json.dumps(result.as_json()))
    assert len(tree["outcomes"]) == len(result.outcomes)


def test_the_figure_is_written_whole_or_not_at_all(
    result: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gallery.png"
    gallery_figure(result, path)
    assert [file.name for file in tmp_path.iterdir()] == ["gallery.png"]
    with Image.open(path) as image:
        image.load()
        assert image.width == 1800 and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    before = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("odesteer.common.files.os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        gallery_figure(result, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["gallery.png"]


def test_progress_ends_with_everything_done() -> None:
    seen: list[tuple[int, int]] = []
    gallery.run(["caa"], points=POINTS, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(PLANES), len(PLANES))


@pytest.mark.parametrize(
    ("names", "points", "words"),
    [
        (["cca"], 100, "Did you mean 'caa'"),
        (["iti-heads"], 100, "attention heads"),
        (["none"], 100, "name a method"),
        (["caa"], 3, "at least 40"),
    ],
)
def test_what_cannot_be_drawn_is_refused(names: list[str], points: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gallery.run(names, points=points)
