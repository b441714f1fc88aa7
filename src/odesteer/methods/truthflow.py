"""TruthFlow: a correction of its own for each prompt, from a rectified flow.

    x0_i = a_i, last token of the prompt;  x1_i = positive_i - negative_i
    min over u of  E ||u((1 - s) x0_i + s x1_i, s) - (x1_i - x0_i)||^2,  s uniform on [0, 1]
    v(a) = B B^T (a + integral of u from 0 to 1),  B: top right singular vectors of x1

Source: Wang et al., "TruthFlow: Truthful LLM Generation via Representation Flow Correction",
ICML 2025, https://arxiv.org/abs/2502.04556
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from odesteer.methods.base import Method, MethodInfo
from odesteer.methods.samples import Progress, Samples
from odesteer.methods.training import Recipe, by_pair, hold_out, learning, train
from odesteer.ode import Dose, Hourglass, RectifiedField, VectorField

# Where the held-out loss is looked at: the same times after every epoch.
_TIMES = 4


@dataclass(frozen=True)
class TruthFlow(Method):
    """Adds the correction that a flow predicts from the prompt's last token.

    With `prompts`, v is decided once a prompt and added to every token. Without, x0 is the
    negative row itself and each activation predicts its own correction.

    A flow carries one distribution into another, noise included: where a prompt decides the
    correction, it finds it; where the corrections are mostly noise, it predicts one of them
    rather than their mean, which `CAA` takes (measured in docs/methods.md).

    Differences from the original, all for few pairs: prompts and corrections are each centred
    and divided by one number before the flow learns between them (a prompt is many times as
    long as a correction, and a small error of the one would drown the other); training makes
    at least `min_steps` steps, and keeps the epoch with the smallest loss on held-out pairs;
    the network normalises each row by itself (LayerNorm).

    Args:
        k: directions the correction may have; fewer where there are fewer pairs.
        points: of the midpoint rule.
        depth: how often the network halves its width.
        epochs, batch, lr, weight_decay: of AdamW with a cosine.
        patience: stop after so many epochs without a better held-out loss.
        min_steps: more epochs, and patience, if fewer steps than that would be made.
        seed: of the weights, the shuffling and the held-out fifth of the pairs.
    """

    name: ClassVar[str] = "truthflow"
    needs_pairs: ClassVar[bool] = True
    tokens: ClassVar[str] = "response"
    reads_prompts: ClassVar[bool] = True
    default_strength: ClassVar[Dose | float] = 1.5
    facts: ClassVar[MethodInfo] = MethodInfo(
        field="correction predicted from the prompt's last token by a rectified flow",
        barrier="-",
        exact="straight line, one Euler step",
        strength="alpha, 1 is the whole correction",
        source="Wang et al., ICML 2025, arXiv 2502.04556",
    )

    k: int = 20
    points: int = 16
    depth: int = 4
    epochs: int = 100
    batch: int = 64
    lr: float = 1e-4
    weight_decay: float = 0.01
    patience: int = 20
    min_steps: int = 2000
    seed: int = 0

    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        return self.fit_samples(Samples(positive, negative))

    def fit_samples(self, samples: Samples, progress: Progress | None = None) -> VectorField:
        samples = by_pair(samples)
        with learning():
            generator = torch.Generator().manual_seed(self.seed)
            n = len(samples.positive)
            # A pair is in the half in which its positive is.
            fit, test = (side[side < n] for side in hold_out(samples, seed=self.seed))
            corrections = (samples.positive - samples.negative).float()
            prompts = (samples.negative if samples.prompts is None else samples.prompts).float()
            prompts, centre, scale = _standardised(prompts, fit)
            targets, mean, spread = _standardised(corrections, fit)
            flow = Hourglass.draw(prompts.shape[1], self.depth, generator).to(prompts.device)

            def loss(index: Tensor, time: Tensor) -> Tensor:
                start, end = prompts[index], targets[index]
                at = (1.0 - time) * start + time * end
                return (flow(at, time) - (end - start)).square().mean()

            def sampled(index: Tensor) -> Tensor:
                return loss(index, _uniform(len(index), generator).to(prompts))

            def score() -> float:
                times = (torch.arange(_TIMES).to(prompts) + 0.5) / _TIMES
                time = times.repeat_interleave(len(test)).unsqueeze(1)
                return -float(loss(test.repeat(_TIMES), time))

            recipe = Recipe(
                self.epochs,
                self.batch,
                self.lr,
                weight_decay=self.weight_decay,
                cosine=True,
                patience=self.patience,
            )
            train(
                list(flow.buffers()),
                sampled,
                fit,
                recipe.for_steps(self.min_steps, len(fit)),
                generator,
                score=score,
                progress=progress,
            )
            basis = torch.linalg.svd(corrections, full_matrices=False).Vh[: self.k].mT.contiguous()
            field = RectifiedField(
                flow,
                centre,
                scale,
                mean,
                spread,
                basis,
                self.points,
                prompt_conditioned=samples.prompts is not None,
            )
            return field.to(samples.positive.dtype)


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    return torch.rand(n, 1, generator=generator, dtype=torch.float32)


def _standardised(rows: Tensor, fit: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows - centre) / scale, centre [d], scale []: of the rows at `fit`."""
    centre = rows[fit].mean(dim=0)
    scale = (rows[fit] - centre).square().mean().sqrt()
    # Corrections that are all alike have no spread.
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (rows - centre) / scale, centre, scale
