"""`odesteer generate` and `odesteer chat`: text from a steered model.

`Conversation` and `talk` know nothing of a terminal: lines come in, texts go out.
"""

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

import odesteer as ods
from odesteer.cli import options
from odesteer.cli.console import (
    bar,
    err,
    out,
    parse_dose,
    parse_kl,
    plain,
    progress,
    show_answers,
    teaching_errors,
    tell,
)
from odesteer.cli.load_steering import as_layers, load_or_fit, read_contrast, with_solver
from odesteer.common import catalogue
from odesteer.common.registry import lookup

if TYPE_CHECKING:
    from odesteer.data import Contrast
    from odesteer.models.hooks.stats import StepStats
    from odesteer.ode import Dose
    from odesteer.steering import Steering


@teaching_errors
def generate(
    model: options.Model,
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="One or more prompts.")],
    steering: options.SteeringPath = None,
    method: options.MethodNow = None,
    contrast: options.ContrastNow = None,
    columns: options.Columns = None,
    layer: options.Layer = "auto",
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    coverage: options.Coverage = None,
    kl: options.KL = None,
    spread: options.Spread = False,
    solver: options.Solver = None,
    steps: options.Steps = None,
    positions: options.Positions = None,
    max_new_tokens: options.MaxNewTokens = 64,
    temperature: options.Temperature = 0.0,
    compare: Annotated[bool, typer.Option(help="Also print the unsteered text.")] = False,
    cache: options.Cache = True,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Generate with a steering, saved or fitted now.

    Example: odesteer generate smollm2 "How was the trip?" -s cheerful --angle -0.2 --compare

    Example: odesteer generate smollm2 "How was the trip?" --method mimic --layer 14
    """
    dose = parse_dose(strength, angle, target, coverage)
    budget = parse_kl(kl, dose)
    language_model, tokenizer, loaded = load_or_fit(
        model,
        steering,
        method,
        contrast,
        layer,
        dose,
        spread,
        positions,
        seed,
        cache,
        columns,
        solver,
        steps,
        budget=budget,
    )
    sampling: dict[str, Any] = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    if not compare:
        with progress("Generating") as callback:
            texts = loaded.generate(
                language_model,
                tokenizer,
                prompts,
                positions=positions,
                progress=callback,
                **sampling,
            )
        if as_json:
            pairs = zip(prompts, texts, strict=True)
            out.print_json(data=[{"prompt": p, "generation": text} for p, text in pairs])
        else:
            for text in texts:
                typer.echo(text)
        return
    with progress("Generating") as callback:
        both = loaded.compare(
            language_model, tokenizer, prompts, positions=positions, progress=callback, **sampling
        )
    if as_json:
        rows = zip(prompts, both.steered, both.unsteered, strict=True)
        out.print_json(data=[{"prompt": p, "generation": s, "unsteered": u} for p, s, u in rows])
        return
    for prompt, answers in both.rows():
        show_answers(prompt, answers)


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
    """Raised by /quit."""


@dataclass
class Conversation:
    """Chat with a model under a steering that can be changed.

    Attributes:
        model, tokenizer: of transformers, with a chat template.
        steering: the current steering; `on` says whether it acts.
        refit: fits a method at a layer on the chat's contrast; None without a contrast.
        positions, max_new_tokens: of generation; None: the steering's own positions.
        messages: the turns so far.
    """

    model: Any
    tokenizer: Any
    steering: "Steering"
    refit: Refit | None = None
    positions: str | None = None
    max_new_tokens: int = 200
    on: bool = True
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, text: str, write: Write) -> str:
        """Answer `text`, streamed to `write`; return a summary of the barrier.

        Stopped with Ctrl-C, or failing, it leaves the conversation unchanged.
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
        steering = self.steering if self.on else self.steering.with_strength(0.0)
        passes: list[StepStats] = []
        with steering.attach(self.model, positions=self.positions) as handle, torch.no_grad():
            handle.subscribe(passes.append)
            output = self.model.generate(
                **inputs,
                max_new_tokens=self.max_new_tokens,
                do_sample=False,
                streamer=Streamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True),
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id or 0,
            )
        answer = output[0, inputs["input_ids"].shape[1] :]
        reply = self.tokenizer.decode(answer, skip_special_tokens=True)
        self.messages = [*messages, {"role": "assistant", "content": reply}]
        return summary(passes, self.on)

    def command(self, line: str) -> str:
        """Run a line that begins with /; return the reply.

        Raises:
            Quit: for /quit.
            ValueError: for a command that cannot be carried out, with the reason.
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
            self._fit(_argument(name, value, "caa"), self.steering.layer, "another method")
        elif name == "layer":
            layers = as_layers(_argument(name, value, "14"))
            self._fit(self.steering.method, layers, "at another layer")
        elif name == "save":
            path = self.steering.save_pretrained(Path(_argument(name, value, "mine")))
            return f"Wrote {path}; use it with --steering {path}"
        else:
            lookup({each.split()[0]: None for each in COMMANDS}, f"/{name}", "command")
        return self.about()

    def about(self) -> str:
        """Describe the current method, layer and dose."""
        layer = self.steering.layer
        where = f"layer {layer}" if isinstance(layer, int) else f"layers {list(layer or ())}"
        return f"{self.steering.method} at {where}, {self.steering.dose}" + (
            "" if self.on else "; off"
        )

    def _dose(self, name: str, value: float) -> "Dose | float":
        if name == "target":
            now = self.steering.strength
            coverage = getattr(now, "coverage", None)
            return ods.Target(value, budget=getattr(now, "budget", now), coverage=coverage)
        return ods.Angle(value) if name == "angle" else value

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
    """Summarize an answer's tokens: the barrier before and after, displacement, how they ended.

    Of several layers, the last one counts: there all of them have acted.
    """
    import torch

    from odesteer.ode import Result

    last = max((each.layer or 0 for each in passes), default=0)
    stats = [each for each in passes if (each.layer or 0) == last]
    if not stats or not sum(len(each.rows) for each in stats):
        return "no token was steered"
    moved = torch.cat([each.relative_displacement for each in stats])
    share = float((moved > 0).float().mean())
    far = f"{len(moved)} tokens, {share:.0%} moved by {float(moved.mean()):.2f} of their norm"
    ended = [int(code) for each in stats for code in each.result]
    for result in (each for each in Result if each is not Result.BUDGET_SPENT and each in ended):
        far += f", {ended.count(result)} {result.name.lower().replace('_', ' ')}"
    far = far if on else f"{len(moved)} tokens, unsteered"
    before = [each.log_odds_before for each in stats if each.log_odds_before is not None]
    after = [each.log_odds_after for each in stats if each.log_odds_after is not None]
    if not before:
        return far
    start, end = (float(torch.sigmoid(torch.cat(each)).mean()) for each in (before, after))
    change = f"{start:.2f} → {end:.2f}" if on else f"{start:.2f}"
    return f"P {bar(end)} {change}  {far}"


def _transfers(strength: Any) -> bool:
    """Return whether a dose means the same for every method and layer: a path length does."""
    from odesteer.ode import Angle

    return isinstance(getattr(strength, "budget", strength), Angle)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"/{name} takes a number; got '{text}'.") from None


def _argument(name: str, value: str, such_as: str) -> str:
    if not value:
        raise ValueError(f"/{name} takes a value: /{name} {such_as}, say.")
    return value


@teaching_errors
def chat(
    model: options.Model,
    steering: options.SteeringPath = None,
    method: options.MethodNow = None,
    contrast: options.ContrastNow = None,
    columns: options.Columns = None,
    layer: options.Layer = "auto",
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    coverage: options.Coverage = None,
    spread: options.Spread = False,
    solver: options.Solver = None,
    steps: options.Steps = None,
    positions: options.Positions = None,
    max_new_tokens: options.MaxNewTokens = 200,
    cache: options.Cache = True,
    seed: options.Seed = 0,
) -> None:
    """Chat with a steered model; dose, method and layer can be changed while talking.

    After each answer a bar shows P(positive) of its tokens, before and after they were moved.
    Ctrl-C stops an answer, Ctrl-D or /quit the chat; /help lists what else there is. With
    --contrast, also beside --steering, /method and /layer fit anew on those texts.

    Example: odesteer chat smollm2 -s cheerful --angle 0.2

    Example: odesteer chat smollm2 --method caa --contrast pairs.jsonl --layer 14 --angle 0.2
    """
    dose = parse_dose(strength, angle, target, coverage)
    language_model, tokenizer, loaded = load_or_fit(
        model,
        steering,
        method,
        contrast,
        layer,
        dose,
        spread,
        positions,
        seed,
        cache,
        columns,
        solver,
        steps,
        refits=True,
    )
    if tokenizer.chat_template is None:
        raise ValueError("Chat needs a model with a chat template; use `odesteer generate`.")
    refit: Refit | None = None
    if method is not None or contrast is not None:
        data = read_contrast(contrast, columns=columns)
        refit = fitter(language_model, tokenizer, data, solver, steps, seed, cache)
    conversation = Conversation(
        language_model, tokenizer, loaded, refit, positions, max_new_tokens=max_new_tokens
    )
    err.print(f"[dim]{escape(conversation.about())}\n{'  '.join(COMMANDS)}[/]")
    talk(conversation, reader(), wrapped(_write, out.width) if out.is_terminal else _write)


def talk(conversation: Conversation, read: Callable[[], str], write: Callable[[str], None]) -> None:
    """Read lines until the end; write answers to `write` and everything else to stderr."""
    while True:
        try:
            line = read().strip()
        except (EOFError, KeyboardInterrupt):
            err.print()
            return
        if not line:
            continue
        try:
            if line.startswith("/"):
                reply = conversation.command(line)
            else:
                reply = conversation.answer(line, write)
        except Quit:
            return
        except (ValueError, OSError) as error:
            tell(f"[red]{plain(error)}[/]")
        except KeyboardInterrupt:  # stops the answer, or what is fitted, and not the chat
            err.print("\n[dim]Stopped; all is as it was before.[/]")
        else:
            tell(f"[dim]{escape(reply)}[/]")


def fitter(
    model: Any,
    tokenizer: Any,
    data: "Contrast",
    solver: str | None,
    steps: int | None,
    seed: int,
    cache: bool,
) -> Refit:
    """Return a function that fits a method at a layer on the same texts."""

    def refit(method: str, layer: Any) -> "Steering":
        with progress(f"Fitting {method}") as callback:
            fitted = ods.fit(
                model,
                tokenizer,
                data,
                method=method,
                layer=layer,
                seed=seed,
                progress=callback,
                cache=cache,
            )
        return with_solver(fitted, solver, steps)

    return refit


def reader() -> Callable[[], str]:
    """Return a reader of lines: a terminal with history and completion, or a pipe."""
    if not sys.stdin.isatty():
        return input
    prompt = "you> "
    with suppress(ImportError):  # Windows has no readline
        import readline

        readline.set_completer(completion)
        readline.set_completer_delims("")
        readline.parse_and_bind("tab: complete")
    if out.is_terminal and out.color_system is not None:
        # \x01 and \x02 enclose what has no width, or readline counts it as typed.
        prompt = "\x01\x1b[1;36m\x02you>\x01\x1b[0m\x02 "
    return lambda: input(prompt)


def completion(text: str, state: int) -> str | None:
    """Return the `state`-th command or method line that begins with `text`, or None."""
    lines = [
        *(f"{each.split()[0]}{' ' if ' ' in each else ''}" for each in COMMANDS),
        *(f"/method {name}" for name in catalogue.METHODS),
    ]
    matches = [line for line in lines if text.startswith("/") and line.startswith(text)]
    return matches[state] if state < len(matches) else None


def wrapped(write: Callable[[str], None], width: int) -> Callable[[str], None]:
    """Wrap `write`, which is given whole words, so that lines end between words."""
    column = 0

    def write_wrapped(text: str) -> None:
        nonlocal column
        for piece in re.findall(r"\n|[^\S\n]+|\S+", text):
            if piece == "\n":
                column = 0
            elif not piece.isspace() and 0 < column and column + len(piece) > width:
                write("\n")
                column = 0
            write(piece)
            column += 0 if piece == "\n" else len(piece)

    return write_wrapped


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
