"""Claims: exclusive locks on units of work.

A claim is a file that only one process can create (O_EXCL). It says who holds it: host, process,
and when that process began, so that a process that died, and another that was given its number
since, are told from one that works or is paused. A claim of another host counts as given up once
nobody has touched it for `PATIENCE`, by the file system's clock; holders touch theirs every few
seconds.
"""

import json
import os
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType

PATIENCE = 900.0  # seconds; a file system of another host may lag behind
HEARTBEAT = 20.0


class Claim:
    """A claim that is held; also a context manager that gives it back."""

    @classmethod
    def take(cls, path: Path) -> "Claim | None":
        """Take a claim; None if a living process holds it."""
        own = json.dumps(_about(os.getpid())).encode()
        for _ in range(2):
            try:
                handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                if not _given_up(path):
                    return None
                continue
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(own)
            except BaseException:  # a full disk: nobody holds it
                path.unlink(missing_ok=True)
                raise
            return cls(path, own)
        return None

    def __init__(self, path: Path, text: bytes):
        self._path, self._text = path, text
        self._done = threading.Event()
        self._beat = threading.Thread(target=self._touch, daemon=True)
        self._beat.start()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._done.set()
        # Somebody may have taken it over, from a process that was paused for long.
        with suppress(FileNotFoundError):
            if self._path.read_bytes() == self._text:
                self._path.unlink()

    def _touch(self) -> None:
        while not self._done.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(self._path)


def _given_up(path: Path) -> bool:
    """Remove the claim if its holder is gone; return whether it was removed."""
    try:
        text, touched = path.read_bytes(), path.stat().st_mtime
    except FileNotFoundError:
        return True
    try:
        holder = json.loads(text)
    except ValueError:
        # Its holder is about to write it, or was killed before that.
        holder = None
    if holder is None or holder.get("host") != socket.gethostname():
        # Also one of the future is nobody's: a holder touches its own, by the same clock.
        gone = abs(_now(path.parent) - touched) > (PATIENCE if holder else 5.0)
    else:
        gone = _about(int(holder["pid"])) != holder
    if not gone:
        return False
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        # Somebody may have taken it over in the meantime: what was moved is theirs, then.
        if aside.read_bytes() != text:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()
    return True


def remove_given_up(folder: Path) -> None:
    """Remove the claims of processes that are gone, once all work is done."""
    for path in folder.glob("[!.]*"):
        _given_up(path)


def _now(folder: Path) -> float:
    """Return the time by the file system's clock, which all hosts share."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _about(pid: int) -> dict[str, object]:
    """Host, number and start of a process; where a system does not say, the start is empty."""
    started = ""
    with suppress(OSError, IndexError):
        # The second field may hold anything, in parentheses; the 22nd is the start.
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        started = line.rpartition(")")[2].split()[19]
        if line.rpartition(")")[2].split()[0] == "Z":
            started = "ended"
    if not started and not _alive(pid):
        started = "ended"
    return {"host": socket.gethostname(), "pid": pid, "started": started}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it is there, and another user's
    return True
