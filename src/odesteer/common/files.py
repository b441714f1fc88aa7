"""Files and text: atomic writes, the cache directory, Markdown escaping."""

import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from odesteer.common.limits import brief

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PATIENCE = 10.0  # seconds; who holds a directory does so for milliseconds
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `tempfile` names them


def write_whole(path: Path, payload: bytes, *, tidy: bool = True) -> None:
    """Write a file atomically: to a temporary name beside `path`, then rename.

    Args:
        path, payload: the file and its bytes.
        tidy: whether temporary files of it that killed writers have left are removed, for which
            the directory is listed.
    """
    write_all({path: payload}, tidy=tidy)


def write_all(files: Mapping[Path, bytes], *, tidy: bool = True) -> None:
    """Write several files of one directory atomically, renamed in order."""
    if tidy:
        _remove_abandoned(files)
    with ExitStack() as stack:
        aside = [stack.enter_context(_aside(path, payload)) for path, payload in files.items()]
        for name, path in zip(aside, files, strict=True):
            os.replace(name, path)


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together; those of two writers are never mixed."""
    with held(folder):
        write_all({folder / name: payload for name, payload in files.items()})


def is_temporary(name: str) -> bool:
    """Whether a file of that name is `.NAME.xxxxxxxx`, written to be renamed to NAME."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_if_abandoned(path: Path) -> None:
    """Remove a temporary file whose writer is gone."""
    with suppress(OSError), path.open("rb") as file:
        if fcntl is None:
            gone = path.stat().st_mtime < time.time() - 86400.0
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # OSError while its writer holds it
            gone = True
        if gone:
            path.unlink()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a directory, waiting at most `PATIENCE` seconds for other holders.

    The lock is the system's: it ends with the process, and no file says that it is there.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        last = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < last:
                    time.sleep(0.02)
                    continue
            except OSError:
                pass  # a file system without locks
            break
        yield
    finally:
        os.close(handle)


@contextmanager
def _aside(path: Path, payload: bytes) -> Iterator[str]:
    """Write a temporary file beside `path`, removed after the block unless renamed."""
    file, name = _temporary(path)
    with file:
        try:
            try:
                file.write(payload)
                file.flush()
            except OSError as error:  # a full disk; the system does not say of which file
                with suppress(OSError):  # writes what is left, in vain
                    file.close()
                raise OSError(error.errno, error.strerror, os.fspath(path)) from None
            # mkstemp makes the file private; a new file gets what the umask grants.
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)
            if fcntl is None:
                file.close()  # Windows renames no file that is open
            yield name
        finally:
            if fcntl is None:
                file.close()
            Path(name).unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[BinaryIO, str]:
    """Make a locked file beside `path`, so that nobody takes it for abandoned."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        file = os.fdopen(handle, "wb")
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(name):
            return file, name
        file.close()  # another process took it for abandoned before it was locked


def _remove_abandoned(files: Iterable[Path]) -> None:
    for folder in {path.parent for path in files}:
        names = {path.name for path in files if path.parent == folder}
        for name in os.listdir(folder):
            if is_temporary(name) and name[1:-9] in names:
                remove_if_abandoned(folder / name)


def cache_dir() -> Path:
    """Return the cache directory: ODESTEER_CACHE, or ~/.cache/odesteer.

    Raises:
        OSError: if there is no home directory, as for the user of some containers.
    """
    folder = os.environ.get("ODESTEER_CACHE")
    if folder:
        return Path(folder)
    try:
        return Path.home() / ".cache" / "odesteer"
    except RuntimeError:
        raise OSError(
            "This user has no home directory to keep a cache in: set ODESTEER_CACHE to a folder."
        ) from None


_BAR = 20


def table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Render a Markdown table of any values."""
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(text(cell) for cell in line) + " |" for line in lines)


def text(value: Any, limit: int = 200) -> str:
    """Escape a value as one line of plain text for Markdown."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None:
        return ""
    words = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    words = brief(words, limit) + ("." if words.endswith(".") else "")
    return words.replace("|", "\\|").replace("<", "&lt;")


def bar(share: float) -> str:
    """Draw a share in 0..1 as a bar of 20 characters."""
    full = round(_BAR * min(max(share, 0.0), 1.0))
    return "█" * full + "░" * (_BAR - full)
