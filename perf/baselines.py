"""Baselines of the speed tables, written as leanly as torch allows.

Nobody should be faster than us because their code was written carelessly here: all that does
not depend on the activation is computed once, beforehand.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Rows that go through the transforms together on a CPU: fresh blocks of memory beyond a few MB
# cost more than the transforms (64 rows of 8,000 components: 20 ms together, 4 ms in parts).
_TOGETHER = 16


def fft_euler(
    index: Tensor, sign: Tensor, weight: Tensor, gamma: float, c0: float, T: float, steps: int
) -> Callable[[Tensor], Tensor]:
    """The paper's configuration: Euler steps along grad h / ||grad h||, phi's gradient by FFT.

        h(a) = weight . phi(a / ||a||),   phi the count sketch of z (x) z,
        z = [sqrt(gamma) a / ||a|| ; sqrt(c0)]

    Equals `odesteer.ode.SketchBarrier` under Euler's steps, whose equations are in
    `odesteer.ode.barriers.random_features`. For degree 2 the gradient is affine in a / ||a||: what
    the constant
    coordinate of z adds is computed once, and a step costs one real transform of two sketches
    there and one back. The conjugate that a correlation asks for is taken of the weight's
    spectrum, once, and undone by reading the result backwards.

    Args:
        index, sign: hashes, [2, d + 1].
        weight: w, [components].
        gamma, c0: of the kernel.
        T: path length.
        steps: of T / steps.

    Returns:
        a [n, d] -> a(T) [n, d], in the precision and on the device of `weight`.
    """
    if len(index) != 2:
        raise ValueError(f"fft_euler is for sketches of degree 2; got degree {len(index)}.")
    components, d = len(weight), index.shape[1] - 1
    sign = sign.to(weight)
    both = torch.arange(2, device=index.device).unsqueeze(1) * components
    into = (index[:, :d] + both).reshape(1, -1)
    # The gradient by one factor is read off the correlation of w with the other factor's sketch.
    out_of = ((-index.flip(0)[:, :d]) % components + both).reshape(1, -1)
    signs_in, signs_out = sign[:, :d], sign.flip(0)[:, :d]
    spectrum = torch.fft.rfft(weight).conj().resolve_conj()

    def by_factor(sketches: Tensor) -> Tensor:
        """The gradient by z of w . (the other's sketch): [n, 2 components] -> [n, d]."""
        spectra = torch.fft.rfft(sketches.view(-1, 2, components)).mul_(spectrum)
        pulls = torch.fft.irfft(spectra, n=components).view(-1, 2 * components)
        read = pulls.gather(1, out_of.expand(len(pulls), -1)).view(-1, 2, d)
        return read.mul_(signs_out).sum(dim=1)

    constant = weight.new_zeros(1, 2 * components)
    constant[0, index[:, d] + both[:, 0]] = math.sqrt(c0) * sign[:, d]
    offset = math.sqrt(gamma) * by_factor(constant)
    spectrum = gamma * spectrum  # sqrt(gamma) of z in, and of z out
    length = T / steps

    def steered(a: Tensor) -> Tensor:
        for _ in range(steps):
            sketches = a.new_zeros(len(a), 2 * components)
            signed = (a.unsqueeze(1) * signs_in).view(-1, 2 * d)
            sketches.scatter_add_(1, into.expand(len(a), -1), signed)
            norm = torch.linalg.vector_norm(a, dim=1, keepdim=True)
            gradient = torch.addcdiv(offset, by_factor(sketches), norm)
            radial = (gradient * a).sum(dim=1, keepdim=True) / norm.square()
            tangent = torch.addcmul(gradient, a, radial, value=-1.0)
            size = torch.linalg.vector_norm(tangent, dim=1, keepdim=True)
            a = torch.addcdiv(a, tangent, size, value=length)
        return a

    if weight.device.type != "cpu":
        return steered
    return lambda a: torch.cat([steered(part) for part in a.split(_TOGETHER)])
