"""Base class of steering methods.

A method fits a vector field to two matrices. Held-out calibration and the construction of the
`Steering` are common to all methods and live here; the data are validated in `samples`.
"""

import warnings
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from odesteer.extraction.sensitivities import Sensitivity
from odesteer.methods.samples import Groups, Progress, Samples, validate, with_sensitivities
from odesteer.ode import Dose, VectorField
from odesteer.steering import Calibration, Steering
from odesteer.steering.calibration import BinaryQuality, binary_quality, reliability
from odesteer.steering.coverage import Coverage


class MethodInfo(NamedTuple):
    """Row of a method in the table of `odesteer methods`.

    Attributes:
        field: v(a), as a formula.
        barrier: h(a), or "-" if the method has none.
        exact: the exact flow of the field.
        strength: the meaning of a plain number as strength.
        source: authors, venue, year and link.
        keeps_norm: the method's default solver keeps ||a||, to rounding.
    """

    field: str
    barrier: str
    exact: str
    strength: str
    source: str
    keeps_norm: bool = False


# Rows of the data whose probability is checked before a fit is returned.
CHECKED = 256
# Beyond these sizes products of activations leave float32.
SMALLEST, LARGEST = 1e-15, 1e15


class FitResult(NamedTuple):
    """Fitted field, the method with its chosen hyperparameters, and its held-out values."""

    method: "Method"
    field: VectorField
    held_out: tuple[np.ndarray, np.ndarray] | None


@dataclass(frozen=True)
class Method(ABC):
    """Method that fits a field to positive and negative activations.

    A frozen dataclass whose fields are the hyperparameters; `fit` returns a `Steering`. Subclasses
    implement `fit_field`, and may choose hyperparameters from the data in
    `select_hyperparameters`.

    Args:
        steps: number of fixed steps of the solver.
        solver: a name in `odesteer.ode.SOLVERS`.
    """

    name: ClassVar[str]
    facts: ClassVar[MethodInfo] = MethodInfo("not said", "-", "not said", "not said", "not said")
    default_strength: ClassVar[Dose | float] = 1.0
    # The KL budget from which `odesteer.fit` finds the dose instead, which needs the model.
    default_kl: ClassVar[str | None] = None
    # Whether row i of both classes must answer the same prompt.
    needs_pairs: ClassVar[bool] = False
    # Activations to learn from: the tokens pooled and the site, see `odesteer.extraction`, and
    # whether the last prompt token's activation is needed too.
    tokens: ClassVar[str] = "last"
    site: ClassVar[str] = "residual"
    reads_prompts: ClassVar[bool] = False
    # Whether it learns from sensitivities, see `odesteer.extraction.sensitivities`.
    reads_sensitivities: ClassVar[bool] = False
    # Whether its field is trained by what the steered model says, see `odesteer.fitting.train`.
    trains_through_model: ClassVar[bool] = False
    # At several layers, whether a later one learns from activations moved by the earlier ones.
    incremental: ClassVar[bool] = False

    steps: int = 1
    solver: str = "euler"

    @property
    def reads_more(self) -> bool:
        """Whether it learns from more than activations of both classes."""
        return self.reads_prompts or self.reads_sensitivities

    @abstractmethod
    def fit_field(self, positive: Tensor, negative: Tensor) -> VectorField:
        """Fit the field to [n, d] positives and [m, d] negatives in float64."""

    def fit_samples(self, samples: Samples, progress: Progress | None = None) -> VectorField:
        """Fit the field; for methods that use more than two matrices or report progress."""
        return self.fit_field(samples.positive, samples.negative)

    def select_hyperparameters(self, samples: Samples) -> "Method":
        """Return the method with every hyperparameter set that is left to the data."""
        return self

    def fit_and_validate(
        self, samples: Samples, seed: int | None, progress: Progress | None = None
    ) -> FitResult:
        """Fit the field and compute held-out values, for methods in which both share work.

        Equivalent to `select_hyperparameters`, `fit_samples` and `held_out_values` in a row.

        Args:
            samples: the data.
            seed: of the folds; None for no held-out values.
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
        sensitivities: tuple[Sensitivity, Sensitivity] | None = None,
        calibrate: bool = True,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Steering:
        """Fit a steering to activations of the two classes.

        Args:
            positive: [n, d].
            negative: [m, d].
            layer: the decoder block whose outputs they are.
            strength: the dose; None for the method's default.
            groups: group of each row (say, its prompt), one sequence for each class; by default
                row i of both classes is one group if n = m.
            rewards: graded labels [n] and [m], for methods that use them.
            prompts: activations [n, d] of each pair's last prompt token, for methods that use them.
            sensitivities: of both classes' rows, for methods that use them.
            calibrate: fit P(positive | a) to held-out values of the barrier (5 folds).
            seed: of the folds.
            progress: called with (steps done, total steps) by methods that train.

        Raises:
            ValueError: for shapes that do not match, an empty class, NaN or infinity, or unpaired
                rows where pairs are needed.
        """
        samples = self.check(positive, negative, groups, rewards, prompts, sensitivities)
        try:
            method, field, held_out = self.fit_and_validate(
                samples, seed if calibrate else None, progress
            )
        except (ArithmeticError, RuntimeError, ValueError) as error:
            if not _is_out_of_scale(samples):
                raise
            reason = str(error).partition("\n")[0].rstrip(".")
            raise _overflow(self.name, samples, reason) from error
        return method.steering(field, samples, held_out, layer, strength)

    def steering(
        self,
        field: VectorField,
        samples: Samples,
        held_out: tuple[np.ndarray, np.ndarray] | None,
        layer: int | None,
        strength: Dose | float | None,
    ) -> Steering:
        """Make the steering of a fitted field, calibrated to held-out values where there are any.

        Raises:
            ValueError: if it cannot be used in float32.
        """
        # On the device of the activations, in the precision of use.
        field = field.to(samples.positive.device, torch.float32)
        calibration, coverage = Calibration(), None
        receipts: dict[str, Any] = {"rows": [len(samples.positive), len(samples.negative)]}
        if held_out is not None:
            if not np.isfinite(held_out[0]).all():
                raise _overflow(self.name, samples, "its barrier on held-out rows is not finite")
            calibration, quality = platt(*held_out, name=self.name)
            values, labels = held_out
            coverage = Coverage.of(values, labels)
            log_odds = calibration.scale * values + calibration.offset
            curve = [
                {key: round(value, 4) for key, value in point._asdict().items()}
                for point in reliability(log_odds, labels, balanced=True)
            ]
            receipts |= {"held_out": quality._asdict(), "reliability": curve}
        steering = Steering(
            field=field,
            strength=self.default_strength if strength is None else strength,
            solver=self.solver,
            steps=self.steps,
            layer=layer,
            method=self.name,
            hyperparameters=asdict(self),
            calibration=calibration,
            receipts=receipts,
            site=self.site,
            coverage=coverage,
        )
        unusable = _unusable(steering, samples)
        if unusable is not None:
            raise _overflow(self.name, samples, unusable)
        return steering

    def for_model(self, head_width: int | None) -> "Method":
        """Return the method with the settings that depend on the model."""
        return self

    def choose_layers(
        self, data: dict[int, tuple[Tensor, Tensor]], groups: tuple[Groups, Groups], seed: int
    ) -> "dict[int, Method]":
        """Return the method to fit at each layer; layers may be left out."""
        return dict.fromkeys(data, self)

    def held_out_values(
        self, samples: Samples, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Return h of every row by a field fitted without its group, and the labels.

        Returns None if the data cannot be split, or the method has no barrier.
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
        sensitivities: tuple[Sensitivity, Sensitivity] | None = None,
    ) -> Samples:
        """Validate the data; return it in float64, or raise a ValueError with the reason."""
        samples = validate(
            self.name, self.needs_pairs, positive, negative, groups, rewards, prompts
        )
        if sensitivities is None:
            return samples
        return with_sensitivities(self.name, samples, sensitivities)


def _unusable(steering: Steering, samples: Samples) -> str | None:
    """Return what is not finite in the precision of use, or None."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in steering.field.buffers()):
        return "what it learnt is not finite"
    classes = samples.positive, samples.negative
    step = max(1, sum(map(len, classes)) // CHECKED)
    # Training rows, and one of ordinary size.
    sample = torch.cat([rows[::step].float() for rows in classes])
    sample = torch.cat([sample, torch.ones_like(sample[:1])])
    if steering.field.barrier is not None:
        count = int((~torch.isfinite(steering.probability(sample))).sum())
        if count:
            return f"P(positive) is NaN on {count} of {len(sample)} rows"
    return None


def _scale(samples: Samples) -> tuple[float, float]:
    """Return the largest value, and the largest distance of a coordinate from its mean."""
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
    """Fit sigmoid(scale h + offset) to held-out h, with equal weight for both classes."""
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
        # Nearly flat but increasing, so that a target is out of reach rather than inverted.
        scale, offset = 1e-3 / spread, 0.0
    # Only two numbers are fitted to all rows, so the quality is practically held out.
    log_odds = scale * values + offset
    return Calibration(scale, offset), binary_quality(log_odds, labels, balanced=True)
