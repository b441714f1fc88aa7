"""Base class of methods.

A method learns a vector field from two matrices. Held-out calibration and the making of the
`Steering` are the same for all of them and live here; checking the data is in `samples`.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.methods.samples import Groups, Progress, Samples, checked
from odesteer.ode import Dose, VectorField
from odesteer.steering import Calibration, Steering
from odesteer.steering.calibration import BinaryQuality, binary_quality, reliability


class MethodInfo(NamedTuple):
    """A method's row in the table of all methods (`odesteer methods`).

    Attributes:
        field: v(a), as a formula.
        barrier: h(a), or "-" where the method has none.
        exact: what the exact flow of the field is.
        strength: what a plain number as strength means.
        source: authors, venue, year and link.
        keeps_norm: ||a|| stays what it was, to rounding, with the method's own solver.
    """

    field: str
    barrier: str
    exact: str
    strength: str
    source: str
    keeps_norm: bool = False


# Rows of the data whose probability is looked at before a fit is handed out.
CHECKED = 256
# Beyond, products of activations leave float32.
SMALLEST, LARGEST = 1e-15, 1e15


class FitResult(NamedTuple):
    """Fitted field, the method with its chosen hyperparameters, and its held-out values."""

    method: "Method"
    field: VectorField
    held_out: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Method(ABC):
    """Learns a field from positive and negative activations.

    Its fields are the hyperparameters, and nothing else is stored in it: `fit` returns a
    `Steering`. Subclasses say what they learn in `fit_field`, and may choose hyperparameters
    from the data in `select_hyperparameters`.

    Args:
        steps: fixed steps of the solver.
        solver: a name in `odesteer.ode.SOLVERS`.
    """

    name: ClassVar[str]
    facts: ClassVar[MethodInfo] = MethodInfo("not said", "-", "not said", "not said", "not said")
    default_strength: ClassVar[Dose | float] = 1.0
    # Row i of both classes answers the same prompt, and the method learns from that.
    needs_pairs: ClassVar[bool] = False
    # What of the model it learns from: the tokens pooled and the place, see `extraction`, and
    # whether it also reads the last prompt token's activation.
    tokens: ClassVar[str] = "last"
    site: ClassVar[str] = "residual"
    reads_prompts: ClassVar[bool] = False
    # At several layers, a later one learns from activations that the earlier ones have moved.
    incremental: ClassVar[bool] = False

    steps: int = 1
    solver: str = "euler"

    @abstractmethod
    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        """The field, from [n, d] and [m, d] in float64."""

    def fit_samples(self, samples: Samples, progress: Progress | None = None) -> VectorField:
        """The field, for methods that read more than two matrices or take long to learn."""
        return self.fit_field(samples.positive, samples.negative)

    def select_hyperparameters(self, samples: Samples) -> "Method":
        """The method with every hyperparameter that is left to the data chosen."""
        return self

    def fit_and_validate(
        self, samples: Samples, seed: int | None, progress: Progress | None = None
    ) -> FitResult:
        """Fit, and compute held-out values, in one go for methods in which both share work.

        The same as `select_hyperparameters`, `fit_samples` and `held_out_values` in a row.

        Args:
            samples: the data.
            seed: of the folds whose values are held out; None: none are wanted.
            progress: see `fit`.
        """
        method = self.select_hyperparameters(samples)
        field = method.fit_samples(samples, progress)
        if seed is None or field.barrier is None:
            return FitResult(method, field, None)
        return FitResult(method, field, method.held_out_values(samples, seed))

    def fit(
        self,
        positive: Tensor,
        negative: Tensor,
        *,
        layer: int | None = None,
        strength: Dose | float | None = None,
        groups: tuple[Groups, Groups] | None = None,
        rewards: tuple[Tensor, Tensor] | None = None,
        prompts: Tensor | None = None,
        calibrate: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Steering:
        """A steering from activations of the two classes.

        Args:
            positive: [n, d].
            negative: [m, d].
            layer: the decoder block they are the outputs of.
            strength: the dose; the method's own default where it is None.
            groups: which rows belong together (say, to one prompt), one sequence a class;
                without it row i of both classes belong together where n = m.
            rewards: graded labels [n] and [m]; only methods that say so read them.
            prompts: activations [n, d] of each pair's last prompt token; only methods that
                say so read them.
            calibrate: learn P(positive | a) from held-out values of the barrier (5 folds).
            seed: of the folds.
            progress: called with (steps done, steps in all) by methods that train.

        Raises:
            ValueError: naming the method, for shapes that do not match, an empty class, NaN
                or infinity, or unpaired rows where pairs are needed.
        """
        samples = self.check(positive, negative, groups, rewards, prompts)
        try:
            method, learnt, held_out = self.fit_and_validate(
                samples, seed if calibrate else None, progress
            )
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if not _is_out_of_scale(samples):
                raise
            reason = str(error).partition("\n")[0].rstrip(".")
            raise _overflow(self.name, samples, reason) from error
        # What is learnt lives where activations come from, in the precision it is used in.
        field = learnt.to(positive.device, torch.float32)
        calibration = Calibration()
        receipts: dict[str, Any] = {"rows": [len(positive), len(negative)]}
        if held_out is not None:
            if not np.isfinite(held_out[0]).all():
                raise _overflow(self.name, samples, "its barrier on held-out rows is not finite")
            calibration, quality = platt(*held_out, name=self.name)
            values, labels = held_out
            log_odds = calibration.scale * values + calibration.offset
            curve = [
                {key: round(value, 4) for key, value in each._asdict().items()}
                for each in reliability(log_odds, labels, balanced=True)
            ]
            receipts |= {"held_out": quality._asdict(), "reliability": curve}
        steering = Steering(
            field=field,
            strength=self.default_strength if strength is None else strength,
            solver=self.solver,
            steps=self.steps,
            layer=layer,
            method=self.name,
            hyperparameters=asdict(method),
            calibration=calibration,
            receipts=receipts,
            site=self.site,
        )
        unusable = _unusable(steering, samples)
        if unusable is not None:
            raise _overflow(self.name, samples, unusable)
        return steering

    def for_model(self, head_width: int | None) -> "Method":
        """The method with what it must know of the model."""
        return self

    def choose_layers(
        self, data: dict[int, tuple[Tensor, Tensor]], groups: tuple[Groups, Groups], seed: int
    ) -> "dict[int, Method]":
        """The method to fit at each layer, where several are read and some may be left out."""
        return dict.fromkeys(data, self)

    def held_out_values(
        self, samples: Samples, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """h of every row by a field learnt without its group, and its label.

        None where the data cannot be split, or the method has no barrier.
        """
        values, labels = [], []
        for fit, test in samples.folds(5, seed):
            field = self.fit_samples(samples.subset(fit))
            if field.barrier is None:
                return None
            values.append(field.barrier.value(samples.rows[test]).detach().cpu().numpy())
            labels.append(samples.labels[test])
        return (np.concatenate(values), np.concatenate(labels)) if values else None

    def check(
        self,
        positive: Tensor,
        negative: Tensor,
        groups: tuple[Groups, Groups] | None = None,
        rewards: tuple[Tensor, Tensor] | None = None,
        prompts: Tensor | None = None,
    ) -> Samples:
        """The data in float64, or a ValueError that says what is wrong with it."""
        return checked(self.name, self.needs_pairs, positive, negative, groups, rewards, prompts)


def _unusable(steering: Steering, samples: Samples) -> str | None:
    """What is not finite in the precision that the steering is used in, if anything is."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in steering.field.buffers()):
        return "what it learnt is not finite"
    classes = samples.positive, samples.negative
    step = max(1, sum(map(len, classes)) // CHECKED)
    # Some of those learnt from, and one of ordinary size.
    some = torch.cat([rows[::step].float() for rows in classes])
    some = torch.cat([some, torch.ones_like(some[:1])])
    if steering.field.barrier is not None:
        unknown = int((~torch.isfinite(steering.probability(some))).sum())
        if unknown:
            return f"P(positive) is NaN on {unknown} of {len(some)} rows"
    return None


def _scale(samples: Samples) -> tuple[float, float]:
    """The largest value, and the largest distance of a coordinate from its mean."""
    rows = samples.rows
    return float(rows.abs().max()), float((rows - rows.mean(dim=0)).abs().max())


def _is_out_of_scale(samples: Samples) -> bool:
    largest, spread = _scale(samples)
    return largest > LARGEST or spread < SMALLEST


def _overflow(name: str, samples: Samples, what: str) -> ValueError:
    largest, spread = _scale(samples)
    return ValueError(
        f"{name} cannot be used in float32 on these activations: {what} (largest value "
        f"{largest:.3g}, largest distance from the mean {spread:.3g}). Give activations that "
        f"differ, in units in which they are between {SMALLEST:g} and {LARGEST:g}."
    )


def held_out_quality(method: Method, samples: Samples, seed: int = 0) -> BinaryQuality | None:
    """Return the quality of the calibrated barrier on held-out groups, or None without one."""
    held_out = method.held_out_values(samples, seed)
    return None if held_out is None else platt(*held_out, name=method.name)[1]


def platt(values: np.ndarray, labels: np.ndarray, name: str) -> tuple[Calibration, BinaryQuality]:
    """sigmoid(scale h + offset) fitted on held-out h, both classes weighing the same."""
    spread = float(values.std()) or 1.0
    model = LogisticRegression(C=1e4, class_weight="balanced").fit(values[:, None] / spread, labels)
    scale, offset = float(model.coef_[0, 0]) / spread, float(model.intercept_[0])
    if scale <= 0:
        warnings.warn(
            f"The barrier of {name} does not tell held-out positives from negatives (its slope "
            f"is {scale:.3g}): its probabilities mean nothing. More or cleaner examples, or "
            f"another layer, may help.",
            stacklevel=4,
        )
        # Nearly flat, and increasing, so that a target is out of reach rather than inverted.
        scale, offset = 1e-3 / spread, 0.0
    # The two numbers fitted here are common to all rows, so the quality is as good as held out.
    log_odds = scale * values + offset
    return Calibration(scale, offset), binary_quality(log_odds, labels, balanced=True)
