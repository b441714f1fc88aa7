"""Bounded download of a steering from the Hub.

The three files of a steering are requested by name; no list of files is read. Every response is
checked as it arrives. One that is longer than such a file can be, slower than `RATE`, compressed,
of unknown length, or that has a path where a hash belongs ends the download, and nothing of it is
kept. The client of `huggingface_hub` before 1.0 cannot be watched.
"""

import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from odesteer.common.limits import MAX_JSON_BYTES, MAX_TENSOR_BYTES
from odesteer.steering.serialization.directory import CARD, CONFIG, TENSORS

LIMITS = {CONFIG: MAX_JSON_BYTES, TENSORS: MAX_TENSOR_BYTES, CARD: 2**20}
MAX_ERROR_BYTES = 2**20
GRACE, RATE = 60.0, 10_000  # seconds before the mean rate counts, bytes a second
# They name files of the cache: a commit, and the hash of a file's bytes.
_HASHES = {
    "x-repo-commit": re.compile(r"[0-9a-f]{40}"),
    "etag": re.compile(r'(W/)?"?[\w-]{1,128}"?', re.ASCII),
    "x-linked-etag": re.compile(r'(W/)?"?[\w-]{1,128}"?', re.ASCII),
}
# The first two say how long the client sleeps before it tries again; the others have another
# program fetch the file from elsewhere.
_DROPPED = ("retry-after", "ratelimit", "x-xet-hash", "x-xet-refresh-route")


def fetch(repo_id: str, revision: str | None = None) -> Path:
    """Fetch a steering's files of one commit; return their folder in the Hub's cache.

    Where the Hub cannot be reached, those that were fetched before.

    Raises:
        FileNotFoundError: if the repository holds no steering.
        ConnectionError: if the server is too slow, or its answer is not that of a Hub.
        ValueError: if a file is longer than that of a steering may be.
    """
    local = not _reachable(repo_id, revision)
    folder = _fetch_file(repo_id, CONFIG, revision, local)
    if folder is None:
        raise FileNotFoundError(f"No steering at '{repo_id}': {CONFIG} is missing.")
    for name in (TENSORS, CARD):
        _fetch_file(repo_id, name, folder.name, local)
    return folder


def _reachable(repo_id: str, revision: str | None) -> bool:
    """Ask once whether the Hub answers; a download would retry for long."""
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

    try:
        with _watched(CONFIG):
            get_hf_file_metadata(
                hf_hub_url(repo_id, CONFIG, revision=revision), library_name="odesteer"
            )
    except errors.OfflineModeIsEnabled:
        return False
    except (ConnectionError, ValueError, errors.RepositoryNotFoundError):
        raise
    except errors.HfHubHTTPError as error:
        # Of the others, a client error is what the download will say; a server's may pass.
        return error.response.status_code < 500 and error.response.status_code != 429
    except Exception:  # of the network, by whichever client there is
        return False
    return True


def _fetch_file(repo_id: str, name: str, revision: str | None, local: bool) -> Path | None:
    """Fetch a file; return its commit's folder, or None if there is no such file."""
    from huggingface_hub import errors, hf_hub_download

    try:
        with _watched(name):
            path = hf_hub_download(
                repo_id,
                name,
                revision=revision,
                library_name="odesteer",
                headers={"Accept-Encoding": "identity"},
                local_files_only=local,
            )
    except errors.LocalEntryNotFoundError:
        if name == CARD:
            return None
        raise
    except errors.EntryNotFoundError:
        return None
    return Path(path).parent


@contextmanager
def _watched(name: str) -> Iterator[None]:
    """Watch the answers that this thread gets, until the block ends."""
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    hooks = getattr(get_session(), "event_hooks", None)
    if hooks is None:  # requests, of huggingface_hub before 1.0
        yield
        return
    watch = _Watch(name)
    hooks["response"].append(watch)
    try:
        yield
    finally:
        hooks["response"].remove(watch)


class _Watch:
    """Response hook that checks and bounds the answers for one file."""

    def __init__(self, name: str):
        self._name = name
        self._thread = threading.get_ident()
        self._begun = time.monotonic()
        self._bytes = 0

    def __call__(self, response: Any) -> None:
        if threading.get_ident() != self._thread:  # the client is shared by all threads
            return
        if response.request.method == "HEAD" and response.status_code < 400:
            self._check_names(response.headers)
        for header in _DROPPED:
            response.headers.pop(header, None)
        limit = LIMITS[self._name] if response.is_success else MAX_ERROR_BYTES
        declared = response.headers.get("content-length", "")
        if declared.isdecimal() and (len(declared) > 18 or int(declared) > limit):
            raise self._too_long(limit)
        encoding = response.headers.get("content-encoding", "identity")
        if encoding.lower() != "identity" and response.request.method != "HEAD":
            raise ConnectionError(
                f"The Hub's answer for {self._name} is compressed ({encoding:.20}), which was not "
                f"asked for: check HF_ENDPOINT, or give the directory of a copy."
            )
        pieces = response.iter_raw
        response.iter_raw = lambda *args, **kwargs: self._counted(pieces(*args, **kwargs), limit)

    def _check_names(self, headers: Mapping[str, str]) -> None:
        """Refuse headers no Hub sends: paths for file names, files without a size."""
        for header, form in _HASHES.items():
            value = headers.get(header)
            if value is not None and not form.fullmatch(value):
                raise ConnectionError(
                    f"The Hub's answer for {self._name} has {header} = {value!r:.80}, which is no "
                    f"hash: check HF_ENDPOINT, or give the directory of a copy."
                )
        # Without one, the client would keep a file that was cut off.
        sizes = "content-length", "x-linked-size"
        if "x-repo-commit" in headers and not any(size in headers for size in sizes):
            raise ConnectionError(
                f"The Hub's answer for {self._name} does not say how long it is: check "
                f"HF_ENDPOINT, or give the directory of a copy."
            )

    def _counted(self, pieces: Iterable[bytes], limit: int) -> Iterator[bytes]:
        """Yield the pieces, counted over all answers for a file, retries included."""
        for piece in pieces:
            self._bytes += len(piece)
            if self._bytes > limit:
                raise self._too_long(limit)
            seconds = time.monotonic() - self._begun
            if seconds > GRACE + self._bytes / RATE:
                raise ConnectionError(
                    f"The Hub sent {self._bytes:,} bytes of {self._name} in {seconds:.0f} seconds: "
                    f"try again later, or give the directory of a copy."
                )
            yield piece

    def _too_long(self, limit: int) -> ValueError:
        return ValueError(
            f"The Hub's {self._name} is longer than the {limit:,} bytes that one may have: it is "
            f"no steering that odesteer has written."
        )
