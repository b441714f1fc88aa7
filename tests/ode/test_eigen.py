"""The largest eigenpairs are those of the whole decomposition."""

import pytest
import torch

from odesteer.ode import QuadraticBarrier, Whitening
from odesteer.ode.whitening import largest_eigenpairs

D = 600


def symmetric(eigenvalues, seed=0):
    generator = torch.Generator().manual_seed(seed)
    frame = torch.linalg.qr(torch.randn(D, D, generator=generator, dtype=torch.float64)).Q
    return (frame * eigenvalues) @ frame.mT


def power_law(exponent=2.0):
    """Both signs: the largest magnitudes are wanted."""
    signs = 1.0 - 2.0 * (torch.arange(D) % 3 == 1).double()
    return signs * torch.arange(1, D + 1).double() ** -exponent


@pytest.mark.parametrize("count", [1, 7, 12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_they_are_the_largest_in_magnitude_of_either_sign(count, dtype):
    eigenvalues = power_law()
    matrix = symmetric(eigenvalues).to(dtype)
    values, vectors = largest_eigenpairs(lambda x: matrix @ x, matrix, count)
    torch.testing.assert_close(values.double(), eigenvalues[:count], rtol=1e-5, atol=1e-5)
    eye = torch.eye(count, dtype=dtype)
    torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=1e-5)
    residual = (matrix @ vectors - vectors * values).norm(dim=0)
    assert bool((residual <= 2e-4 * values.abs() + 128 * torch.finfo(dtype).eps).all())


def test_a_flat_spectrum_is_left_to_the_whole_decomposition():
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(D, 2 * D, generator=generator, dtype=torch.float64)
    matrix = noise @ noise.mT / (2 * D)
    assert largest_eigenpairs(lambda x: matrix @ x, matrix, 60) is None


def test_a_matrix_of_lower_rank_than_asked_has_zeros():
    eigenvalues = torch.zeros(D).double()
    eigenvalues[:3] = torch.tensor([3.0, -2.0, 1.0])
    matrix = symmetric(eigenvalues)
    values, _ = largest_eigenpairs(lambda x: matrix @ x, matrix, 5)
    torch.testing.assert_close(values, eigenvalues[:5], rtol=0, atol=1e-10)


def test_the_same_matrix_gives_the_same_bits():
    matrix = symmetric(power_law())
    one, two = (largest_eigenpairs(lambda x: matrix @ x, matrix, 7) for _ in range(2))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])


@pytest.mark.parametrize("rank", [0, 3, 20])
def test_a_kernel_barrier_of_few_eigenvalues_is_the_truncated_whole_one(rank):
    generator = torch.Generator().manual_seed(2)
    support = torch.randn(400, D, generator=generator, dtype=torch.float64)
    support = support * torch.arange(1, D + 1) ** -0.7
    support = support / support.norm(dim=1, keepdim=True)
    weights = torch.randn(400, generator=generator, dtype=torch.float64)
    plain = Whitening(torch.zeros(D, dtype=torch.float64))
    whole = QuadraticBarrier.from_kernel(support, weights, 1.0, 1.0, 0.2, plain)
    few = QuadraticBarrier.from_kernel(support, weights, 1.0, 1.0, 0.2, plain, rank)
    a = torch.randn(50, D, generator=generator, dtype=torch.float64)
    assert few.basis.shape[1] == rank + 1
    torch.testing.assert_close(few.value(a), whole.truncated(rank).value(a), rtol=0, atol=1e-6)
