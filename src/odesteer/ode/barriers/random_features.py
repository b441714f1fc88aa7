"""Random-feature barriers: polynomial count sketch and Fourier features.

Polynomial count-sketch barrier of the paper.

    h(a) = w . phi(a^) + b,   a^ = a / ||a||,   z = [sqrt(gamma) a^ ; sqrt(c0)]
    phi  = the count sketch of z (x) z (x) ... (degree factors), by FFT

The sketch approximates the polynomial kernel (gamma x . y + c0)^degree, with hash noise.

Source: Pham and Pagh, "Fast and scalable polynomial kernels via explicit feature maps",
KDD 2013, https://doi.org/10.1145/2487575.2487591; used in Zhao et al., "ODESteer",
ICLR 2026, https://arxiv.org/abs/2602.17560.

Random Fourier features.

    h(a) = w . phi(a) + b,   phi(a) = sqrt(2/D) cos(W a + offset)
    grad h = -sqrt(2/D) W^T (w * sin(W a + offset))

The rows of W are N(0, 1/bandwidth^2), so phi . phi approximates a Gaussian kernel.

Source: Rahimi and Recht, "Random Features for Large-Scale Kernel Machines", NeurIPS 2007,
https://papers.nips.cc/paper/3182-random-features-for-large-scale-kernel-machines.
"""

import math

import torch
from torch import Tensor

from odesteer.ode.barriers.base import Barrier, Sphere
from odesteer.ode.barriers.quadratic import QuadraticBarrier, unit_or_zero
from odesteer.ode.whitening import Whitening


class SketchBarrier(Barrier):
    """h(a) = weight . phi(a / ||a||) + bias with the polynomial count sketch phi.

    A value or a gradient costs degree + 1 FFTs of length `components`.

    Args:
        index: hash buckets, [degree, d + 1] int64 in 0..components-1.
        sign: hash signs, [degree, d + 1], each +1 or -1.
        weight: w, [components].
        bias: b, [] or a number; add log(n-/n+) for a density ratio.
        gamma: scale of the kernel.
        c0: offset of the kernel, >= 0.

    Raises:
        ValueError: if index and sign differ in shape.
    """

    def __init__(
        self,
        index: Tensor,
        sign: Tensor,
        weight: Tensor,
        bias: Tensor | float,
        gamma: float,
        c0: float,
    ):
        super().__init__()
        if index.shape != sign.shape:
            raise ValueError(
                f"SketchBarrier needs index and sign of one shape [degree, d + 1]; got "
                f"{list(index.shape)} and {list(sign.shape)}."
            )
        self.index: Tensor
        self.sign: Tensor
        self.weight: Tensor
        self.bias: Tensor
        self.register_buffer("index", index)
        self.register_buffer("sign", sign.to(weight.dtype))
        self.register_buffer("weight", weight)
        self.register_buffer("bias", torch.as_tensor(bias, dtype=weight.dtype))
        self.gamma = float(gamma)
        self.c0 = float(c0)

    @staticmethod
    def draw(
        d: int, degree: int, components: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw random hashes: index and sign, both [degree, d + 1]."""
        index = torch.randint(components, (degree, d + 1), generator=generator)
        sign = 2 * torch.randint(2, (degree, d + 1), generator=generator) - 1
        return index, sign

    def _spectra(self, unit: Tensor) -> list[Tensor]:
        """Return the FFT of each factor's count sketch, [..., components // 2 + 1]."""
        z = torch.cat(
            [
                math.sqrt(self.gamma) * unit,
                unit.new_full((*unit.shape[:-1], 1), math.sqrt(self.c0)),
            ],
            dim=-1,
        )
        spectra = []
        for index, sign in zip(self.index, self.sign, strict=True):
            buckets = z.new_zeros(*z.shape[:-1], self.weight.shape[0])
            spectra.append(torch.fft.rfft(buckets.index_add(-1, index, z * sign)))
        return spectra

    def features(self, a: Tensor) -> Tensor:
        """Evaluate phi(a / ||a||): [..., d] -> [..., components]."""
        spectra = self._spectra(_normalise(a)[0])
        product = torch.stack(spectra).prod(dim=0)
        return torch.fft.irfft(product, n=self.weight.shape[0])

    def value(self, a: Tensor) -> Tensor:
        return self.features(a) @ self.weight + self.bias

    def gradient(self, a: Tensor) -> Tensor:
        unit, norm = _normalise(a)
        spectra = self._spectra(unit)
        weight = torch.fft.rfft(self.weight)
        gradient = torch.zeros_like(unit)
        for factor, (index, sign) in enumerate(zip(self.index, self.sign, strict=True)):
            # d phi / d sketch_j is the circular convolution with the other factors; its
            # adjoint on w is the correlation, a conjugate in Fourier space.
            pull = weight.expand_as(spectra[0])
            for other, spectrum in enumerate(spectra):
                pull = pull if other == factor else pull * spectrum.conj()
            buckets = torch.fft.irfft(pull, n=self.weight.shape[0])
            gradient = gradient + (buckets[..., index] * sign)[..., :-1]
        gradient = math.sqrt(self.gamma) * gradient
        radial = (gradient * unit).sum(dim=-1, keepdim=True)
        return unit_or_zero(gradient - radial * unit, norm)

    def sphere(self, a: Tensor) -> Sphere:
        return Sphere(a, a.norm(dim=-1, keepdim=True))

    @property
    def spherical(self) -> bool:
        return True

    @property
    def width(self) -> int:
        return self.index.shape[1] - 1

    def quadratic(self) -> QuadraticBarrier:
        """Convert to an exact quadratic form; degree 2 only.

        w . phi = z^T M z with M_ij = s1(i) s2(j) w[(i1(i) + i2(j)) mod components].

        Raises:
            ValueError: if the degree is not 2.
        """
        if self.index.shape[0] != 2:
            raise ValueError(
                f"Only a sketch of degree 2 is a quadratic form; this one has degree "
                f"{self.index.shape[0]}."
            )
        bucket = (self.index[0][:, None] + self.index[1][None, :]) % self.weight.shape[0]
        m = self.sign[0][:, None] * self.sign[1][None, :] * self.weight[bucket]
        form = self.gamma * m[:-1, :-1]
        slope = math.sqrt(self.gamma * self.c0) * (m[:-1, -1] + m[-1, :-1])
        constant = self.c0 * m[-1, -1] + self.bias
        centre = Whitening(slope.new_zeros(slope.shape[0]))
        return QuadraticBarrier.from_form(form, slope, constant, centre)


def _normalise(a: Tensor) -> tuple[Tensor, Tensor]:
    norm = a.norm(dim=-1, keepdim=True)
    return unit_or_zero(a, norm), norm


class FourierBarrier(Barrier):
    """h(a) = coef . sqrt(2/D) cos(frequency a + offset) + bias.

    Args:
        frequency: W, [D, d].
        offset: [D], in 0..2 pi.
        coef: w, [D].
        bias: b, [] or a number.
    """

    def __init__(self, frequency: Tensor, offset: Tensor, coef: Tensor, bias: Tensor | float):
        super().__init__()
        self.frequency: Tensor
        self.offset: Tensor
        self.coef: Tensor
        self.bias: Tensor
        self.register_buffer("frequency", frequency)
        self.register_buffer("offset", offset)
        self.register_buffer("coef", coef)
        self.register_buffer("bias", torch.as_tensor(bias, dtype=coef.dtype))

    @property
    def _amplitude(self) -> float:
        return math.sqrt(2.0 / self.offset.shape[0])

    @property
    def width(self) -> int:
        return self.frequency.shape[1]

    def features(self, a: Tensor) -> Tensor:
        """Evaluate phi: [..., d] -> [..., D]."""
        return self._amplitude * torch.cos(a @ self.frequency.mT + self.offset)

    def value(self, a: Tensor) -> Tensor:
        return self.features(a) @ self.coef + self.bias

    def gradient(self, a: Tensor) -> Tensor:
        phase = torch.sin(a @ self.frequency.mT + self.offset)
        return -self._amplitude * (self.coef * phase) @ self.frequency

    def lipschitz(self) -> Tensor:
        """Return sqrt(2/D) sum_i |w_i| ||W_i||."""
        return self._amplitude * (self.coef.abs() * self.frequency.norm(dim=-1)).sum()

    def smoothness(self) -> Tensor:
        """Return sqrt(2/D) sum_i |w_i| ||W_i||^2."""
        return self._amplitude * (self.coef.abs() * self.frequency.square().sum(dim=-1)).sum()
