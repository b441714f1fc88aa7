"""Does TruthFlow predict the correction of a prompt it has not seen?"""

import pytest
import torch
from tests.helpers.models import two_gaussians
from torch import Tensor
from torch.nn.functional import cosine_similarity

from odesteer import Steering, Target, TruthFlow

D = 48
QUICK = TruthFlow(lr=1e-3, min_steps=400)


def planted(kind: str, n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Positives, negatives, prompts and true corrections [n, D].

    Prompts are several times as long as corrections and vary in 12 directions; answers
    differ by the prompt's correction and a little noise.
    """
    world = torch.Generator().manual_seed(0)
    directions = torch.randn(12, D, generator=world)
    centre, one, other = 3.0 * torch.randn(3, D, generator=world)
    mixing = torch.randn(3, D, generator=world)
    generator = torch.Generator().manual_seed(seed + 1)
    z = torch.randn(n, 12, generator=generator)
    # Two kinds of prompts, well apart.
    kinds = torch.where(z[:, :1] > 0, 1.0, -1.0)
    prompts = 3 * centre + 2 * z @ directions + 6 * kinds * directions[0]
    correction = {
        "constant": (one / 3).expand(n, D),
        "by kind": torch.where(kinds > 0, one, other) / 3,
        "linear": one / 3 + z[:, 1:4] @ mixing,
    }[kind]
    negative = prompts + torch.randn(n, D, generator=generator)
    noise = 0.2 * torch.randn(n, D, generator=generator)
    return negative + correction + noise, negative, prompts, correction


@pytest.mark.parametrize(
    ("kind", "n", "least"),
    [
        ("constant", 60, 0.93),
        ("by kind", 60, 0.85),
        ("linear", 60, 0.75),
        ("constant", 500, 0.97),
        ("by kind", 500, 0.95),
        ("linear", 500, 0.93),
    ],
)
def test_known_corrections_are_predicted_for_fresh_prompts(kind: str, n: int, least: float) -> None:
    positive, negative, prompts, _ = planted(kind, n)
    steering = QUICK.fit(positive, negative, prompts=prompts)
    assert steering.field.prompt_conditioned
    _, _, fresh, truth = planted(kind, 300, seed=1)
    predicted = steering.only.velocity(fresh)
    assert cosine_similarity(predicted, truth, dim=-1).mean() > least
    assert 0.8 < predicted.norm(dim=-1).mean() / truth.norm(dim=-1).mean() < 1.2


def test_without_prompts_each_negative_predicts_its_own_correction() -> None:
    positive, negative, _, _ = planted("by kind", 300)
    steering = QUICK.fit(positive, negative)
    assert not steering.field.prompt_conditioned
    _, fresh, _, truth = planted("by kind", 300, seed=1)
    moved = steering.with_strength(1.0)(fresh) - fresh
    assert cosine_similarity(moved, truth, dim=-1).mean() > 0.9
    assert cosine_similarity(steering(fresh) - fresh, moved, dim=-1).min() > 1 - 1e-5
    torch.testing.assert_close(steering(fresh) - fresh, 1.5 * moved, atol=1e-4, rtol=1e-4)


def test_the_correction_lies_in_the_main_directions_of_the_pairs() -> None:
    positive, negative, prompts, _ = planted("linear", 100)
    field = TruthFlow(lr=1e-3, min_steps=50, k=3).fit(positive, negative, prompts=prompts).field
    basis = torch.linalg.svd(positive - negative, full_matrices=False).Vh[:3].mT
    v = field(prompts)
    torch.testing.assert_close(v @ basis @ basis.mT, v, atol=1e-3, rtol=1e-3)
    assert field.basis.shape == (D, 3)


def test_the_units_of_the_activations_do_not_matter() -> None:
    positive, negative, prompts, _ = planted("linear", 60)
    method = TruthFlow(lr=1e-3, min_steps=50)
    small = method.fit(positive, negative, prompts=prompts).only.velocity(prompts)
    large = method.fit(1024 * positive, 1024 * negative, prompts=1024 * prompts)
    torch.testing.assert_close(large.only.velocity(1024 * prompts), 1024 * small)


def test_training_stops_early_and_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    positive, negative, prompts, _ = planted("constant", 60)
    method = TruthFlow(lr=3e-3, patience=3, min_steps=1000)
    method.fit(positive, negative, prompts=prompts, progress=lambda *now: seen.append(now))
    total = seen[0][1]
    assert total == 1000
    assert len(seen) < total / 2
    assert seen[-1] == (total, total)


def test_the_same_seed_gives_the_same_tensors_whatever_the_global_state() -> None:
    method, data = TruthFlow(lr=1e-3, min_steps=50), two_gaussians(40, 40)
    before = torch.get_rng_state()
    one = method.fit(*data).field.state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(99)
        two = method.fit(*data).field.state_dict()
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_it_detects_nothing_and_says_so(tmp_path) -> None:
    positive, negative, prompts, _ = planted("constant", 60)
    steering = TruthFlow(min_steps=50).fit(positive, negative, prompts=prompts)
    with pytest.raises(ValueError, match="'truthflow' has no barrier"):
        steering.log_odds(negative)
    with pytest.raises(ValueError, match="no barrier"):
        steering.with_strength(Target(0.9, 1.0))(negative)
    loaded = Steering.from_pretrained(steering.save_pretrained(tmp_path / "it"))
    assert loaded.field.prompt_conditioned
    assert torch.equal(loaded.only.velocity(prompts), steering.only.velocity(prompts))


def test_unpaired_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="truthflow learns from pairs"):
        QUICK.fit(*two_gaussians(40, 30))
