"""Assessment of a steering by what the model writes, and a verdict in one word.

The model answers a few prompts, unsteered and steered. The unsteered model then reads both answers,
and a probe, fitted on how it reads the contrast, says how far they moved from the unwanted class
towards the wanted one:

    effect = mean_i (s(steered_i) - s(unsteered_i)) / (E s(wanted) - E s(unwanted))

s is the probe's log-odds at the mean activation of an answer's tokens; the denominator is taken on
held-out groups, so that 1 is the distance of the classes. The probe reads finished texts without
the steering, so it cannot be moved but by what was written.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from odesteer.backends import Sampling, TransformersBackend
from odesteer.data import Contrast
from odesteer.data.arguments import forgiving
from odesteer.data.confounds import confounds
from odesteer.data.contrast import example
from odesteer.evaluation.metrics import distinct
from odesteer.evaluation.selection.effect import Probe, fit_probe
from odesteer.evaluation.statistics import Interval, interval
from odesteer.extraction.cache import CacheChoice
from odesteer.extraction.extract import Progress, activations
from odesteer.methods.samples import Samples, validate
from odesteer.models.chat_template import Messages, question
from odesteer.models.layers import find_layers
from odesteer.steering import Steering

WORKS, WEAK, NOTHING, BREAKS = "works", "weak", "nothing happens", "breaks the text"
OPPOSITE = "moves the other way"
# Prompts that are answered where the contrast has none.
PROMPTS = (
    "Tell me about your day.",
    "Write a short story about a girl.",
    "How was the concert?",
    "What should I do this weekend?",
    "Describe the room you are in.",
    "What do you think of the new restaurant?",
    "Explain how plants grow.",
    "Give me some advice for my first job.",
    "Write a letter to an old friend.",
    "What makes a good friend?",
    "Describe a painting you like.",
    "How do I learn a new language?",
)
NEW_TOKENS = 32
# Random directions whose doses are chosen in the same way moved 14 behaviours by -0.24 to 0.32,
# with an interval that began at 0.05 where it was highest (docs/tuning.md). So half of a visible
# effect has to be certain.
VISIBLE = 0.15
# Perplexity under the unsteered model, steered over unsteered, and the share of repeated trigrams
# above the unsteered answers': at a tenth, about a third of the answers loop.
MOST_PERPLEXITY, MOST_REPETITION = 2.0, 0.1
# The perplexity ratio that `Assessor.with_fluent_dose` aims at, and what it lets pass.
FLUENT, MOST_FLUENT = 1.4, 1.5
# Doses that it assesses at most.
TRIES = 3
# Where unsteered answers lie from which on there is little to add.
ALREADY = 0.8
# Log-odds: classes that hardly differ are no unit to measure an effect in.
LEAST_DISTANCE = 0.5
# Of the probe on held-out texts; below it, the classes hardly differ.
LEAST_AUC = 0.65


@dataclass(frozen=True)
class Assessment:
    """What a steering does to what is written.

    Attributes:
        verdict: "works", "weak", "nothing happens", "moves the other way" or "breaks the text".
        effect: with its 95 % interval over prompts, in units of the distance of the classes.
        perplexity_ratio: of the answers under the unsteered model, steered over unsteered.
        repetition: share of repeated trigrams in the steered answers, 0 to 1; 1 for an empty one.
        answers: (prompt, unsteered, steered).
        start: where the unsteered answers lie, from 0 (unwanted class) to 1 (wanted class).
        auc: of the probe on held-out groups of the contrast.
        warnings: what makes the contrast or the numbers less trustworthy.
    """

    verdict: str
    effect: Interval
    perplexity_ratio: float
    repetition: float
    answers: tuple[tuple[str, str, str], ...]
    start: float
    auc: float
    warnings: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as JSON values."""
        numbers = {key: round(value, 4) for key, value in self.effect._asdict().items()}
        return {
            "verdict": self.verdict,
            "effect": numbers,
            "perplexity_ratio": round(self.perplexity_ratio, 3),
            "repetition": round(self.repetition, 3),
            "start": round(self.start, 3),
            "probe_auc": round(self.auc, 3),
            "warnings": list(self.warnings),
            "answers": [
                {"prompt": prompt, "unsteered": unsteered, "steered": steered}
                for prompt, unsteered, steered in self.answers
            ],
        }

    def recorded(self, steering: Steering) -> Steering:
        """Return the steering with this in its receipts."""
        return Steering.of(
            replace(part, receipts={**part.receipts, "assessment": self.facts})
            for part in steering.parts
        )

    def __str__(self) -> str:
        e = self.effect
        return (
            f"Verdict: {self.verdict}. What is written moved by {e.mean:+.2f} of the distance "
            f"between the classes [{e.low:+.2f}, {e.high:+.2f}] on {e.n} prompts, at "
            f"{self.perplexity_ratio:.2f} times the perplexity."
        )


@forgiving()
def assess(
    model: nn.Module,
    tokenizer: Any,
    steering: Steering,
    contrast: Contrast | Any,
    prompts: Sequence[str | Messages] | None = None,
    *,
    new_tokens: int = NEW_TOKENS,
    seed: int = 0,
    cache: CacheChoice = False,
    progress: Progress | None = None,
) -> Assessment:
    """Let the model write, unsteered and steered, and say whether the steering works.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        steering: with its dose.
        contrast: what it was fitted on, or other texts of both classes.
        prompts: to answer; None: up to 12 of the contrast's, or neutral ones if it has none.
        new_tokens: of each answer, which is greedy.
        seed: of the folds and the interval.
        cache: True or a folder keeps activations on disk, see `odesteer.activations`.
        progress: called with (steps done, steps in all).

    Raises:
        ValueError: if `prompts` is empty.

    Example:
        steering = ods.fit(model, tokenizer, contrast)
        print(ods.assess(model, tokenizer, steering, contrast))
    """
    assessor = Assessor(
        model, tokenizer, contrast, prompts, new_tokens=new_tokens, seed=seed, cache=cache
    )
    return assessor.assess(steering, progress)


class _Answers(NamedTuple):
    """Answers to every prompt, [n] each: texts, the probe's log-odds, log p a token."""

    texts: list[str]
    log_odds: np.ndarray
    likelihood: np.ndarray


class Assessor:
    """Prompts and a contrast, on which several steerings are assessed.

    The unsteered answers are written, and the probe is fitted, with the first steering.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        contrast: see `assess`, as the other arguments.

    Raises:
        ValueError: if `prompts` is empty.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        contrast: Contrast | Any,
        prompts: Sequence[str | Messages] | None = None,
        *,
        new_tokens: int = NEW_TOKENS,
        seed: int = 0,
        cache: CacheChoice = False,
    ) -> None:
        self.contrast = Contrast.of(contrast)
        self.prompts = list(prompts_of(self.contrast) if prompts is None else prompts)
        if not self.prompts:
            raise ValueError(
                "There is no prompt to answer; give at least one, or None for the usual."
            )
        self.model, self.tokenizer = model, tokenizer
        self.new_tokens, self.seed, self.cache = new_tokens, seed, cache
        self._unsteered: _Answers | None = None

    def assess(self, steering: Steering, progress: Progress | None = None) -> Assessment:
        """Let the model write under a steering, and compare with what it writes without.

        Args:
            steering: with its dose.
            progress: called with (steps done, steps in all).
        """
        report = progress or (lambda done, of: None)
        report(0, 3)
        n, known = len(self.prompts), self._unsteered
        # Both at once, for the price of little more than one.
        asked: list[Steering | None] = [*([None] * n if known is None else []), *[steering] * n]
        backend = TransformersBackend(
            self.model, self.tokenizer, template=self.contrast.template, batch_size=len(asked)
        )
        prompts = self.prompts * (len(asked) // n)
        texts = backend.generate(prompts, asked, Sampling(max_new_tokens=self.new_tokens))
        report(1, 3)
        log_odds = self._log_odds(prompts, texts)
        report(2, 3)
        likelihood = np.array([_mean(each) for each in backend.logprobs(prompts, texts)])
        if known is None:
            known = self._unsteered = _Answers(texts[:n], log_odds[:n], likelihood[:n])
        steered = _Answers(texts[-n:], log_odds[-n:], likelihood[-n:])
        report(3, 3)
        return self._compared(known, steered)

    def with_fluent_dose(
        self, steering: Steering, progress: Progress | None = None
    ) -> tuple[Steering, Assessment]:
        """Assess a steering, and other doses of it while this one does too much or too little.

        For small doses KL, and with it the logarithm of the perplexity ratio r, grows with the
        square of the dose. So the dose is multiplied by sqrt(log `FLUENT` / log r), between 0.5 and
        1.5, until the steering works with a ratio of at most `MOST_FLUENT` or this changes the dose
        by less than a tenth; `TRIES` doses are assessed at most. A text that breaks gets half of
        the dose.

        Args:
            steering: with its dose.
            progress: called with (steps done, steps in all), each time.

        Returns:
            The best of them and its assessment: a text that is whole counts first, then fluency,
            then whether anything happens, then the lower end of the effect.
        """
        tried = [(steering, self.assess(steering, progress))]
        while len(tried) < TRIES:
            latest, found = tried[-1]
            if found.verdict == WORKS and found.perplexity_ratio <= MOST_FLUENT:
                break
            ratio = max(found.perplexity_ratio, 1.0)
            change = math.sqrt(math.log(FLUENT) / max(math.log(ratio), 0.05))
            change = 0.5 if found.verdict == BREAKS else min(max(change, 0.5), 1.5)
            if abs(change - 1.0) < 0.1:
                break
            scaled = change * latest
            # The KL that was measured is not this dose's.
            scaled = Steering.of(
                replace(part, receipts={k: v for k, v in part.receipts.items() if k != "kl"})
                for part in scaled.parts
            )
            tried.append((scaled, self.assess(scaled, progress)))
        return max(
            tried,
            key=lambda each: (
                each[1].verdict != BREAKS,
                each[1].perplexity_ratio <= MOST_FLUENT,
                each[1].verdict not in (NOTHING, OPPOSITE),
                -each[1].repetition if each[1].verdict == BREAKS else each[1].effect.low,
            ),
        )

    def _compared(self, unsteered: _Answers, steered: _Answers) -> Assessment:
        auc, low, distance = self._classes
        # Exactly 0 for equal texts, which another batch may read as other numbers.
        changed = np.array(unsteered.texts) != np.array(steered.texts)
        moved = np.where(changed, steered.log_odds - unsteered.log_odds, 0.0)
        effect = interval(moved / distance, self.seed)
        start = float((unsteered.log_odds.mean() - low) / distance)
        changes = unsteered.likelihood - steered.likelihood
        changes = changes[np.isfinite(changes)]
        ratio = float(np.exp(changes.mean())) if len(changes) else 1.0
        repetition = _repetition(steered.texts)
        word = verdict(effect, ratio, repetition - _repetition(unsteered.texts), auc)
        return Assessment(
            word,
            effect,
            ratio,
            repetition,
            tuple(zip(map(question, self.prompts), unsteered.texts, steered.texts, strict=True)),
            start,
            auc,
            tuple(_warnings(self.contrast, word, start, auc)),
        )

    def _log_odds(self, prompts: Sequence[str | Messages], answers: Sequence[str]) -> np.ndarray:
        """Return the probe's log-odds of answers that the unsteered model reads, [n]."""
        written = [text or " " for text in answers]
        # Bare texts are read without a prompt, and so is what is compared with them.
        bare = self.contrast.positive[0].prompt is None
        texts = written if bare else list(zip(prompts, written, strict=True))
        # `activations` reads both classes of a contrast; the second is not used.
        examples = tuple(example(text, str(i)) for i, text in enumerate(texts))
        contrast = Contrast(examples, examples[:1], self.contrast.template)
        block = self._probe.block
        rows, _ = activations(self.model, self.tokenizer, contrast, block, tokens="response")
        return self._probe.log_odds(rows)

    @cached_property
    def _samples(self) -> Samples:
        """Rows of the contrast at the block that the probe reads."""
        rows = activations(
            self.model,
            self.tokenizer,
            self.contrast,
            probe_block(self.model),
            tokens="response",
            cache=self.cache,
        )
        return validate("assess", False, *rows, self.contrast.groups)

    @cached_property
    def _probe(self) -> Probe:
        return fit_probe(probe_block(self.model), self._samples, self.seed)

    @cached_property
    def _classes(self) -> tuple[float, float, float]:
        return _held_out(self._probe.block, self._samples, self.seed)


def _warnings(contrast: Contrast, word: str, start: float, auc: float) -> list[str]:
    warnings = confounds(contrast)
    if auc < LEAST_AUC:
        warnings.append(
            f"The classes hardly differ for the model (AUC {auc:.2f} on held-out groups): give "
            f"texts that show the behaviour more plainly."
        )
    if word in (WEAK, NOTHING) and start > ALREADY:
        warnings.append(
            f"The model writes like this already: its unsteered answers lie at {start:.2f} of the "
            f"way from the unwanted to the wanted class."
        )
    return warnings


def verdict(effect: Interval, perplexity_ratio: float, repetition: float, auc: float = 1.0) -> str:
    """Return the verdict of an effect, and of what it costs.

    Args:
        effect: over prompts, in units of the distance of the classes.
        perplexity_ratio: steered over unsteered.
        repetition: share of repeated trigrams, steered minus unsteered.
        auc: of the probe that measured the effect; nothing "works" by one that cannot tell the
            classes apart.
    """
    if perplexity_ratio > MOST_PERPLEXITY or repetition > MOST_REPETITION:
        return BREAKS
    if effect.low >= VISIBLE / 2 and effect.mean >= VISIBLE and auc >= LEAST_AUC:
        return WORKS
    if effect.low > 0.0 or effect.mean >= VISIBLE:
        return WEAK
    if effect.high <= -VISIBLE / 2 and effect.mean <= -VISIBLE:
        return OPPOSITE
    return NOTHING


def _held_out(block: int, samples: Samples, seed: int) -> tuple[float, float, float]:
    """Return AUC, mean log-odds of unwanted texts, and the distance to those of wanted ones.

    All on held-out groups; in sample where nothing can be held out.
    """
    every = np.arange(len(samples.labels))
    folds = samples.folds(5, seed) or [(every, every)]
    scores = np.concatenate(
        [
            fit_probe(block, samples.subset(fit), seed).log_odds(samples.rows[test])
            for fit, test in folds
        ]
    )
    labels = np.concatenate([samples.labels[test] for _, test in folds])
    wanted, unwanted = (float(scores[labels == label].mean()) for label in (1, 0))
    return float(roc_auc_score(labels, scores)), unwanted, max(wanted - unwanted, LEAST_DISTANCE)


def _repetition(texts: Sequence[str]) -> float:
    """Return the share of trigrams that repeat an earlier one of their text; 1 for no text."""
    shares = [
        1.0 - distinct([text], 3) if len(text.split()) >= 3 else float(not text.strip())
        for text in texts
    ]
    return float(np.mean(shares))


def _mean(logprobs: Tensor) -> float:
    return float(logprobs.double().mean()) if len(logprobs) else float("nan")


def prompts_of(contrast: Contrast) -> Sequence[str | Messages]:
    """Return up to `len(PROMPTS)` different prompts of a contrast, or the neutral ones."""
    own = {str(e.prompt): e.prompt for e in contrast.positive if e.prompt is not None}
    prompts = list(own.values())
    count = min(len(prompts), len(PROMPTS))
    return [prompts[i * len(prompts) // count] for i in range(count)] or PROMPTS


def probe_block(model: nn.Module) -> int:
    """Return the block that the probe reads.

    Five sixths up the probe agrees best with a classifier of sentence embeddings (r = .65 to .75
    per text on three behaviours, SmolLM2-135M), and it is not the block that is steered.
    """
    return len(find_layers(model)) * 5 // 6
