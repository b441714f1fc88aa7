"""Experiment configuration: all that its numbers depend on.

A TOML file (`odesteer.evaluation.experiment.parse_toml`) has the attributes below as its keys,
tables being attributes that are classes of their own.
Where data lies and who computes is not part of it: a result says by checksums what was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from odesteer.ode import Dose
from odesteer.steering.serialization.directory import dose_to_json

TASKS = ("choices", "generations", "barrier")
OFFLINE, PAPER = "offline", "paper"
CHOOSE, OWN = "choose", "own"
PROMPT, NONE = "prompt", "none"
UNSTEERED = "unsteered"  # as a judge's model: the one that is steered, without its steering
MEASURES = ("kl", "displacement")
DTYPES = ("auto", "float32", "bfloat16", "float16")

Layer = int | tuple[int, ...]


@dataclass(frozen=True)
class ModelChoice:
    """Which model: "smollm2", a directory or a Hub name; its precision and its commit."""

    name: str = "smollm2"
    dtype: str = "auto"
    revision: str | None = None


@dataclass(frozen=True)
class Named:
    """A benchmark or a judge by name, with its arguments."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodChoice:
    """One row of the comparison.

    Attributes:
        name: a method, or "prompt" for the benchmark's instruction in words.
        id: names it in results; two settings of one method need two.
        label: what tables call it.
        layers, doses: instead of the experiment's; empty: as the experiment has them.
        within: matched conditions stop at a target with this budget, and the target's probability
            is what is matched; None: they go as far as matches.
        hyperparameters: of the method.
    """

    name: str
    id: str
    label: str
    layers: tuple[Layer | str, ...] = ()
    doses: tuple[Dose | str, ...] = ()
    within: Dose | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """At most so many groups (questions, prompts, comments) of each part of a fold; None: all."""

    fit: int | None = None
    validation: int | None = None
    test: int | None = None


@dataclass(frozen=True)
class Choosing:
    """How "choose" chooses: the best metric on validation cases within a budget of damage.

    Attributes:
        layers, doses: the candidates.
        metric: one of the choices' scores, or a judge; None: the benchmark's first offline one.
        max_kl: mean KL to the unsteered next-token distribution, nats.
    """

    layers: tuple[Layer, ...] = ()
    doses: tuple[Dose, ...] = ()
    metric: str | None = None
    max_kl: float = 0.5


@dataclass(frozen=True)
class Matched:
    """Doses at which every method has the same mean damage on validation cases.

    Attributes:
        kl: KL to the unsteered next-token distribution, nats a token.
        displacement: ||a(T) - a|| / ||a||.
    """

    kl: tuple[float, ...] = ()
    displacement: tuple[float, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """See above.

    Attributes:
        name: of the run's directory.
        title: of its report.
        task: "choices" (likelihoods of given answers), "generations", or "barrier" (held-out
            log-odds alone).
        benchmark: with the arguments of its `load` or other sizes.
        methods: the rows.
        layers: decoder blocks, or "choose"; a list in the list is several at once.
        doses: "choose", "own" (each method's default), a number of `dose_type`, or
            {type = "target", ...}.
        dose_type: what a number is, see `odesteer.ode.dose`.
        matched: more conditions, at doses of equal damage.
        steps: of the solver, instead of each method's own.
        seeds: of sampling and of methods that draw; each makes its own conditions.
        split_seed: of the folds.
        folds: how many of the benchmark's are run; None: all.
        samples: generations a prompt.
        positions: which tokens are steered.
        sampling: instead of the benchmark's, see `odesteer.Sampling`.
        judges: "offline", "paper", or names.
        damage: also KL, displacement, and the likelihood under the unsteered model.
        barrier: also each barrier's log-odds on the test part's texts.
        batch: cases a unit of work.
    """

    name: str
    benchmark: Named
    methods: tuple[MethodChoice, ...]
    title: str = ""
    task: str = "generations"
    model: ModelChoice = ModelChoice()
    layers: tuple[Layer | str, ...] = (CHOOSE,)
    doses: tuple[Dose | str, ...] = (CHOOSE,)
    dose_type: str = "angle"
    choose: Choosing = Choosing()
    matched: Matched = Matched()
    limits: Limits = Limits()
    steps: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    split_seed: int = 0
    folds: int | None = None
    samples: int = 1
    positions: str = "last+generated"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    judges: tuple[Named, ...] = ()
    damage: bool = True
    barrier: bool = False
    batch: int = 16

    def to_json(self) -> dict[str, Any]:
        """Everything with defaults filled in, as JSON values."""
        tree: dict[str, Any] = _plain(self)
        return tree


def _plain(value: Any) -> Any:
    if isinstance(value, Dose):
        return dose_to_json(value)
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
