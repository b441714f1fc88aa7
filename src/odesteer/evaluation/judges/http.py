"""HTTP client of judges that are services: retries, rate limits, cache.

Requests keep a pace, are repeated after a pause while the service is busy, and what it said is
kept on disk, so that a run that was killed does not ask again. Keys travel in a header, never in
an address, and never to where a redirection points.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from odesteer.evaluation.judges.base import Score

BUSY = (408, 425, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class Response:
    """A status and the JSON that came with it (None where it was none)."""

    status: int
    body: Any


@dataclass
class Service:
    """An address that takes and gives JSON.

    Args:
        url: where requests are posted.
        headers: the key's among them; they are shown in no message.
        per_second: requests at most; None for no limit.
        tries: for one request, while the service is busy; the pauses between them double.
        timeout: of one try, in seconds.
        clock, sleep: of the pace and the pauses, in seconds.
    """

    url: str
    headers: Mapping[str, str] = field(repr=False)
    per_second: float | None = None
    tries: int = 6
    timeout: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _last: float = field(default=float("-inf"), init=False, repr=False)

    def post(self, body: Any) -> Response:
        """What the service says; also where it refuses, or is still busy after all tries.

        Raises:
            ConnectionError: if it cannot be reached, or redirects.
        """
        pause = 1.0
        for left in reversed(range(self.tries)):
            self._keep_pace()
            try:
                answer, wanted = self._once(body)
            except (URLError, TimeoutError, ConnectionError) as error:
                if not left:
                    reason = getattr(error, "reason", error)
                    raise ConnectionError(
                        f"No answer from {self.url} after {self.tries} tries: {reason}. What was "
                        f"judged is kept; run again."
                    ) from None
                wanted = None
            else:
                if answer.status not in BUSY or not left:
                    return answer
            self.sleep(min(max(pause, wanted or 0.0), LONGEST_PAUSE))
            pause *= 2
        raise ValueError(f"A request needs at least one try; got tries={self.tries}.")

    def _keep_pace(self) -> None:
        if self.per_second:
            wait = self._last + 1.0 / self.per_second - self.clock()
            if wait > 0:
                self.sleep(wait)
        self._last = self.clock()

    def _once(self, body: Any) -> tuple[Response, float | None]:
        """One answer, and the pause that it asks for."""
        headers = {"content-type": "application/json", **self.headers}
        request = Request(self.url, json.dumps(body).encode(), headers, method="POST")
        try:
            with build_opener(_NoRedirection).open(request, timeout=self.timeout) as response:
                return Response(response.status, _json(response.read())), None
        except HTTPError as error:
            with error:
                if error.code in (301, 302, 303, 307, 308):
                    raise ConnectionError(f"{self.url} redirects; give its new address") from None
                wanted = _seconds(error.headers.get("retry-after"))
                return Response(error.code, _json(error.read())), wanted


class _NoRedirection(HTTPRedirectHandler):
    """The standard one would send our headers, and the key, wherever it is told to."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


class ResponseCache:
    """Scores on disk, a JSON line each; several processes may add to one file.

    It holds a hash of what was asked, and the score.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self._scores: dict[str, Score] = {}
        with suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                # A process that was killed leaves half a line.
                with suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    self._scores[row["key"]] = Score(row["value"], row["reason"])

    def get(self, key: str) -> Score | None:
        return self._scores.get(key)

    def add(self, key: str, score: Score) -> None:
        self._scores[key] = score
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = {"key": key, "value": score.value, "reason": score.reason}
        # A line break before it as well, should the line before be a half one; in one write,
        # which the system does not mix with that of another process.
        line = f"\n{json.dumps(row)}\n".encode()
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line)
        finally:
            os.close(file)


def key_of(*parts: Any) -> str:
    """A hash of what a service is asked."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _json(payload: bytes) -> Any:
    with suppress(ValueError):
        return json.loads(payload)
    return None


def _seconds(header: str | None) -> float | None:
    with suppress(TypeError, ValueError):
        return float(header or "")
    return None
