"""Writers of answers: a model in this process, or one behind an HTTP address.

An instruction follows the question, in one turn: of 16 answers of SmolLM2-135M that were to speak
like a sea captain 11 spoke of ships, 8 with the instruction before the question, and 3 with it in
the system's turn and before the question. The instructions of a trait file were written for the
system's turn and stand there, where the chat template has one.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import httpx

from odesteer.common.chat_completions import (
    BUSY,
    KEY_VARIABLE,
    ResponseCache,
    Service,
    chat_service,
    key_of,
    refuses,
    reply_of,
)
from odesteer.common.limits import parse_json
from odesteer.models.chat_template import encode
from odesteer.models.generation import Sampling, generate
from odesteer.models.loading import Say, load_model

AT_ONCE = 8  # requests under way to a server, which batches them


class Request(NamedTuple):
    """A question, and the instruction under which it is answered.

    Attributes:
        system: whether the instruction is for the system's turn.
    """

    instruction: str
    question: str
    system: bool = False

    @property
    def text(self) -> str:
        return f"{self.question}\n\n{self.instruction}"

    def messages(self, system: bool) -> list[dict[str, str]]:
        """Return the turns, for a chat template that has a system's turn or does not."""
        if self.system and system:
            turn = {"role": "system", "content": self.instruction}
            return [turn, {"role": "user", "content": self.question}]
        return [{"role": "user", "content": self.text}]


class Writer(Protocol):
    """Language model that answers requests.

    Attributes:
        name: the model's.
    """

    name: str

    def answers(
        self, requests: Sequence[Request], sampling: Sampling, cache: ResponseCache
    ) -> list[str | None]:
        """Return an answer for each request, from `cache` if it is there; None: it was unreadable.

        Raises:
            ConnectionError: if it cannot be reached; what was answered before is in `cache`.
            ValueError: if it refuses.
        """


@dataclass
class LocalWriter:
    """Transformers model in this process.

    Requests of one call are a unit: sampled from one seed, and kept or computed as a whole, so a
    run that was killed ends with the texts that it would have ended with.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        name: what it is called.
        template: see `odesteer.models.chat_template`.

    Raises:
        ValueError: for a model without a chat template, unless another template is given.
    """

    model: Any
    tokenizer: Any
    name: str
    template: str = "auto"
    _system: bool = field(default=True, init=False, repr=False)

    def __post_init__(self) -> None:
        chat = self.template in ("auto", "chat")
        if self.tokenizer.chat_template is None and chat:
            raise ValueError(
                f"'{self.name}' has no chat template: a base model continues texts and follows no "
                f"instructions. Give a chat model (its name often ends in Instruct, Chat or it), "
                f"or --template 'Q: {{prompt}}\\nA: {{response}}' to ask it all the same."
            )
        if chat:
            try:
                encode(self.tokenizer, Request("Answer.", "Well?", True).messages(True))
            except ValueError:
                self._system = False

    def answers(
        self, requests: Sequence[Request], sampling: Sampling, cache: ResponseCache
    ) -> list[str | None]:
        chat = self.template in ("auto", "chat")
        prompts = [each.messages(self._system) if chat else each.text for each in requests]
        key = key_of(self.name, self.template, prompts, vars(sampling))
        row = cache.get(key)
        if row is None:
            texts = generate(
                self.model,
                self.tokenizer,
                prompts,
                sampling,
                steered=lambda _batch: nullcontext(),
                template=self.template,
            )
            cache.add(key, answers=texts)
            row = cache.get(key)
        return list((row or {})["answers"])


@dataclass
class ServedWriter:
    """Model behind an address that speaks OpenAI's chat completions protocol.

    What a server does not take (a system's turn, a seed, `max_tokens`) is left out or renamed once
    it has said so.

    Args:
        service: the address of its chat completions.
        name: the model's there.
    """

    service: Service
    name: str
    _system: bool = field(default=True, init=False, repr=False)
    _left_out: set[str] = field(default_factory=set, init=False, repr=False)

    def answers(
        self, requests: Sequence[Request], sampling: Sampling, cache: ResponseCache
    ) -> list[str | None]:
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            results = list(pool.map(lambda each: self._answer(each, sampling, cache), requests))
        finally:
            # After an error or Ctrl-C, those under way are finished and kept, others not begun.
            pool.shutdown(cancel_futures=True)
        answers = [result for result in results if isinstance(result, str)]
        if not answers:
            unreadable = next(result for result in results if not isinstance(result, str))
            raise ValueError(
                f"{self.service.url} does not answer as a chat completion: "
                f"{self.service.complaint(unreadable)}, {unreadable.text[:60]!r}. Give the address "
                f"up to the version, such as http://localhost:8000/v1."
            )
        return [result if isinstance(result, str) else None for result in results]

    def _answer(
        self, request: Request, sampling: Sampling, cache: ResponseCache
    ) -> str | httpx.Response:
        """Return the answer, or a response that is none."""
        key = key_of(self.name, request, vars(sampling))
        row = cache.get(key)
        if row is not None:
            return str(row["answers"][0])
        response = self._response(request, sampling)
        url, status = self.service.url, response.status_code
        if status in BUSY:
            raise ConnectionError(
                f"{url} is busy or down: {self.service.complaint(response)} after "
                f"{self.service.tries} tries. What was answered is kept; run again."
            )
        check_accepted(self.service, response)
        reply = reply_of(response) if status == 200 else None
        if reply is None:
            return response
        cache.add(key, answers=[reply])
        return reply

    def _response(self, request: Request, sampling: Sampling) -> httpx.Response:
        while True:
            limit = "max_completion_tokens" if "max_tokens" in self._left_out else "max_tokens"
            body = {
                "model": self.name,
                "messages": request.messages(self._system),
                limit: sampling.max_new_tokens,
                "temperature": sampling.temperature,
                "seed": sampling.seed,
            }
            body = {key: value for key, value in body.items() if key not in self._left_out}
            response = self.service.post(body)
            if response.status_code != 400 or not self._adapted(response, body):
                return response

    def _adapted(self, response: httpx.Response, body: dict[str, Any]) -> bool:
        """Whether a refusal names a part of the request that it can do without."""
        try:
            parameter = parse_json(response.content)["error"]["param"]
        except (ValueError, KeyError, TypeError):
            parameter = None
        optional = body.keys() - {"model", "messages"}
        if parameter in optional:
            self._left_out.add(parameter)
            return True
        system = body["messages"][0]["role"] == "system"
        if system and "system" in self.service.complaint(response).lower():
            self._system = False
            return True
        return False


def check_accepted(service: Service, response: httpx.Response) -> None:
    """Refuse a server that refuses.

    Raises:
        ValueError: with what it says.
    """
    if refuses(response):
        hint = (
            f" The key is read from the environment: {KEY_VARIABLE}, or what --key-variable names."
        )
        raise ValueError(
            f"{service.url} refuses requests: {service.complaint(response)}."
            + (hint if response.status_code in (401, 403) else "")
        )


def served_model(service: Service) -> str:
    """Return the first model that a server lists.

    Args:
        service: the address of its list of models.

    Raises:
        ConnectionError: if it cannot be reached.
        ValueError: if it lists none.
    """
    response = service.get()
    check_accepted(service, response)
    try:
        return str(parse_json(response.content)["data"][0]["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise ValueError(
            f"{service.url} lists no model ({service.complaint(response)}): give its name with "
            f"--model, and the address up to the version, such as http://localhost:8000/v1."
        ) from None


def as_writer(
    writer: Any,
    model: str | None = None,
    template: str = "auto",
    key_variable: str = KEY_VARIABLE,
    say: Say | None = None,
    **options: Any,
) -> Writer:
    """Return the writer that is meant by an address, a model's name, or a loaded model.

    Args:
        writer: "http://localhost:8000/v1"; "smollm2", a directory or a Hub model; or
            (model, tokenizer).
        model: of several that a server has; its first by default.
        template: of a local model, see `odesteer.models.chat_template`.
        key_variable: the environment variable with the server's key.
        say: called with a line before anything slow.
        options: of the requests to a server, as `Service` takes them.

    Raises:
        ConnectionError: if the server cannot be reached.
        ValueError: for anything else, or a model that follows no instructions.
    """
    if isinstance(writer, LocalWriter | ServedWriter):
        return writer
    if isinstance(writer, tuple) and len(writer) == 2:
        loaded, tokenizer = writer
        return LocalWriter(loaded, tokenizer, str(loaded.config._name_or_path or "model"), template)
    if not isinstance(writer, str):
        raise ValueError(
            f"Pairs are written by a model's name or directory, a server's address, or "
            f"(model, tokenizer); got {type(writer).__name__}."
        )
    if writer.startswith(("http://", "https://")):
        service = chat_service(writer, key_variable, **options)
        listing = chat_service(writer, key_variable, "models", **options)
        return ServedWriter(service, model or served_model(listing))
    if model is not None:
        raise ValueError(f"--model names a model of a server; '{writer}' is no address.")
    language_model, tokenizer = load_model(writer, say)
    return LocalWriter(language_model, tokenizer, writer, template)
