"""ITI on heads: are the heads that know the ones that move?"""

import pytest
import torch

from odesteer import HeadITI

HEADS, WIDTH = 6, 4


def rows(n, informed, seed=0, size=1.5):
    """Head outputs side by side; each informed head has the classes `size` apart."""
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(2, n, HEADS, WIDTH, generator=generator, dtype=torch.float64)
    for head in informed:
        both[0, :, head, head % WIDTH] += size
    return both[0].flatten(1), both[1].flatten(1)


def test_the_informed_heads_are_chosen_and_only_they_move():
    method = HeadITI(num_heads=2, head_dim=WIDTH)
    steering = method.fit(*rows(200, informed=(1, 4)))
    assert steering.hyperparameters["heads"] == (1, 4)
    assert steering.site == "heads"
    velocity = steering.field.direction.reshape(HEADS, WIDTH)
    assert velocity.any(dim=-1).tolist() == [False, True, False, False, True, False]


def test_each_head_moves_along_its_mean_difference_by_its_own_spread():
    positive, negative = rows(300, informed=(2,), size=2.0)
    field = HeadITI(num_heads=1, head_dim=WIDTH, heads=(2,)).fit_field(positive, negative)
    velocity = field.direction.reshape(HEADS, WIDTH)[2]
    above, below = (part.reshape(-1, HEADS, WIDTH)[:, 2] for part in (positive, negative))
    unit = torch.nn.functional.normalize(above.mean(dim=0) - below.mean(dim=0), dim=0)
    spread = (torch.cat([above, below]) @ unit).std(correction=0)
    torch.testing.assert_close(velocity, spread * unit)


def test_the_probe_direction_is_an_option():
    positive, negative = rows(300, informed=(2,), size=2.0)
    for probe in (False, True):
        field = HeadITI(head_dim=WIDTH, heads=(2,), probe=probe).fit_field(positive, negative)
        velocity = field.direction.reshape(HEADS, WIDTH)[2]
        assert int(velocity.abs().argmax()) == 2
        assert float(velocity[2]) > 0


def test_over_layers_the_best_heads_are_chosen_together_and_idle_layers_left_out():
    groups = (range(200), range(200))
    data = {
        3: rows(200, informed=(0, 1), seed=1),
        5: rows(200, informed=(), seed=2),
        7: rows(200, informed=(5,), seed=3),
    }
    methods = HeadITI(num_heads=3, head_dim=WIDTH).choose_layers(data, groups, seed=0)
    assert {layer: m.heads for layer, m in methods.items()} == {3: (0, 1), 7: (5,)}


def test_a_width_that_is_no_multiple_of_the_head_is_refused():
    with pytest.raises(ValueError, match=r"iti-heads reads heads of width 5.*24"):
        HeadITI(head_dim=5).fit(*rows(20, informed=()))
