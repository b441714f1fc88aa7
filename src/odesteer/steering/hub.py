"""Transfer of steerings from and to the Hugging Face Hub.

Only the three files of a saved steering are transferred. A token is passed to `huggingface_hub`
alone: it is not stored, not printed, and part of no error.

Downloads are bounded. The three files are requested by name; no list of files is read. Every
response is checked as it arrives. One that is longer than such a file can be, slower than `RATE`,
compressed, of unknown length, or that has a path where a hash belongs ends the download, and
nothing of it is kept. The client of `huggingface_hub` before 1.0 cannot be watched.

So are pushes: an answer may take `SILENCE` and have `MAX_ANSWER_BYTES`, and the token is sent to no
other host.
"""

import logging
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from odesteer.common.expression import local_folder
from odesteer.common.files import replace_files
from odesteer.common.limits import MAX_JSON_BYTES, MAX_TENSOR_BYTES, brief
from odesteer.steering.serialization import CARD, CONFIG, TENSORS

FILES = (CONFIG, TENSORS, CARD)
_ADDRESS = re.compile(r"https?://[!-~]{1,1000}")
_TOKEN = re.compile(r"hf_?\w{16,}", re.IGNORECASE)  # which a server may put in its answer


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return a local directory, or a copy of the Hub repository of that name.

    Args:
        source: a directory, which comes first, or "namespace/name". Private repositories need
            a login (`hf auth login`, or HF_TOKEN).
        revision: of the repository: a branch, a tag or a commit.

    Raises:
        FileNotFoundError: if there is neither.
        ConnectionError: if the Hub cannot be reached, and the repository was not read before.
        ValueError: for a revision of a local directory.
    """
    path = local_folder(source)
    if path is not None:
        if revision is not None:
            raise ValueError(
                f"'{source}' is a local directory and has no revision '{revision}': leave it out, "
                f"or rename the directory to read the Hub repository of that name."
            )
        return path
    with _teaching_errors(os.fspath(source), revision):
        return fetch(os.fspath(source), revision)


class Pushable:
    """Mixin of what can be saved to a directory and pushed to the Hub."""

    # Of a steering: its `method`, `layer` and `save_pretrained`.
    def push_to_hub(
        self: Any,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        folder: Path | None = None,
    ) -> str:
        """Push the directory of `save_pretrained` to a Hub repository, in one commit.

            address = steering.push_to_hub("me/truthful", private=True)

        Args:
            repo_id: "namespace/name", or a name in your own namespace; made if it is not there.
            private: whether a repository that is made is private; None: as your account says.
            token: with the right to write; None: the one you are logged in with.
            revision: the branch to write to, made if it is not there; None: main.
            commit_message: its first line; None: the method and layer.
            folder: where it is saved already, with a README.md of your own; None: saved for this.

        Returns:
            The address of the commit.

        Raises:
            FileNotFoundError: if one of the three files is missing in `folder`.
            ValueError: if it cannot be saved.
            PermissionError: if the token may not write there.
            ConnectionError: if the Hub cannot be reached, or its answer is not that of a Hub.
        """
        from huggingface_hub import CommitOperationAdd, HfApi

        with ExitStack() as stack:
            if folder is None:
                temporary = stack.enter_context(tempfile.TemporaryDirectory())
                folder = self.save_pretrained(Path(temporary) / "steering")
            missing = [name for name in FILES if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(
                    f"'{folder}' has no {' and no '.join(missing)}: save the steering again, and "
                    f"push then."
                )
            files = [CommitOperationAdd(file, folder / file) for file in FILES]
            message = commit_message or f"{self.method} at layer {self.layer}"
            stack.enter_context(_teaching_errors(repo_id, revision))
            stack.enter_context(_bounded_push())
            api = HfApi(token=token, library_name="odesteer")
            name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if revision is not None:
                api.create_branch(name, branch=revision, exist_ok=True)
            commit = api.create_commit(name, files, commit_message=message, revision=revision)
            if not _ADDRESS.fullmatch(commit.commit_url):
                raise UnusableAnswer(
                    f"an address of the commit that is none: {commit.commit_url!r:.80}"
                )
            return commit.commit_url


def copy(source: Path, folder: Path) -> Path:
    """Copy the files of a steering atomically, the configuration last."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in (TENSORS, CARD, CONFIG) if (source / name).is_file()]
    replace_files(folder, {name: (source / name).read_bytes() for name in names})
    return folder


@contextmanager
def _teaching_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Translate errors of the Hub's client, whose texts are long, to one line."""
    from huggingface_hub import errors

    where = f"'{repo_id}'" + ("" if revision is None else f" at revision '{revision}'")
    try:
        yield
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"The Hub repository '{repo_id}' has no revision '{revision}': give a branch, a tag "
            f"or a commit of it."
        ) from None
    except errors.GatedRepoError:
        raise PermissionError(
            f"The Hub repository {where} asks for its conditions to be accepted: do so on its "
            f"page, and log in with `hf auth login` or HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"No steering at {where}: there is no such directory, and no such repository on the "
            f"Hub that you may read. Check the name; a private one needs `hf auth login` or "
            f"HF_TOKEN."
        ) from None
    except errors.HFValidationError:
        raise ValueError(
            f"{where} is no name of a Hub repository; it looks like 'me/truthful'."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ConnectionError(
            f"{where} is no local directory, and the Hub cannot be reached to look there: go "
            f"online (and unset HF_HUB_OFFLINE), or give the directory of a copy."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"The Hub refuses you access to {where} (status {status}): log in with `hf auth "
                f"login`, or give a token with the right to read or write there."
            ) from None
        raise ConnectionError(
            f"The Hub answered status {status} for {where}: try again later."
        ) from None
    except (OSError, ValueError) as error:
        if type(error) is OSError and error.errno is None:  # not of the system: a file cut off
            raise ConnectionError(f"A file of {where} cannot be used: {brief(error)}.") from None
        raise
    except Exception as error:
        # A server that is no Hub makes its client fail in any way: with errors of HTTP, KeyError.
        raise ConnectionError(
            f"The Hub's answer for {where} cannot be used ({type(error).__name__}: "
            f"{_TOKEN.sub('hf_...', brief(error, 120))}): check HF_ENDPOINT, or try again later."
        ) from None


# ---- bounded download

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


# ---- bounded push

SILENCE = 60.0  # seconds for an answer to begin, and again to end
MAX_ANSWER_BYTES = 2**20


class UnusableAnswer(Exception):
    """Answer to a push that is no JSON, or not what a Hub answers."""


@contextmanager
def _bounded_push() -> Iterator[None]:
    """Bound the answers that a push gets; raise what its client hides, and log no retries."""
    from huggingface_hub import constants, errors
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined]

    hooks = getattr(get_session(), "event_hooks", None)
    watch = _PushWatch(constants.ENDPOINT)
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(max(level, logging.ERROR))
    if hooks is not None:  # requests, of huggingface_hub before 1.0
        hooks["request"].append(watch.check_request)
        hooks["response"].append(watch.check_response)
    try:
        yield
    except Exception as error:
        if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # it was "Error while uploading ...", whatever happened
        named = errors.HFValidationError, errors.HfHubHTTPError
        if isinstance(error, ValueError) and not isinstance(error, named):
            raise UnusableAnswer(str(error)) from None
        raise error from None
    finally:
        log.setLevel(level)
        if hooks is not None:
            hooks["request"].remove(watch.check_request)
            hooks["response"].remove(watch.check_response)


class _PushWatch:
    """Hooks that bound the answers to a push and keep its token at the Hub.

    They act on the thread that pushes and on all others from their first POST or PUT on: the client
    uploads large files in threads of its own.
    """

    def __init__(self, endpoint: str):
        self._threads = {threading.get_ident()}
        self._host = urlsplit(endpoint).hostname
        self._sent: dict[int, float] = {}  # by thread: when its unanswered request was sent

    def check_request(self, request: Any) -> None:
        if request.method in ("POST", "PUT"):
            self._threads.add(threading.get_ident())
        if threading.get_ident() not in self._threads:
            return
        now = time.monotonic()
        sent = self._sent.pop(threading.get_ident(), now)
        if now - sent > SILENCE:  # the client would try five more times
            raise ConnectionError(
                f"The Hub has not answered for {now - sent:.0f} seconds: check HF_ENDPOINT, or try "
                f"again later."
            )
        if "authorization" in request.headers and request.url.host != self._host:
            raise self._elsewhere(request.url.host)
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), SILENCE)
        self._sent[threading.get_ident()] = now

    def check_response(self, response: Any) -> None:
        if threading.get_ident() not in self._threads:
            return
        self._sent.pop(threading.get_ident(), None)
        for header in _DROPPED:
            response.headers.pop(header, None)
        if response.has_redirect_location and "authorization" in response.request.headers:
            target = urljoin(str(response.request.url), response.headers["location"])
            if urlsplit(target).hostname != self._host:
                raise self._elsewhere(urlsplit(target).hostname)
        pieces = response.iter_raw
        response.iter_raw = lambda *args, **kwargs: self._counted(pieces(*args, **kwargs))

    def _counted(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        begun, size = time.monotonic(), 0
        for piece in pieces:
            size += len(piece)
            seconds = time.monotonic() - begun
            if size > MAX_ANSWER_BYTES or seconds > SILENCE:
                raise ConnectionError(
                    f"The Hub's answer to a push goes on after {size:,} bytes and {seconds:.0f} "
                    f"seconds: check HF_ENDPOINT, or try again later."
                )
            yield piece

    def _elsewhere(self, host: object) -> ConnectionError:
        return ConnectionError(
            f"The Hub sends a push on to another host ({_TOKEN.sub('hf_...', str(host))!r:.80}), "
            f"which gets no token: check HF_ENDPOINT."
        )
