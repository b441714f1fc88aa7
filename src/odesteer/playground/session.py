"""Per-user state: settings, chat turns, fitted steerings, the running generation.

Their own steerings, what they have said, and which of their generations is the current one.
Model and shelf are shared; nothing here is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from odesteer.backends.base import Sampling
from odesteer.common.registry import lookup
from odesteer.models.chat_template import Messages, encode
from odesteer.models.hooks.positions import check_positions
from odesteer.models.layers import config_value
from odesteer.ode import Angle, Dose, Target, Time
from odesteer.playground.generate_pair import GeneratedText, write
from odesteer.playground.library import SharedModel, Source, SteeringLibrary
from odesteer.steering import Steering
from odesteer.steering.expression import NAME, build
from odesteer.steering.layer_steering import find_solver

ANGLE, STRENGTH, TARGET = DOSES = ("angle", "strength", "target")
AS_LEARNT = "as learnt"


@dataclass(frozen=True)
class Controls:
    """All controls of the page; the defaults are those of a fresh page.

    Attributes:
        expression: a name on the shelf, or names joined by `&`, `|` and `~`.
        method, layer: for contrasts on the shelf; a saved steering has its own.
        dose: one of `DOSES`.
        amount: the angle or the strength; with a target, the angle it may spend.
        probability: where a target stops.
        solver: "as learnt" or a name in `SOLVERS`.
        steps: of that solver; 0: as learnt.
        positions: which tokens, see `odesteer.models.hooks.positions`.
        max_new_tokens, temperature, seed: of both texts.
    """

    expression: str
    method: str = "odesteer"
    layer: int = 0
    dose: str = ANGLE
    amount: float = 0.2
    probability: float = 0.9
    solver: str = AS_LEARNT
    steps: int = 0
    positions: str = "last+generated"
    max_new_tokens: int = 40
    temperature: float = 0.0
    seed: int = 0

    def strength(self) -> Dose:
        """The dose; ValueError for a target whose budget is not positive."""
        lookup(dict.fromkeys(DOSES), self.dose, "dose")
        if self.dose == STRENGTH:
            return Time(self.amount)
        angle = Angle(self.amount)
        return Target(self.probability, angle) if self.dose == TARGET else angle

    def used(self, shelf: SteeringLibrary) -> dict[str, Source]:
        """The sources that the expression names, in its order.

        Raises:
            ValueError: for a name that is not on the shelf.
        """
        return {name: lookup(shelf, name, "steering") for name in NAME.findall(self.expression)}

    def place(self, shelf: SteeringLibrary) -> int:
        """The layer at which contrasts are learnt: that of a saved steering they compose with."""
        fixed = [s.layer for s in self.used(shelf).values() if s.layer is not None]
        return fixed[0] if fixed else self.layer

    def steering(self, desk: SharedModel, shelf: SteeringLibrary) -> Steering:
        """What is to be attached.

        Raises:
            ValueError: for what is no expression, names that are not on the shelf, steerings
                that do not compose, or a control that does not fit.
        """
        check_positions(self.positions)
        if not self.expression.strip():
            raise ValueError(f"Choose a steering; there is {', '.join(shelf)}.")
        layer = self.place(shelf)
        parts = {
            name: source.obtain(desk, self.method, layer)
            for name, source in self.used(shelf).items()
        }
        whole = build(self.expression, parts).with_strength(self.strength())
        changes: dict[str, Any] = {}
        if self.solver != AS_LEARNT:
            find_solver(self.solver)
            changes["solver"] = self.solver
        if self.steps:
            changes["steps"] = int(self.steps)
        return whole.replace(**changes)


@dataclass(frozen=True)
class Turn:
    """What was asked, and both answers."""

    prompt: str
    texts: tuple[str, str]


@dataclass
class Session:
    """One open page.

    Attributes:
        own: steerings that this person fitted or saved.
        turns: of the chat, before the current prompt.
        prompt: the current one.
        pair: its texts as far as they are written.
        generation: when the newest generation was asked for; an older one stops.
    """

    own: dict[str, Source] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    prompt: str = ""
    pair: tuple[GeneratedText, GeneratedText] = field(
        default_factory=lambda: (GeneratedText(), GeneratedText())
    )
    generation: float = 0.0

    def shelf(self, shared: SteeringLibrary) -> dict[str, Source]:
        """What this person can choose from."""
        return {**shared, **self.own}

    def claim(self, asked: float | None = None) -> float:
        """Begin a generation, by the clock of whoever asked for it; older ones stop.

        Answers may begin in another order than they were asked for: one that is older than the
        newest stops at once.
        """
        mine = self.generation + 1.0 if asked is None else asked
        self.generation = max(self.generation, mine)
        return mine

    def send(self, prompt: str, chat: bool) -> None:
        """A new prompt: after what was said, or from the beginning.

        Raises:
            ValueError: for an empty prompt.
        """
        if not prompt.strip():
            raise ValueError("The prompt is empty; write something for the model to answer.")
        if not chat:
            self.turns = []
        elif self.pair[0].tokens or self.pair[1].tokens:
            self.turns.append(Turn(self.prompt, (self.pair[0].text, self.pair[1].text)))
        self.prompt, self.pair = prompt, (GeneratedText(), GeneratedText())

    def forget(self) -> None:
        """A new chat; a text that is being written stops."""
        self.turns, self.prompt, self.pair = [], "", (GeneratedText(), GeneratedText())
        self.claim()

    def messages(self, tokenizer: Any, system: str, side: int) -> str | Messages:
        """What the model is asked on one side: 0 unsteered, 1 steered."""
        if tokenizer.chat_template is None:
            said = [f"{turn.prompt}\n{turn.texts[side].strip()}\n" for turn in self.turns]
            return "".join(said) + self.prompt
        messages = [{"role": "system", "content": system}] if system.strip() else []
        for turn in self.turns:
            messages += [
                {"role": "user", "content": turn.prompt},
                {"role": "assistant", "content": turn.texts[side].strip()},
            ]
        return [*messages, {"role": "user", "content": self.prompt}]

    def write(
        self, desk: SharedModel, setting: Controls, steering: Steering, system: str, mine: float
    ) -> Iterator[tuple[GeneratedText, GeneratedText]]:
        """Both texts as they grow, until they are complete or there is a newer claim than mine."""
        asked = [self.messages(desk.tokenizer, system, side) for side in (0, 1)]
        ids = (encode(desk.tokenizer, asked[0]), encode(desk.tokenizer, asked[1]))
        _check_context(desk, max(map(len, ids)), int(setting.max_new_tokens))
        sampling = Sampling(
            max_new_tokens=int(setting.max_new_tokens),
            temperature=setting.temperature,
            seed=int(setting.seed),
        )
        for pair in write(desk, ids, steering, setting.positions, sampling):
            if self.generation != mine:
                return
            self.pair = pair
            yield pair


def _check_context(desk: SharedModel, prompt: int, new: int) -> None:
    """ValueError if a prompt and the new tokens, counted, are more than the model reads."""
    limit = config_value(desk.model, "max_position_embeddings")
    if limit is not None and prompt + new > limit:
        raise ValueError(
            f"The prompt has {prompt} tokens, and {desk.name} reads {limit} with the {new} new "
            f"ones: shorten it, ask for fewer new tokens, or begin a new chat."
        )
