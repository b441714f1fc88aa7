"""Per-user state: controls, chat turns, fitted steerings, the running generation.

The model and the library are shared; nothing here is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from odesteer.common.expression import NAME, build
from odesteer.common.registry import lookup
from odesteer.models.chat_template import Messages, encode
from odesteer.models.generation import Sampling
from odesteer.models.hooks.positions import check_positions
from odesteer.models.layers import config_value
from odesteer.ode import Angle, Dose, Target, Time
from odesteer.playground.generate_pair import GeneratedText, write
from odesteer.playground.library import SharedModel, Source, SteeringLibrary
from odesteer.steering import Steering
from odesteer.steering.layer_steering import find_solver

ANGLE, STRENGTH, TARGET = DOSES = ("angle", "strength", "target")
AS_LEARNT = "as learnt"


@dataclass(frozen=True)
class Controls:
    """Values of all controls of the page; the defaults are those of a fresh page.

    Attributes:
        expression: a name in the library, or names joined by `&`, `|` and `~`.
        method, layer: for contrasts; a saved steering has its own.
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
        """Return the dose; ValueError for a target whose budget is not positive."""
        lookup(dict.fromkeys(DOSES), self.dose, "dose")
        if self.dose == STRENGTH:
            return Time(self.amount)
        angle = Angle(self.amount)
        return Target(self.probability, angle) if self.dose == TARGET else angle

    def sources(self, library: SteeringLibrary) -> dict[str, Source]:
        """Return the sources that the expression names, in its order.

        Raises:
            ValueError: for a name that is not in the library.
        """
        return {name: lookup(library, name, "steering") for name in NAME.findall(self.expression)}

    def fit_layer(self, library: SteeringLibrary) -> int:
        """Return the layer for contrasts: that of a saved steering in the expression, if any."""
        fixed = [s.layer for s in self.sources(library).values() if s.layer is not None]
        return fixed[0] if fixed else self.layer

    def steering(self, shared: SharedModel, library: SteeringLibrary) -> Steering:
        """Build the steering to attach.

        Raises:
            ValueError: for an invalid expression, names that are not in the library, steerings
                that do not compose, or an invalid control.
        """
        check_positions(self.positions)
        if not self.expression.strip():
            raise ValueError(f"Choose a steering; there is {', '.join(library)}.")
        layer = self.fit_layer(library)
        parts = {
            name: source.get(shared, self.method, layer)
            for name, source in self.sources(library).items()
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
    """Prompt and both answers."""

    prompt: str
    texts: tuple[str, str]


@dataclass
class Session:
    """State of one open page.

    Attributes:
        private: steerings that this person fitted or saved, by name.
        turns: of the chat, before the current prompt.
        prompt: the current one.
        pair: its texts as far as they are written.
        generation: time of the newest request; an older generation stops.
    """

    private: dict[str, Source] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    prompt: str = ""
    pair: tuple[GeneratedText, GeneratedText] = field(
        default_factory=lambda: (GeneratedText(), GeneratedText())
    )
    generation: float = 0.0

    def library(self, public: SteeringLibrary) -> dict[str, Source]:
        """Return the public steerings and those of this person."""
        return {**public, **self.private}

    def claim(self, requested_at: float | None = None) -> float:
        """Begin a generation, by the clock of the page that requested it; older ones stop.

        Generations may begin in another order than they were requested: one that is older than
        the newest stops at once.
        """
        generation = self.generation + 1.0 if requested_at is None else requested_at
        self.generation = max(self.generation, generation)
        return generation

    def send(self, prompt: str, chat: bool) -> None:
        """Set a new prompt: after the earlier turns of a chat, or from the beginning.

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
        """Begin a new chat; a text that is being written stops."""
        self.turns, self.prompt, self.pair = [], "", (GeneratedText(), GeneratedText())
        self.claim()

    def messages(self, tokenizer: Any, system: str, side: int) -> str | Messages:
        """Return the model's input on one side: 0 unsteered, 1 steered."""
        if tokenizer.chat_template is None:
            transcript = [f"{turn.prompt}\n{turn.texts[side].strip()}\n" for turn in self.turns]
            return "".join(transcript) + self.prompt
        messages = [{"role": "system", "content": system}] if system.strip() else []
        for turn in self.turns:
            messages += [
                {"role": "user", "content": turn.prompt},
                {"role": "assistant", "content": turn.texts[side].strip()},
            ]
        return [*messages, {"role": "user", "content": self.prompt}]

    def write(
        self,
        shared: SharedModel,
        controls: Controls,
        steering: Steering,
        system: str,
        generation: float,
    ) -> Iterator[tuple[GeneratedText, GeneratedText]]:
        """Yield both texts as they grow, until they are complete or a newer generation begins."""
        prompts = [self.messages(shared.tokenizer, system, side) for side in (0, 1)]
        ids = (encode(shared.tokenizer, prompts[0]), encode(shared.tokenizer, prompts[1]))
        _check_context(shared, max(map(len, ids)), int(controls.max_new_tokens))
        sampling = Sampling(
            max_new_tokens=int(controls.max_new_tokens),
            temperature=controls.temperature,
            seed=int(controls.seed),
        )
        for pair in write(shared, ids, steering, controls.positions, sampling):
            if self.generation != generation:
                return
            self.pair = pair
            yield pair


def _check_context(shared: SharedModel, prompt: int, new: int) -> None:
    """Raise ValueError if prompt and new tokens exceed the model's context."""
    limit = config_value(shared.model, "max_position_embeddings")
    if limit is not None and prompt + new > limit:
        raise ValueError(
            f"The prompt has {prompt} tokens, and {shared.name} reads {limit} with the {new} new "
            f"ones: shorten it, ask for fewer new tokens, or begin a new chat."
        )
