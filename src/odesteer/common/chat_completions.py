"""Client of OpenAI's chat completions protocol, with retries and responses kept on disk.

OpenAI itself, vLLM, llama.cpp, Ollama and others speak it: `POST {url}/chat/completions`, and
`GET {url}/models` for the names of models. Requests keep a pace and are repeated, after a pause,
while the server is busy. The key travels in a header, never in an address, and never to the target
of a redirection.

Source: https://platform.openai.com/docs/api-reference/chat
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from odesteer.common.limits import brief, parse_json

BUSY = (408, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 60.0  # seconds
KEY_VARIABLE = "OPENAI_API_KEY"


@dataclass
class Service:
    """HTTP address that takes and gives JSON; threads may share it.

    Args:
        url: where requests are sent.
        headers: with the key; they are shown in no message.
        per_second: maximum request rate; None for no limit.
        tries: attempts per request while the server is busy; the pauses between them double.
        timeout: of one attempt, in seconds.
        clock, sleep: of the pace and the pauses, in seconds.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    per_second: float | None = None
    tries: int = 6
    timeout: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _client: httpx.Client = field(default_factory=httpx.Client, init=False, repr=False)
    _last: float = field(default=float("-inf"), init=False, repr=False)

    def post(self, body: Any) -> httpx.Response:
        """Return the response, also a refusal or, after all attempts, a busy server's.

        Raises:
            ConnectionError: if the server cannot be reached, or redirects.
        """
        # Not `json=`: it encodes as UTF-8, which fails for a half of a surrogate pair.
        return self._send("POST", json.dumps(body))

    def get(self) -> httpx.Response:
        """Return the response to a request without a body; see `post`."""
        return self._send("GET", None)

    def complaint(self, response: httpx.Response) -> str:
        """Describe a refusal by its status and the server's own words, without the key."""
        try:
            error = parse_json(response.content)
            error = error.get("error", error)
            words = str(error["message"] if isinstance(error, dict) else error)
        except (ValueError, KeyError, AttributeError):
            words = ""
        for value in self.headers.values():
            words = words.replace(value.split()[-1], "(the key)")
        status = f"status {response.status_code}"
        return f"{status} ({brief(words, 160)})" if words.strip() else status

    def _send(self, method: str, content: str | None) -> httpx.Response:
        for attempt in range(1, self.tries + 1):
            self._keep_pace()
            pause = 2.0 ** (attempt - 1)
            try:
                response = self._client.request(
                    method,
                    self.url,
                    content=content,
                    headers={"content-type": "application/json", **self.headers},
                    timeout=self.timeout,
                )
            except httpx.TransportError as error:
                if attempt == self.tries:
                    raise ConnectionError(
                        f"No answer from {self.url} after {self.tries} tries: {error}. What was "
                        f"answered is kept; run again."
                    ) from None
            else:
                if response.has_redirect_location:
                    raise ConnectionError(f"{self.url} redirects; give its new address")
                if response.status_code not in BUSY or attempt == self.tries:
                    return response
                with suppress(ValueError):  # a date instead of seconds
                    pause = max(pause, float(response.headers.get("retry-after", 0)))
            self.sleep(min(pause, LONGEST_PAUSE))
        raise ValueError(f"A request needs at least one try; got tries={self.tries}.")

    def _keep_pace(self) -> None:
        if self.per_second:
            wait = self._last + 1.0 / self.per_second - self.clock()
            if wait > 0:
                self.sleep(wait)
        self._last = self.clock()


def chat_service(
    url: str, key_variable: str = KEY_VARIABLE, path: str = "chat/completions", **options: Any
) -> Service:
    """Return the service at `{url}/{path}`, with the key of an environment variable if it is set.

    Args:
        url: up to the version, such as "http://localhost:8000/v1".
        key_variable: the environment variable with the key; your own server needs none.
        path: below the version.
        options: as `Service` takes them.

    Raises:
        ValueError: for an address that is none, or has a password in it.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(
            f"A server's address goes up to the version, such as http://localhost:8000/v1; "
            f"got '{brief(url, 100)}'."
        )
    if parts.username or parts.password or parts.query:
        raise ValueError(
            f"An address with a key in it ends up in logs: give the key in {key_variable}, and "
            f"the address of {parts.hostname} without it."
        )
    key = os.environ.get(key_variable, "").strip()
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return Service(f"{url.rstrip('/')}/{path}", headers, **{"timeout": 180.0, **options})


def refuses(response: httpx.Response) -> bool:
    """Whether a server refuses any such request: a wrong key, model or address.

    Not so: 413 and 422, of one text that is too long or strange, and 429, of too many.
    """
    status = response.status_code
    return 400 <= status < 500 and status not in (413, 422, 429)


def reply_of(response: httpx.Response) -> str | None:
    """Return the text of a chat completion; None if there is none that can be read."""
    try:
        message = parse_json(response.content)["choices"][0]["message"]
        content = message["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    # A server that takes thoughts out of the text has none left where the limit came before it.
    return "" if content is None else content if isinstance(content, str) else None


class ResponseCache:
    """Responses on disk by a hash of the request, one JSON line each.

    Several processes may add to one file, which need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self._rows: dict[str, dict[str, Any]] = {}
        with suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                # A process that was killed leaves half a line.
                with suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    self._rows[row.pop("key")] = row

    def get(self, key: str) -> dict[str, Any] | None:
        return self._rows.get(key)

    def add(self, key: str, **row: Any) -> None:
        self._rows[key] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A line break before it as well, should the line before be a half one; in one write,
        # which the system does not mix with that of another process.
        line = f"\n{json.dumps({'key': key, **row})}\n".encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def key_of(*parts: Any) -> str:
    """Return a hash of a request."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
