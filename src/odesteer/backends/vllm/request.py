"""Steering request of a client.

    {"name": "truthful", "strength": 1.0, "positions": "last+generated"}

or a list of such objects. A client names steerings that the operator loaded: never a path, never
code. Over HTTP the object travels as a JSON string in `vllm_xargs`, offline in `extra_args`.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from odesteer.common.catalogue import LAST_AND_GENERATED
from odesteer.common.expression import LONGEST_NAME
from odesteer.common.limits import brief, parse_json
from odesteer.models.hooks.positions import PositionRule, Span
from odesteer.ode import Angle, Dose, Target, Time

KEY = "odesteer"
# What `start` may say besides a number, and the rule that it stands for.
STARTS = {"all": "all", "last_prompt": "last+generated", "generated": "generated"}
_DOSES = ("strength", "angle", "target", "coverage")
_FIELDS = ("name", *_DOSES, "positions", "start")
# Far beyond any dose that leaves a sentence; a mistyped exponent is not worth a server's NaN.
LARGEST = 1e4
MOST = 8  # steerings a request may ask for
# Eight steerings with all their fields are 1,400 characters. The cache of texts holds at most
# this times `_CACHED_TEXTS`: 2 MB a process.
LONGEST_TEXT = 2048
_CACHED_TEXTS = 1024


@dataclass(frozen=True)
class SteeringRequest:
    """One steering of a request.

    Attributes:
        name: of a steering that the server has.
        dose: None is the steering's own dose.
        positions: which tokens, as canonical text (see `odesteer.models.hooks.positions`) or as the
            position of the first steered token; None is the steering's own.
        probability: at which each token stops; the dose is then the budget.
        coverage: of that target, see `odesteer.ode.Target`.
    """

    name: str
    dose: Dose | None = None
    positions: str | int | None = None
    probability: float | None = None
    coverage: float | None = None

    def spans(self, prompt_length: int, default: str = LAST_AND_GENERATED) -> tuple[Span, ...]:
        """Return the steered positions as spans, counted from the start of the prompt.

        Args:
            prompt_length: number of its tokens.
            default: positions of the steering itself.
        """
        positions = default if self.positions is None else self.positions
        return _spans(positions, prompt_length)

    def dose_at(self, default: Dose) -> Dose:
        """Return the dose; `default` is the steering's own."""
        dose = default if self.dose is None else self.dose
        if self.probability is None:
            return dose
        return Target(self.probability, getattr(dose, "budget", dose), self.coverage)

    def as_value(self) -> dict[str, Any]:
        """Return the object that `parse` reads."""
        value: dict[str, Any] = {"name": self.name}
        if self.positions is not None:
            value["start" if isinstance(self.positions, int) else "positions"] = self.positions
        if self.probability is not None:
            value["target"] = self.probability
        if self.coverage is not None:
            value["coverage"] = self.coverage
        if self.dose is not None:
            value["angle" if isinstance(self.dose, Angle) else "strength"] = self.dose.size
        return value


def parse(value: Any) -> tuple[SteeringRequest, ...]:
    """Parse what a request asks for: a JSON string, or the object or list of objects in it.

    Raises:
        ValueError: for anything else; one line that says what a client should do.
    """
    if isinstance(value, str):
        # Before the text is cached, compared or shown.
        if len(value) > LONGEST_TEXT:
            raise ValueError(
                f"{KEY} has {len(value):,} characters, more than the {LONGEST_TEXT:,} that it may "
                f"have."
            )
        return _parse_text(value)
    if isinstance(value, Mapping):
        return (_parse_object(value),)
    if isinstance(value, list | tuple):
        return _parse_list(value)
    raise ValueError(
        f'{KEY} is a JSON object such as {{"name": "truthful", "strength": 1.0}}, as a string; got '
        f"{_shown(value)}."
    )


def requests_of(params: Any) -> tuple[SteeringRequest, ...]:
    """Return what sampling parameters ask for; nothing for a pooling request."""
    extra = getattr(params, "extra_args", None)
    value = None if extra is None else extra.get(KEY)
    return () if value is None else parse(value)


def ask(
    name: str,
    *,
    strength: float | None = None,
    angle: float | None = None,
    target: float | None = None,
    coverage: float | None = None,
    positions: str | None = None,
    start: str | int | None = None,
) -> dict[str, str]:
    """Return the `extra_args` of `SamplingParams`, or `vllm_xargs` over HTTP, of a request.

    Args:
        name: of a steering that the engine has.
        strength: integration time; the steering's own dose by default.
        angle: path length relative to the activation's norm.
        target: stop each token where P(positive) reaches this; the rest is its budget.
        coverage: of that target: stop no earlier than where this share of rows is wanted.
        positions: which tokens, see `odesteer.models.hooks.positions`; None: the steering's own.
        start: instead of `positions`, "all", "last_prompt", "generated", or the first position
            that is steered.

    Raises:
        ValueError: for arguments that no server would take.
    """
    fields = {
        "strength": strength,
        "angle": angle,
        "target": target,
        "coverage": coverage,
        "positions": positions,
        "start": start,
    }
    text = json.dumps({"name": name, **{k: v for k, v in fields.items() if v is not None}})
    parse(text)
    return {KEY: text}


def misspelt(keys: Iterable[Any]) -> str | None:
    """Return the first key that is probably a misspelling of `KEY`, or None.

    >>> misspelt(["temperature", "OdeSteer"]), misspelt(["odesteer", "top_k", "steering"])
    ('OdeSteer', None)
    """
    for key in keys:
        if isinstance(key, str) and key != KEY and len(key) <= 64:
            plain = "".join(filter(str.isalpha, key.casefold()))
            if KEY in plain or plain in _NEAR:
                return key
    return None


def _one_letter_off(word: str) -> frozenset[str]:
    """Words that differ from `word` by one letter left out, put in, replaced or swapped."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    return frozenset(
        [before + after[1:] for before, after in cuts]
        + [before + after[1::-1] + after[2:] for before, after in cuts]
        + [before + letter + after[1:] for before, after in cuts for letter in letters]
        + [before + letter + after for before, after in cuts for letter in letters]
    ) - {word}


# A table, because a request may have many keys and difflib takes 20 us for each.
_NEAR = _one_letter_off(KEY)


@lru_cache(maxsize=_CACHED_TEXTS)
def _parse_text(text: str) -> tuple[SteeringRequest, ...]:
    try:
        value = parse_json(text.encode())
    except ValueError as error:
        raise ValueError(
            f'{KEY} is a JSON object in a string, such as \'{{"name": "truthful"}}\'; this is no '
            f"JSON that it takes ({brief(error, 80)}): {_shown(text)}."
        ) from None
    if isinstance(value, str):
        value = {"name": value}  # '"truthful"': the name alone
    return parse(value)


def _parse_list(values: Any) -> tuple[SteeringRequest, ...]:
    if not 1 <= len(values) <= MOST:
        raise ValueError(f"{KEY} takes 1 to {MOST} steerings a request; got {len(values)}.")
    requests = tuple(_parse_object(value) for value in values)
    names = [request.name for request in requests]
    if len(set(names)) < len(names):
        raise ValueError(f"{KEY} names a steering twice: {', '.join(map(_shown, names))}.")
    return requests


def _parse_object(value: Any) -> SteeringRequest:
    if not isinstance(value, Mapping):
        raise ValueError(f"{KEY}: a steering is an object with a name; got {_shown(value)}.")
    unknown = [key for key in value if key not in _FIELDS]
    if unknown:
        raise ValueError(f"{KEY} has no field {_shown(unknown[0])}; it takes {', '.join(_FIELDS)}.")
    name = value.get("name")
    if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME:
        raise ValueError(
            f"{KEY} needs the name of a steering, of 1 to {LONGEST_NAME} characters; got "
            f"{_shown(name)}."
        )
    positions = _parse_positions(value)
    numbers = {key: value[key] for key in _DOSES if value.get(key) is not None}
    dose, probability = _parse_dose(numbers)
    return SteeringRequest(name, dose, positions, probability, numbers.get("coverage"))


def _parse_positions(value: Mapping[str, Any]) -> str | int | None:
    """Return which tokens an object asks for, by either of its two fields."""
    if "start" not in value:
        if "positions" not in value:
            return None
        try:
            return str(PositionRule.parse(value["positions"]))
        except ValueError as error:
            raise ValueError(f"{KEY}: {error}") from None
    start = value["start"]
    if "positions" in value:
        raise ValueError(f"{KEY} takes positions or a start, not both.")
    if isinstance(start, int) and not isinstance(start, bool) and start >= 0:
        return start
    if not isinstance(start, str) or start not in STARTS:
        raise ValueError(
            f"{KEY}: start is {', '.join(STARTS)} or a position from 0; got {_shown(start)}."
        )
    return STARTS[start]


@lru_cache(maxsize=4096)
def _spans(positions: str | int, prompt_length: int) -> tuple[Span, ...]:
    # Once a request, not once a step.
    if isinstance(positions, int):
        return ((positions, None),)
    return PositionRule.parse(positions).spans(prompt_length)


def _parse_dose(fields: dict[str, Any]) -> tuple[Dose | None, float | None]:
    """Return the dose, and the probability at which to stop."""
    for key, number in fields.items():
        is_number = isinstance(number, int | float) and not isinstance(number, bool)
        if not is_number or not abs(number) <= LARGEST:  # nor NaN
            raise ValueError(
                f"{KEY}: {key} is a number between -{LARGEST:g} and {LARGEST:g}; got "
                f"{_shown(number)}."
            )
    if "strength" in fields and "angle" in fields:
        raise ValueError(f"{KEY} takes a strength or an angle, not both.")
    dose: Dose | None = None
    if "strength" in fields:
        dose = Time(fields["strength"])
    if "angle" in fields:
        dose = Angle(fields["angle"])
    target, coverage = fields.get("target"), fields.get("coverage")
    if coverage is not None and (target is None or not 0.0 < coverage < 1.0):
        raise ValueError(
            f"{KEY}: a coverage is a share between 0 and 1, beside a target; got {coverage}."
        )
    if target is not None:
        if not 0.0 < target < 1.0:
            raise ValueError(f"{KEY}: a target is a probability between 0 and 1; got {target}.")
        if dose is not None and dose.size <= 0:
            raise ValueError(
                f"{KEY}: the budget of a target is positive; got {dose.size:g}. To steer away, the "
                f"operator can load the negated steering."
            )
    return dose, target


def _shown(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):  # of any length
        return f"a {type(value).__name__}"
    return repr(brief(str(value), 60))
