"""Per-user state: controls, chat turns, fitted steerings, the running generation.

The model and the library are shared; nothing here is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from odesteer.common.expression import NAME, build
from odesteer.common.registry import lookup
from odesteer.models.chat_template import Messages, encode
from odesteer.models.generation import Sampling
from odesteer.models.hooks.positions import PositionRule
from odesteer.models.layers import config_value
from odesteer.ode import Angle, Target, Time
from odesteer.playground.library import SharedModel, Source, SteeringLibrary
from odesteer.playground.side_by_side import GeneratedText, Steerings, write
from odesteer.steering import Steering
from odesteer.steering.layer_steering import find_solver

LEARNT, ANGLE, STRENGTH, TARGET = DOSES = ("as learnt", "angle", "strength", "target")
AS_LEARNT = "as learnt"  # the solver, the positions


class Controls(BaseModel):
    """Values of all controls of the page, within their bounds.

    Attributes:
        expression: a name in the library, or names joined by `&`, `|` and `~`.
        method, layer: for contrasts; a saved steering has its own. None: the best layer.
        dose: one of `DOSES`.
        amount: the multiple of the learnt dose, the angle or the strength; with a target, the angle
            it may spend.
        probability: where a target stops.
        also, also_amount: a second aim and the multiple of its learnt dose; "" for none.
        rival: another method, whose text is written beside; "" for none.
        solver: "as learnt" or a name in `SOLVERS`.
        steps: of that solver; 0: as learnt.
        positions: "as learnt", or which tokens, see `odesteer.models.hooks.positions`.
        max_new_tokens, temperature, top_p, repetition_penalty, seed: of all texts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    expression: Annotated[str, Field(max_length=1000)] = ""
    method: Annotated[str, Field(max_length=100)] = "odesteer"
    layer: Annotated[int | None, Field(ge=0, le=1000)] = None
    dose: Annotated[str, Field(max_length=20)] = LEARNT
    amount: Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)] = 1.0
    probability: Annotated[float, Field(gt=0, lt=1)] = 0.9
    also: Annotated[str, Field(max_length=1000)] = ""
    also_amount: Annotated[float, Field(ge=-10, le=10, allow_inf_nan=False)] = 0.7
    rival: Annotated[str, Field(max_length=100)] = ""
    solver: Annotated[str, Field(max_length=100)] = AS_LEARNT
    steps: Annotated[int, Field(ge=0, le=100)] = 0
    positions: Annotated[str, Field(max_length=200)] = AS_LEARNT
    max_new_tokens: Annotated[int, Field(ge=1, le=512)] = 64
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    repetition_penalty: Annotated[float, Field(ge=1, le=2)] = 1.0
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0

    @property
    def sampling(self) -> Sampling:
        """Sampling of all texts."""
        return Sampling(
            self.max_new_tokens,
            self.temperature,
            self.top_p,
            self.repetition_penalty,
            seed=self.seed,
        )

    def dosed(self, steering: Steering) -> Steering:
        """Return a steering at the dose; ValueError for a target without a positive budget."""
        lookup(dict.fromkeys(DOSES), self.dose, "dose")
        if self.dose == LEARNT:
            return self.amount * steering
        if self.dose == STRENGTH:
            return steering.with_strength(Time(self.amount))
        angle = Angle(self.amount)
        target = self.dose == TARGET
        return steering.with_strength(Target(self.probability, angle) if target else angle)

    def ready(self, library: SteeringLibrary) -> bool:
        """Whether nothing needs to be fitted; ValueError for a name that is not in the library."""
        return all(
            lookup(library, name, "steering").ready(self.method, self.fit_layer(library, aim))
            for aim in (self.expression, self.also)
            for name in NAME.findall(aim)
        )

    def fit_layer(self, library: SteeringLibrary, expression: str) -> int | None:
        """Return the layer for the contrasts of an expression, or None for the best.

        That of a saved steering in it comes first; where several contrasts are joined, all are
        fitted at the best layer of the first.
        """
        names = list(dict.fromkeys(NAME.findall(expression)))
        sources: list[Source] = [lookup(library, name, "steering") for name in names]
        fixed = [source.layer for source in sources if source.layer is not None]
        # The layer on the page is the first aim's.
        layer = self.layer if expression == self.expression else None
        if fixed or layer is not None or len(sources) < 2:
            return fixed[0] if fixed else layer
        best: int | None = getattr(sources[0], "best", None)
        return best

    def steerings(self, shared: SharedModel, library: SteeringLibrary) -> Steerings:
        """Build what is attached: the first aim, and the second one after it.

        Raises:
            ValueError: for an invalid expression, names that are not in the library, steerings
                that do not compose, or an invalid control.
        """
        if self.positions != AS_LEARNT:
            PositionRule.parse(self.positions)
        if not self.expression.strip():
            raise ValueError(f"Choose a steering; there is {', '.join(library)}.")
        first = self.dosed(self._built(self.expression, shared, library))
        changes: dict[str, Any] = {}
        if self.solver != AS_LEARNT:
            find_solver(self.solver)
            changes["solver"] = self.solver
        if self.steps:
            changes["steps"] = self.steps
        first = first.replace(**changes)
        if not self.also.strip():
            return (first,)
        second = self.also_amount * self._built(self.also, shared, library)
        if any(part.field.prompt_conditioned for part in second.parts):
            raise ValueError(f"{second.method} reads the prompt, and can be the first aim only.")
        return first, second

    def _built(self, expression: str, shared: SharedModel, library: SteeringLibrary) -> Steering:
        parts: dict[str, Steering] = {}
        for name in NAME.findall(expression):
            layer = self.fit_layer(library, expression)
            parts[name] = lookup(library, name, "steering").get(shared, self.method, layer)
        steering: Steering = build(expression, parts)
        return steering


class State(Controls):
    """Controls and what the model reads: all that a link restores.

    It is read from addresses that anyone may have written. Names are looked up when a text is
    written, so a name that is no steering of this page is an error, and never a path.
    """

    prompt: Annotated[str, Field(max_length=2000)] = ""
    system: Annotated[str, Field(max_length=2000)] = ""

    def query(self) -> str:
        """Return the part of an address after `?`: what differs from the defaults."""
        return urlencode(self.model_dump(exclude_defaults=True))

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "State | None":
        """Read the query of an address; None where it has no state.

        Raises:
            ValueError: for an unknown key, or a value outside its bounds, with its name.
        """
        # Gradio's own, such as the theme, begin with an underscore.
        given = {key: value for key, value in query.items() if not key.startswith("_")}
        return checked(cls, given) if given else None


def checked(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Return an object of `kind`; ValueError with one line for values out of bounds."""
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])[:40]
        raise ValueError(f"'{name}' cannot be used: {first['msg']}.") from None


@dataclass(frozen=True)
class Turn:
    """Prompt and the answer of each side."""

    prompt: str
    texts: tuple[str, ...]

    def text(self, side: int) -> str:
        """Answer of a side; of one that was not there yet, the steered one."""
        return self.texts[min(side, len(self.texts) - 1)]


@dataclass
class Session:
    """State of one open page.

    Attributes:
        private: steerings that this person fitted or saved, by name.
        turns: of the chat, before the current prompt.
        prompt: the current one.
        texts: its texts as far as they are written: unsteered, steered, by a rival method.
        generation: time of the newest request; an older generation stops.
    """

    private: dict[str, Source] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    prompt: str = ""
    texts: tuple[GeneratedText, ...] = ()
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
        elif any(text.tokens for text in self.texts):
            self.turns.append(Turn(self.prompt, tuple(text.text for text in self.texts)))
        self.prompt, self.texts = prompt, ()

    def forget(self) -> None:
        """Begin a new chat; a text that is being written stops."""
        self.turns, self.prompt, self.texts = [], "", ()
        self.claim()

    def messages(self, tokenizer: Any, system: str, side: int) -> str | Messages:
        """Return the model's input on one side: 0 unsteered, 1 steered, 2 by a rival method."""
        if tokenizer.chat_template is None:
            transcript = [f"{turn.prompt}\n{turn.text(side).strip()}\n" for turn in self.turns]
            return "".join(transcript) + self.prompt
        messages = [{"role": "system", "content": system}] if system.strip() else []
        for turn in self.turns:
            messages += [
                {"role": "user", "content": turn.prompt},
                {"role": "assistant", "content": turn.text(side).strip()},
            ]
        return [*messages, {"role": "user", "content": self.prompt}]

    def write(
        self,
        shared: SharedModel,
        controls: Controls,
        sides: list[Steerings],
        system: str,
        generation: float,
    ) -> Iterator[tuple[GeneratedText, ...]]:
        """Yield all texts as they grow, until they are complete or a newer generation begins."""
        prompts = [
            encode(shared.tokenizer, self.messages(shared.tokenizer, system, side))
            for side in range(len(sides))
        ]
        _check_context(shared, max(map(len, prompts)), controls.max_new_tokens)
        positions = None if controls.positions == AS_LEARNT else controls.positions
        for texts in write(shared, prompts, sides, positions, controls.sampling):
            if self.generation != generation:
                return
            self.texts = texts
            yield texts


def _check_context(shared: SharedModel, prompt: int, new: int) -> None:
    """Raise ValueError if prompt and new tokens exceed the model's context."""
    limit = config_value(shared.model, "max_position_embeddings")
    if limit is not None and prompt + new > limit:
        raise ValueError(
            f"The prompt has {prompt} tokens, and {shared.name} reads {limit} with the {new} new "
            f"ones: shorten it, ask for fewer new tokens, or begin a new chat."
        )
