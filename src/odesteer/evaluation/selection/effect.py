"""Settings of a search, effect measures, and the fits that they compare.

`ProbeEffect`: a probe (logistic regression on a late block) fitted on unsteered texts, applied
to unwanted texts that are read steered. It is a proxy: the activations went through later blocks,
which could have undone the change, but they come from reading and not from writing.
`JudgeEffect`: a judge of generations, which is better and slower.
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from odesteer.backends import Sampling, TransformersBackend
from odesteer.data import Contrast, Example
from odesteer.evaluation.case import Case
from odesteer.evaluation.statistics import Interval, interval
from odesteer.extraction.cache import CacheChoice
from odesteer.extraction.extract import Progress, extract
from odesteer.extraction.packing import GivenText, as_texts
from odesteer.extraction.score_texts import last_activations
from odesteer.fitting import (
    RANKING_METHOD,
    ActivationSet,
    fit,
    fit_readings,
    middle_layers,
    rank_layers,
    read,
    spread_layers,
)
from odesteer.methods import CAA, Method
from odesteer.methods.samples import Samples
from odesteer.models.chat_template import Messages, encode
from odesteer.models.layers import find_layers, layer_index
from odesteer.ode import Angle, Dose, as_dose
from odesteer.steering import Steering
from odesteer.steering.calibration import BinaryQuality, binary_quality

if TYPE_CHECKING:
    from odesteer.evaluation.judges import Judge


_CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_NEW_TOKENS = 32
_WEAK = 0.6  # an AUC below which a read-out says little

Read = Callable[[int], None]  # called with the number of texts since the last call


class EffectOutcome(NamedTuple):
    """Read-out under one steering: see `Trial.value` and `Trial.effect`."""

    value: float
    effect: Interval


class EffectMeter(ABC):
    """Measure of effect over texts or prompts; the first steering is the unsteered model."""

    sign: int = 1  # 1 where more is wanted, -1 where less is
    groups: Sequence[str]  # of what is read

    @property
    def size(self) -> int:
        """Number of texts that are read or prompts that are answered."""
        return len(self.groups)

    @abstractmethod
    def raw(self, steerings: Sequence[Steering], read: Read) -> np.ndarray:
        """Return [steerings, n] on the scale on which effects are measured; NaN without any."""

    @abstractmethod
    def value(self, raw: np.ndarray) -> np.ndarray:
        """Convert raw values to the scale that people read."""

    @abstractmethod
    def facts(self, raw: np.ndarray) -> dict[str, Any]:
        """Describe the measure and its quality as JSON values; warn if it is of little use."""

    def outcomes(self, raw: np.ndarray, seed: int = 0) -> list[EffectOutcome]:
        """Return mean value and standardised difference to the first row, per row of `raw`.

            effect = sign * mean_i (raw_i - unsteered_i) / sd(unsteered)

        The standard deviation is the unsteered one's for all, so that effects compare.

        Source: Glass, "Primary, Secondary, and Meta-Analysis of Research", Educational
        Researcher 5, 1976.

        Raises:
            ValueError: if the first row has no finite value.
        """
        known = raw[0][np.isfinite(raw[0])]
        if len(known) == 0:
            raise ValueError(
                "There is no read-out of the unsteered model to compare with: the judge scored "
                "none of its answers, or its activations are not finite (load it in float32 or "
                "bfloat16)."
            )
        spread = float(known.std(ddof=1)) if len(known) > 1 else 0.0
        result = []
        for row in raw:
            both = np.isfinite(row) & np.isfinite(raw[0])
            # Equal read-outs have no spread: then differences count in their own unit.
            change = self.sign * (row - raw[0])[both] / (spread or 1.0)
            groups = np.asarray(self.groups)[both]
            seen = self.value(row[np.isfinite(row)])
            mean = float(seen.mean()) if len(seen) else float("nan")
            result.append(EffectOutcome(mean, interval(change, seed, groups=groups)))
        return result


@dataclass(frozen=True)
class Probe:
    """P(positive | a) = sigmoid(weight . a + bias) at even priors, a the output of `block`."""

    block: int
    weight: Tensor  # [d], float64
    bias: float

    def log_odds(self, a: Tensor) -> np.ndarray:
        """Return log-odds, [..., d] -> [...]."""
        return (a.cpu().double() @ self.weight + self.bias).numpy()


def fit_probe(block: int, samples: Samples, seed: int = 0) -> Probe:
    """Fit logistic regression on standardised activations; C minimises held-out log-loss.

    Args:
        block: whose outputs they are.
        samples: unsteered activations, [n, d] and [m, d].
        seed: of the folds.
    """
    rows, labels = samples.rows.cpu().numpy(), samples.labels
    mean, spread = rows.mean(axis=0), rows.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    z = (rows - mean) / spread
    # The weight lies in the span of the rows: with fewer of them than dimensions, fit it there.
    left, scale, basis = np.linalg.svd(z, full_matrices=False)
    z = left * scale
    folds = samples.folds(5, seed)

    def regression(C: float, index: np.ndarray) -> LogisticRegression:
        model = LogisticRegression(C=C, class_weight="balanced", max_iter=1000)
        return model.fit(z[index], labels[index])

    def loss(C: float) -> float:
        log_odds = [regression(C, fit).decision_function(z[test]) for fit, test in folds]
        held_out = np.concatenate([labels[test] for _, test in folds])
        return binary_quality(np.concatenate(log_odds), held_out, balanced=True).log_loss

    best = min(_CS, key=loss) if folds else _CS[0]
    model = regression(best, np.arange(len(labels)))
    weight = model.coef_[0] @ basis / spread
    bias = float(model.intercept_[0] - weight @ mean)
    return Probe(block, torch.as_tensor(weight).double(), bias)


@dataclass(frozen=True)
class ProbeEffect(EffectMeter):
    """A probe's log-odds at the last token of held-out negatives that are read steered.

    Args:
        model: a transformers causal language model, in eval mode.
        probe: fitted on other groups.
        negatives: texts to read.
        positives: for the probe's quality.
        groups: of the negatives.
    """

    model: nn.Module
    probe: Probe
    negatives: Sequence[GivenText]
    positives: Sequence[GivenText]
    groups: Sequence[str]

    def raw(self, steerings: Sequence[Steering], read: Read) -> np.ndarray:
        log_odds = np.full((len(steerings), len(self.negatives)), np.nan)
        block = self.probe.block
        for number, texts, a in last_activations(
            self.model, self.negatives, steerings, block, read
        ):
            log_odds[number, texts] = self.probe.log_odds(a)
        return log_odds

    def value(self, raw: np.ndarray) -> np.ndarray:
        return 1.0 / (1.0 + np.exp(-np.clip(raw, -500, 500)))

    def facts(self, raw: np.ndarray) -> dict[str, Any]:
        rows = [text.prompt + text.answer for text in self.positives]
        positive = self.probe.log_odds(extract(self.model, rows, [self.probe.block])[0])
        labels = np.repeat([1, 0], [len(positive), raw.shape[1]])
        quality = binary_quality(np.concatenate([positive, raw[0]]), labels, balanced=True)
        _warn_if_weak(f"The probe on block {self.probe.block}", quality.auc)
        return {
            "kind": "probe",
            "block": self.probe.block,
            "positives": round(float(self.value(positive).mean()), 4),
            **quality._asdict(),
        }


class JudgeEffect(EffectMeter):
    """A judge's scores of greedy generations.

    Whether high or low scores are wanted is learnt from how the judge scores held-out positive
    and negative responses.

    Args:
        backend: the model.
        judge: scores answers.
        prompts: to answer.
        positives, negatives: held-out examples.
    """

    def __init__(
        self,
        backend: TransformersBackend,
        judge: "Judge",
        prompts: Sequence[str | Messages],
        positives: Sequence[Example],
        negatives: Sequence[Example],
    ):
        self.backend, self.judge, self.prompts = backend, judge, prompts
        self.groups = [str(i) for i in range(len(prompts))]
        examples = [*positives, *negatives]
        scores = self._scores([e.prompt for e in examples], [e.response for e in examples])
        known = np.isfinite(scores)
        labels = np.repeat([1, 0], [len(positives), len(negatives)])[known]
        both = len(set(labels)) == 2
        self.auc = float(roc_auc_score(labels, scores[known])) if both else 0.5
        self.sign = 1 if self.auc >= 0.5 else -1
        _warn_if_weak(f"The judge {judge.name}", max(self.auc, 1.0 - self.auc))

    def raw(self, steerings: Sequence[Steering], read: Read) -> np.ndarray:
        rows = []
        for steering in steerings:
            with torch.random.fork_rng():  # the backend seeds the global generators
                texts = self.backend.generate(self.prompts, steering, Sampling(_NEW_TOKENS))
            rows.append(self._scores(self.prompts, texts))
            read(len(texts))
        return np.stack(rows)

    def value(self, raw: np.ndarray) -> np.ndarray:
        return raw

    def facts(self, raw: np.ndarray) -> dict[str, Any]:
        return {
            "kind": "judge",
            "name": self.judge.name,
            "unit": self.judge.unit,
            "sign": self.sign,
            "auc": round(self.auc, 4),
            "unscored": int((~np.isfinite(raw)).sum()),
        }

    def _scores(self, prompts: Sequence[str | Messages | None], texts: Sequence[str]) -> np.ndarray:
        scores = self.judge.score([Case(prompt or "") for prompt in prompts], texts)
        return np.array([np.nan if score.value is None else score.value for score in scores])


def _warn_if_weak(what: str, auc: float) -> None:
    if auc < _WEAK:
        warnings.warn(
            f"{what} hardly tells held-out positives from negatives (AUC {auc:.2f}, chance 0.5): "
            f"effects measured by it mean little. More or cleaner examples, or another judge, "
            f"may help.",
            stacklevel=4,
        )


Layer = int | str | tuple[int, ...]
Prompt = str | Messages
T = TypeVar("T")

DOSES: tuple[Dose, ...] = tuple(Angle(angle) for angle in (0.05, 0.1, 0.15, 0.2, 0.25, 0.3))
FIT_SHARE = 2 / 3  # of the groups
# Enough for an interval that tells neighbouring doses apart, few enough for two CPU cores.
TEXTS, PROMPTS, NEW_TOKENS = 48, 24, 24


def amounts_of(doses: Sequence[Dose | float] | None) -> list[Dose]:
    amounts = [as_dose(dose) for dose in (DOSES if doses is None else doses)]
    amounts = [dose for dose in amounts if not dose.is_zero]
    if not amounts:
        raise ValueError(
            "doses needs at least one that is not 0, such as odesteer.Angle(0.2); the unsteered "
            "model is a candidate anyway."
        )
    return list(dict.fromkeys(amounts))


def candidates_of(
    model: nn.Module, method: Method, layers: int | Sequence[int | Sequence[int]] | None
) -> list[Layer]:
    """Return the layers to fit at; none where they are still to be ranked."""
    if layers is None:
        return ["auto"] if method.site == "heads" else []
    candidates: list[Layer] = [
        layer_index(model, layer)
        if isinstance(layer, int)
        else tuple(sorted({layer_index(model, each) for each in layer}))
        for layer in ([layers] if isinstance(layers, int) else layers)
    ]
    if not candidates or () in candidates:
        raise ValueError("layers holds no layer; name at least one block, or leave it out.")
    return list(dict.fromkeys(candidates))


def late_block(model: nn.Module, candidates: Sequence[Layer]) -> int:
    """Return the block of the probe: nine tenths up, and above every candidate's first."""
    depth = len(find_layers(model))
    begin = max(
        (c[0] if isinstance(c, tuple) else c if isinstance(c, int) else 0 for c in candidates),
        default=0,
    )
    if begin == depth - 1:
        raise ValueError(
            f"Layer {begin} is the last block: no later one is left to read the effect from. "
            f"Choose an earlier layer, or give a judge and prompts."
        )
    return max(int(0.9 * depth), begin + 1)


def split(contrast: Contrast, seed: int) -> tuple[Contrast, Contrast]:
    try:
        return contrast.split(FIT_SHARE, seed)
    except ValueError as error:
        groups = len({*contrast.groups[0], *contrast.groups[1]})
        raise ValueError(
            f"Tuning holds out a third of the groups and needs both classes on both sides; this "
            f"contrast has {groups} group{'s' if groups != 1 else ''}: {error}"
        ) from None


def prompts_of(
    tokenizer: Any,
    held_out: Contrast,
    prompts: Sequence[Prompt] | None,
    judge: "Judge | None",
    seed: int,
) -> list[tuple[list[int], Prompt | None]]:
    """Return neutral prompts as token ids and, where there is one, as text or messages."""
    examples = [*held_out.positive, *held_out.negative]
    neutral = [e.prompt for e in examples if e.prompt is not None] if prompts is None else prompts
    if neutral:
        # A prompt of several rows counts once.
        unique = {
            tuple(encode(tokenizer, prompt, None, held_out.template)): prompt for prompt in neutral
        }
        encoded: list[tuple[list[int], Prompt | None]] = [
            (list(ids), prompt) for ids, prompt in unique.items()
        ]
        return encoded if prompts is not None else draw(encoded, PROMPTS, seed)
    if prompts is not None:
        raise ValueError("prompts is empty; give at least one, or leave it out.")
    if judge is not None:
        raise ValueError(
            f"The judge {judge.name} scores answers, and this contrast has no prompts to answer: "
            f"give prompts=[...]."
        )
    both = [text for text, _ in as_texts(tokenizer, examples, held_out.template)]
    return [(text.prompt, None) for text in draw(both, PROMPTS, seed)]


def draw(items: Sequence[T], count: int, seed: int) -> list[T]:
    """Draw at most `count` items without replacement; they keep their order."""
    if len(items) <= count:
        return list(items)
    drawn = np.random.default_rng(seed).permutation(len(items))[:count]
    return [items[i] for i in sorted(drawn)]


# Percent of the time of each stage on SmolLM2-135M, roughly.
_STAGES = {"read": 20, "rank": 10, "fit": 10, "effect": 35, "damage": 25}


class StagedProgress:
    """Progress (done, 1000) of stages that each count in their own unit."""

    def __init__(self, progress: Progress | None):
        self._progress = progress
        self._reached = 0

    def of(self, stage: str) -> Progress:
        names = list(_STAGES)
        start = sum(_STAGES[name] for name in names[: names.index(stage)])

        def progress(done: int, total: int) -> None:
            now = round(10 * (start + _STAGES[stage] * done / max(total, 1)))
            # A stage of several parts begins again with each; time does not run back.
            self._reached = max(self._reached, now)
            if self._progress is not None:
                self._progress(self._reached, 1000)

        return progress

    def count(self, stage: str, total: int) -> Callable[[int], None]:
        """Return a callback that takes increments instead of totals."""
        progress, done = self.of(stage), 0

        def more(new: int) -> None:
            nonlocal done
            done += new
            progress(done, total)

        return more


CANDIDATES = 3


def learn(
    model: nn.Module,
    tokenizer: Any,
    part: Contrast,
    method: Method,
    candidates: list[Layer],
    block: int | None,
    seed: int,
    stages: "StagedProgress",
    cache: CacheChoice,
) -> tuple[list[Steering], Probe | None]:
    """Fit the method at each candidate, and the probe of `block`, from one extraction."""
    to_rank = [] if candidates else middle_layers(model)
    to_read = list(dict.fromkeys([*to_rank, *([] if block is None else [block])]))
    data: dict[int, ActivationSet] = {}
    if to_read:
        # The last token, whatever the method reads, since the probe reads it later.
        data = read(model, tokenizer, part, to_read, RANKING_METHOD, stages.of("read"), cache=cache)
    quality: dict[int, BinaryQuality] = {}
    if to_rank:
        rows = {index: (data[index].positive, data[index].negative) for index in to_rank}
        quality = rank_layers(rows, part.groups, seed, stages.of("rank"))
        candidates = [*spread_layers(quality, CANDIDATES)]
    fitted: Sequence[Steering]
    fitting, single = stages.of("fit"), [each for each in candidates if isinstance(each, int)]
    if method.site == "residual" and len(single) == len(candidates):
        # Single layers share one pass, which is done where it read what the method needs.
        if method.tokens == "last" and not method.reads_more and set(single) <= set(data):
            readings = {index: data[index] for index in single}
        else:
            readings = read(model, tokenizer, part, single, method, fitting, cache=cache)
        fitted = fit_readings(model, tokenizer, part, method, readings, seed, fitting, quality)
    else:
        # Doses are compared later.
        dose = method.default_strength
        settings: dict[str, Any] = {
            "strength": dose,
            "seed": seed,
            "progress": fitting,
            "cache": cache,
        }
        fitted = [fit(model, tokenizer, part, method, layer, **settings) for layer in candidates]
    if block is None:
        return [*fitted], None
    probed = data[block]
    samples = CAA().check(probed.positive, probed.negative, part.groups)  # all check alike
    return [*fitted], fit_probe(block, samples, seed)


def by_probe(
    model: nn.Module, tokenizer: Any, probe: Probe, held_out: Contrast, seed: int
) -> ProbeEffect:
    """Measure effects by a probe on held-out texts."""
    negatives, positives = (
        draw(as_texts(tokenizer, examples, held_out.template), TEXTS, seed)
        for examples in (held_out.negative, held_out.positive)
    )
    return ProbeEffect(
        model,
        probe,
        [text for text, _ in negatives],
        [text for text, _ in positives],
        [example.group for _, example in negatives],
    )


def by_judge(
    model: nn.Module,
    tokenizer: Any,
    judge: "Judge",
    prompts: Sequence[tuple[list[int], Prompt | None]],
    held_out: Contrast,
    seed: int,
) -> JudgeEffect:
    return JudgeEffect(
        TransformersBackend(model, tokenizer, template=held_out.template),
        judge,
        [prompt for _, prompt in prompts if prompt is not None],
        draw(held_out.positive, TEXTS, seed),
        draw(held_out.negative, TEXTS, seed),
    )
