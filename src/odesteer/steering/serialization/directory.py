"""Directory of a saved steering, written atomically.

`steering_config.json` holds everything but tensors, and the hash of `steering.safetensors`; a
`README.md` is for people. Each file is written to a temporary name and renamed. Reading checks
everything and executes nothing.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from odesteer.common import limits
from odesteer.common.files import replace_files
from odesteer.common.registry import lookup
from odesteer.ode import DOSES, Dose, Target, as_dose
from odesteer.steering.model_card import card

SCHEMA = 1
CONFIG, TENSORS, CARD = "steering_config.json", "steering.safetensors", "README.md"


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], dose: str) -> Path:
    """Write the directory, with schema and hash in the configuration.

    Raises:
        ValueError: if `config` is not JSON, or more of it than `read` accepts.
    """
    payload = dump_tensors(tensors)
    config = {"schema": SCHEMA, **config, "sha256": hashlib.sha256(payload).hexdigest()}
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        config = limits.parse_json(text.encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"This steering cannot be saved: its {CONFIG} could not be read back, because "
            f"{limits.brief(error)}. Keep plain JSON values in receipts and hyperparameters."
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    # The configuration holds the hash of the tensors and comes last: a directory cut off in
    # the middle is detected when it is read.
    files = {TENSORS: payload, CARD: card(config, dose).encode(), CONFIG: text.encode()}
    replace_files(folder, files)
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the configuration and the tensors of a directory that `write` wrote.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, was written by a newer version, or holds what no steering
            does (`odesteer.common.limits`).
    """
    name = CONFIG
    try:
        with limits.open_inside(folder, CONFIG, limits.MAX_JSON_BYTES) as file:
            text = file.read(limits.MAX_JSON_BYTES + 1)
        name = TENSORS
        with limits.open_inside(folder, TENSORS, limits.MAX_TENSOR_BYTES) as file:
            name = CONFIG
            config = _configuration(text)
            name = TENSORS
            if _sha256(file) != config.get("sha256"):
                raise ValueError(
                    "it does not match its checksum: the copy is incomplete or was changed; copy "
                    "the whole directory again"
                )
            limits.check_header(file)
            return config, load_tensors(file.read())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"No steering at '{folder}': {error}. A steering is a directory written by "
            f"save_pretrained or `odesteer fit --out`."
        ) from None
    except (ValueError, SafetensorError) as error:
        raise ValueError(f"'{folder / name}' cannot be used: {limits.brief(error)}.") from None


def _configuration(text: bytes) -> dict[str, Any]:
    config = limits.parse_json(text)
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        schema = config.get("schema") if isinstance(config, dict) else None
        raise ValueError(
            f"it has schema {schema!r:.40}; this version reads schema {SCHEMA}: upgrade odesteer, "
            f"or fit again"
        )
    return config


def _sha256(file: BinaryIO) -> str:
    """Hash a file piece by piece, without filling memory, and rewind it."""
    digest = hashlib.sha256()
    while piece := file.read(2**20):
        digest.update(piece)
    file.seek(0)
    return digest.hexdigest()


def dose_to_json(dose: Dose) -> dict[str, Any]:
    """Convert a dose to JSON values.

        >>> dose_to_json(as_dose(0.5))
        {'type': 'time', 'amount': 0.5}

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
        covered = {} if dose.coverage is None else {"coverage": dose.coverage}
        return {
            "type": name,
            "probability": dose.probability,
            "budget": dose_to_json(as_dose(dose.budget)),
            **covered,
        }
    return {"type": name, "amount": dose.size}


def dose_from_json(tree: Any) -> Dose:
    """Rebuild the dose that `dose_to_json` wrote.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(tree, dict) or not isinstance(tree.get("type"), str):
        raise ValueError(f"a dose is an object with its type; got {tree!r:.80}")
    kind = lookup(DOSES, tree["type"][:100], "dose")
    values = {key: value for key, value in tree.items() if key != "type"}
    names = {"probability", "budget"} if kind is Target else {"amount"}
    if set(values) - ({"coverage"} if kind is Target else set()) != names:
        raise ValueError(
            f"the dose '{tree['type']}' is not made of {', '.join(values) or 'nothing'}"
        )
    if kind is Target:
        values["budget"] = dose_from_json(values["budget"])
    for name, value in values.items():
        if name != "budget" and type(value) not in (int, float):
            raise ValueError(f"the {name} of a dose is a number; got {value!r:.80}")
    return kind(**values)
