"""Assessment of a steering by what the model writes, and a verdict in one word.

The model answers a few prompts, unsteered and steered. The unsteered model then reads both answers,
and a probe, fitted on how it reads the contrast, says how far they moved from the unwanted class
towards the wanted one:

    effect = mean_i (s(steered_i) - s(unsteered_i)) / (E s(wanted) - E s(unwanted))

s is the probe's log-odds at the mean activation of an answer's tokens; the denominator is taken on
held-out groups, so that 1 is the distance of the classes. The probe reads finished texts without
the steering, so it cannot be moved but by what was written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from odesteer.backends import Sampling, TransformersBackend
from odesteer.data import Contrast
from odesteer.data.arguments import forgiving
from odesteer.data.confounds import confounds
from odesteer.evaluation.metrics import distinct
from odesteer.evaluation.selection.effect import fit_probe
from odesteer.evaluation.statistics.bootstrap import Interval, interval
from odesteer.extraction.cache.store import CacheChoice
from odesteer.extraction.extract import Progress, activations
from odesteer.methods.samples import Samples, validate
from odesteer.models.chat_template import Messages, question
from odesteer.models.layers import find_layers
from odesteer.steering import Steering

WORKS, WEAK, NOTHING, BREAKS = "works", "weak", "nothing happens", "breaks the text"
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
# Random directions of the same KL moved by 0.07 at most (three of experiments/few_pairs.py).
VISIBLE = 0.15
# Perplexity under the unsteered model, steered over unsteered, and the share of repeated trigrams.
MOST_PERPLEXITY, MOST_REPETITION = 2.0, 0.2
# Where unsteered answers lie from which on there is little to add.
ALREADY = 0.8
# Of the probe on held-out texts; below it, the classes hardly differ.
LEAST_AUC = 0.65


@dataclass(frozen=True)
class Assessment:
    """What a steering does to what is written.

    Attributes:
        verdict: "works", "weak", "nothing happens" or "breaks the text".
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
    contrast = Contrast.of(contrast)
    chosen = list(_prompts(contrast) if prompts is None else prompts)
    if not chosen:
        raise ValueError("There is no prompt to answer; give at least one, or None for the usual.")
    report = progress or (lambda done, of: None)
    report(0, 4)
    n = len(chosen)
    backend = TransformersBackend(model, tokenizer, template=contrast.template, batch_size=2 * n)
    answers = backend.generate(
        chosen * 2, [None] * n + [steering] * n, Sampling(max_new_tokens=new_tokens)
    )
    report(1, 4)
    block = probe_block(model)
    samples = validate(
        "assess",
        False,
        *activations(model, tokenizer, contrast, block, tokens="response", cache=cache),
        contrast.groups,
    )
    report(2, 4)
    auc, unwanted, distance = _held_out(block, samples, seed)
    probe = fit_probe(block, samples, seed)
    written = [text or " " for text in answers]
    # Bare texts are read without a prompt, and so is what is compared with them.
    bare = contrast.positive[0].prompt is None
    texts = written if bare else list(zip(chosen * 2, written, strict=True))
    both = Contrast.from_pairs(texts[:n], texts[n:], template=contrast.template)
    before, after = map(
        probe.log_odds, activations(model, tokenizer, both, block, tokens="response")
    )
    report(3, 4)
    effect = interval((after - before) / distance, seed)
    start = float((before.mean() - unwanted) / distance)
    likelihood = np.array([_mean(each) for each in backend.logprobs(chosen * 2, answers)])
    changes = likelihood[:n] - likelihood[n:]
    changes = changes[np.isfinite(changes)]
    ratio = float(np.exp(changes.mean())) if len(changes) else 1.0
    repetition = [_repetition(part) for part in (answers[:n], answers[n:])]
    word = verdict(effect, ratio, repetition[1] - repetition[0])
    report(4, 4)
    return Assessment(
        word,
        effect,
        ratio,
        repetition[1],
        tuple(zip(map(question, chosen), answers[:n], answers[n:], strict=True)),
        start,
        auc,
        tuple(_warnings(contrast, word, start, auc)),
    )


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


def verdict(effect: Interval, perplexity_ratio: float, repetition: float) -> str:
    """Return the verdict of an effect, and of what it costs.

    Args:
        effect: over prompts, in units of the distance of the classes.
        perplexity_ratio: steered over unsteered.
        repetition: share of repeated trigrams, steered minus unsteered.
    """
    if perplexity_ratio > MOST_PERPLEXITY or repetition > MOST_REPETITION:
        return BREAKS
    if effect.low > 0.0 and effect.mean >= VISIBLE:
        return WORKS
    if effect.low > 0.0 or effect.mean >= VISIBLE:
        return WEAK
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
    return float(roc_auc_score(labels, scores)), unwanted, max(wanted - unwanted, 1e-6)


def _repetition(texts: Sequence[str]) -> float:
    """Return the share of trigrams that repeat an earlier one of their text; 1 for no text."""
    shares = [
        1.0 - distinct([text], 3) if len(text.split()) >= 3 else float(not text.strip())
        for text in texts
    ]
    return float(np.mean(shares))


def _mean(logprobs: Tensor) -> float:
    return float(logprobs.double().mean()) if len(logprobs) else float("nan")


def _prompts(contrast: Contrast) -> Sequence[str | Messages]:
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
