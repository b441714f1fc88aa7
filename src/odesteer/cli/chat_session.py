"""Chat session with a steered model, and its slash commands.

Nothing here knows of a terminal: lines come in, texts go out.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from odesteer.cli.console import bar
from odesteer.cli.load_steering import as_layers

if TYPE_CHECKING:
    from odesteer.models.hooks.stats import StepStats
    from odesteer.ode import Dose
    from odesteer.steering import Steering

Write = Callable[[str], None]
Refit = Callable[[str, Any], "Steering"]  # a method's name and a layer, or layers

COMMANDS = {
    "/strength T": "integration time; 0 is the unsteered model, negative steers away",
    "/angle A": "path length over the activation's norm, such as 0.2",
    "/target P": "stop each token where P(positive) reaches this; the dose is its budget",
    "/off": "talk to the unsteered model, and see what the barrier says of it",
    "/on": "steer again",
    "/method NAME": "fit another method on the contrast of this chat",
    "/layer N": "fit at another layer; several as 10,13",
    "/save DIR": "write the steering with its dose",
    "/reset": "forget what was said",
    "/help": "this list",
    "/quit": "leave; so does Ctrl-D",
}


class Quit(Exception):
    """Somebody has said goodbye."""


@dataclass
class Conversation:
    """A chat and the steering that it is held with.

    Attributes:
        model, tokenizer: of transformers, with a chat template.
        steering: what acts now; `on` says whether it does.
        refit: fits a method at a layer on the chat's contrast; None where there is none.
        positions, max_new_tokens: of generation.
        messages: what was said.
    """

    model: Any
    tokenizer: Any
    steering: "Steering"
    refit: Refit | None = None
    positions: str = "last+generated"
    max_new_tokens: int = 200
    on: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, text: str, write: Write) -> str:
        """Say something; `write` is given the answer as it comes. What the barrier says of it.

        Stopped with Ctrl-C, or failing, it is as if nothing had been said.
        """
        import torch
        from transformers import TextStreamer

        class Streamer(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                write(text + "\n" if stream_end else text)

        messages = [*self.messages, {"role": "user", "content": text}]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        one = self.steering if self.on else self.steering.with_strength(0.0)
        passes: list[StepStats] = []
        with one.attach(self.model, positions=self.positions) as handle, torch.no_grad():
            handle.subscribe(passes.append)
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                streamer=Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
            )
        said = output[0, inputs["input_ids"].shape[1] :]
        reply = self.tokenizer.decode(said, skip_special_tokens=True)
        self.messages = [*messages, {"role": "assistant", "content": reply}]
        return summary(passes, self.on)

    def command(self, line: str) -> str:
        """Do what a line that begins with / asks; what to say about it.

        Raises:
            Left: for /quit.
            ValueError: for what cannot be done, with the reason.
        """
        name, _, value = line[1:].partition(" ")
        value = value.strip()
        if name in ("quit", "exit"):
            raise Quit
        if name in ("off", "on"):
            self.on = name == "on"
        elif name == "reset":
            self.messages = []
            return "Forgotten."
        elif name == "help":
            width = max(map(len, COMMANDS))
            return "\n".join(f"{each:<{width}}  {words}" for each, words in COMMANDS.items())
        elif name in ("strength", "angle", "target"):
            self.steering = self.steering.with_strength(self._dose(name, _number(name, value)))
            self.on = True
        elif name == "method":
            self._fit(_given(name, value, "caa"), self.steering.layer, "another method")
        elif name == "layer":
            layers = as_layers(_given(name, value, "14"))
            self._fit(self.steering.method, layers, "at another layer")
        elif name == "save":
            path = self.steering.save_pretrained(Path(_given(name, value, "mine")))
            return f"Wrote {path}; use it with --steering {path}"
        else:
            from odesteer.common.registry import lookup

            lookup({each.split()[0]: None for each in COMMANDS}, f"/{name}", "command")
        return self.about()

    def about(self) -> str:
        """What acts now."""
        one = self.steering
        layer = one.layer
        where = f"layer {layer}" if isinstance(layer, int) else f"layers {list(layer or ())}"
        return f"{one.method} at {where}, {one.dose}" + ("" if self.on else "; off")

    def _dose(self, name: str, value: float) -> "Dose | float":
        from odesteer.ode import Angle, Target

        if name == "target":
            budget = getattr(self.steering.strength, "budget", self.steering.strength)
            return Target(value, budget=budget)
        return Angle(value) if name == "angle" else value

    def _fit(self, method: str, layer: Any, what: str) -> None:
        if self.refit is None:
            raise ValueError(
                f"Fitting {what} needs texts to learn from, and this chat was given none: start "
                f"it with --contrast FILE, beside --steering or --method."
            )
        fitted = self.refit(method, layer)
        if _transfers(self.steering.strength):
            fitted = fitted.with_strength(self.steering.strength)
        self.steering = fitted


def summary(passes: "list[StepStats]", on: bool = True) -> str:
    """The barrier of an answer's tokens, before and after they were moved, and how far they were.

    Of several layers, the last one: there all of them have acted.
    """
    import torch

    last = max((one.layer or 0 for one in passes), default=0)
    mine = [one for one in passes if (one.layer or 0) == last]
    if not mine or not sum(len(one.rows) for one in mine):
        return "no token was steered"
    moved = torch.cat([one.relative_displacement for one in mine])
    share = float((moved > 0).float().mean())
    far = f"{len(moved)} tokens, {share:.0%} moved by {float(moved.mean()):.2f} of their norm"
    far = far if on else f"{len(moved)} tokens, unsteered"
    before = [one.log_odds_before for one in mine if one.log_odds_before is not None]
    after = [one.log_odds_after for one in mine if one.log_odds_after is not None]
    if not before:
        return far
    start, end = (float(torch.sigmoid(torch.cat(each)).mean()) for each in (before, after))
    change = f"{start:.2f} → {end:.2f}" if on else f"{start:.2f}"
    return f"P {bar(end)} {change}  {far}"


def _transfers(strength: Any) -> bool:
    """A path length over the norm means the same for every method and layer; a time does not."""
    from odesteer.ode import Angle

    return isinstance(getattr(strength, "budget", strength), Angle)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"/{name} takes a number; got '{text}'.") from None


def _given(name: str, value: str, such_as: str) -> str:
    if not value:
        raise ValueError(f"/{name} takes a value: /{name} {such_as}, say.")
    return value
