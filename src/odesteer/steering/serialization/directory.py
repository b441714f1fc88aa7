"""Directory of a saved steering, written atomically.

A directory: `steering_config.json` (everything but numbers in bulk, and the hash of the rest),
`steering.safetensors`, and a `README.md` for people. Each file is written to a temporary name
and renamed; reading checks everything and executes nothing.
"""

import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from odesteer.common import limits as strict
from odesteer.common.registry import pick
from odesteer.ode import DOSES, Dose, Target, as_dose
from odesteer.steering.model_card import card

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA = 1
PATIENCE = 10.0  # seconds; who holds a directory does so for milliseconds
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}")  # as `tempfile` names them
CONFIG, TENSORS, CARD = "steering_config.json", "steering.safetensors", "README.md"


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], dose: str) -> Path:
    """Write the directory; schema and hash are added to the configuration, `dose` to the card.

    Raises:
        ValueError: if `config` is not JSON, or more of it than `read` accepts.
    """
    payload = dump_tensors(tensors)
    config = {"schema": SCHEMA, **config, "sha256": hashlib.sha256(payload).hexdigest()}
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        config = strict.parse_json(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"This steering cannot be saved: its {CONFIG} could not be read back, because "
            f"{strict.brief(error)}. Keep plain JSON values in receipts and hyperparameters."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    # The configuration holds the hash of the tensors and comes last: a directory cut off in
    # the middle is detected when it is read.
    files = {TENSORS: payload, CARD: card(config, dose).encode(), CONFIG: text.encode()}
    replace_files(folder, files)
    return folder


def replace_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files that belong together, in order; those of two writers are not mixed."""
    with held(folder):
        write_all({folder / name: payload for name, payload in files.items()})


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a directory that `write` wrote.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, was written by a newer version, or holds what no steering
            does (`odesteer.common.limits`).
    """
    name = CONFIG
    try:
        with strict.open_inside(folder, CONFIG, strict.MAX_JSON_BYTES) as file:
            text = file.read(strict.MAX_JSON_BYTES + 1)
        name = TENSORS
        with strict.open_inside(folder, TENSORS, strict.MAX_TENSOR_BYTES) as file:
            name = CONFIG
            config = _configuration(text)
            name = TENSORS
            if _sha256(file) != config.get("sha256"):
                raise ValueError(
                    "it does not match its checksum: the copy is incomplete or was changed; copy "
                    "the whole directory again"
                )
            strict.check_header(file)
            return config, load_tensors(file.read())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No steering at '{folder}': {error}. A steering is a directory written by "
            f"save_pretrained or `odesteer fit --out`."
        ) from None
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"'{folder / name}' cannot be used: {strict.brief(error)}.") from None


def _configuration(text: bytes) -> dict[str, Any]:
    config = strict.parse_json(text)
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        found = config.get("schema") if isinstance(config, dict) else None
        raise ValueError(
            f"it has schema {found!r:.40}; this version reads schema {SCHEMA}: upgrade odesteer, "
            f"or fit again"
        )
    return config


def _sha256(file: BinaryIO) -> str:
    """Piece by piece, so that what does not match never fills the memory; back at the start."""
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()


def dose_to_json(dose: Dose) -> dict[str, Any]:
    """A dose as JSON values.

    Raises:
        ValueError: for one that belongs to the rows of a batch.
    """
    name = next((name for name, cls in DOSES.items() if type(dose) is cls), None)
    if name is None:
        raise ValueError(
            f"{type(dose).__name__} belongs to the rows of a batch and cannot be saved; give the "
            f"steering one dose first: steering.with_strength(...)."
        )
    if isinstance(dose, Target):
        return {
            "type": name,
            "probability": dose.probability,
            "budget": dose_to_json(as_dose(dose.budget)),
        }
    return {"type": name, "amount": dose.size}


def dose_from_json(tree: Any) -> Dose:
    """The dose that `dose_to_json` wrote.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("type"), str):
        raise ValueError(f"a dose is an object with its type; got {tree!r:.80}")
    kind = pick(DOSES, tree["type"][:100], "dose")
    values = {key: value for key, value in tree.items() if key != "type"}
    if set(values) != ({"probability", "budget"} if kind is Target else {"amount"}):
        raise ValueError(
            f"the dose '{tree['type']}' is not made of {', '.join(values) or 'nothing'}"
        )
    if kind is Target:
        values["budget"] = dose_from_json(values["budget"])
    for name, value in values.items():
        if name != "budget" and type(value) not in (int, float):
            raise ValueError(f"the {name} of a dose is a number; got {value!r:.80}")
    return kind(**values)


def write_whole(path: Path, payload: bytes, *, tidy: bool = True) -> None:
    """Write to a temporary name beside `path`, then rename: never half a file.

    Args:
        path, payload: the file and its bytes.
        tidy: whether temporary files of it that killed writers have left are removed, for which
            the directory is listed.
    """
    write_all({path: payload}, tidy=tidy)


def write_all(files: Mapping[Path, bytes], *, tidy: bool = True) -> None:
    """Write several files of one directory: all to temporary names, then rename them in order."""
    if tidy:
        _remove_abandoned(files)
    with ExitStack() as stack:
        aside = [stack.enter_context(_aside(path, payload)) for path, payload in files.items()]
        for name, path in zip(aside, files, strict=True):
            os.replace(name, path)


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
    """Hold a directory against others who hold it, for at most `PATIENCE` seconds of theirs.

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
    """A temporary file beside `path` with that content; gone after the block unless renamed."""
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
    """A new file beside `path`, locked, so that nobody takes it for abandoned."""
    while True:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        file = os.fdopen(handle, "wb")
        if fcntl is not None:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        if os.path.exists(name):
            return file, name
        file.close()  # somebody took it for abandoned before it was locked


def _remove_abandoned(files: Iterable[Path]) -> None:
    for folder in {path.parent for path in files}:
        names = {path.name for path in files if path.parent == folder}
        for name in os.listdir(folder):
            if is_temporary(name) and name[1:-9] in names:
                remove_if_abandoned(folder / name)
