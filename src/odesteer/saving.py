"""How is a steering kept on disk?

A directory: `steering_config.json` (everything but numbers in bulk, and the hash of the rest),
`steering.safetensors`, and a `README.md` for people. Each file is written to a temporary name
and renamed; reading checks everything and executes nothing.
"""

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from odesteer.lookup import pick
from odesteer.ode import DOSES, Dose, Target, as_dose

SCHEMA = 1
CONFIG, TENSORS = "steering_config.json", "steering.safetensors"


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], dose: str) -> Path:
    """Write the directory; schema and hash are added to the configuration, `dose` to the card."""
    payload = dump_tensors(tensors)
    config = {"schema": SCHEMA, **config, "sha256": hashlib.sha256(payload).hexdigest()}
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    # The configuration holds the hash of the tensors and comes last: a directory cut off in
    # the middle is detected when it is read.
    write_whole(folder / TENSORS, payload)
    write_whole(folder / "README.md", _card(config, dose).encode())
    write_whole(folder / CONFIG, text.encode())
    return folder


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a directory that `write` wrote.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is damaged, or was written by a newer version.
    """
    for name in (CONFIG, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"No steering at '{folder}': {name} is missing. A steering is a directory "
                f"written by save_pretrained or `odesteer fit --out`."
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{folder / CONFIG}' is not valid JSON: {error}.") from None
    if not isinstance(config, dict) or config.get("schema") != SCHEMA:
        found = config.get("schema") if isinstance(config, dict) else None
        raise ValueError(
            f"'{folder / CONFIG}' has schema {found!r}; this version reads schema {SCHEMA}. "
            f"Upgrade odesteer, or fit again."
        )
    payload = (folder / TENSORS).read_bytes()
    if hashlib.sha256(payload).hexdigest() != config.get("sha256"):
        raise ValueError(
            f"'{folder / TENSORS}' does not match its checksum: the copy is incomplete or was "
            f"changed. Copy the whole directory again."
        )
    try:
        return config, load_tensors(payload)
    except SafetensorError as error:
        raise ValueError(f"'{folder / TENSORS}' is not a safetensors file: {error}.") from None


def _card(config: dict[str, Any], dose: str) -> str:
    """What a person who finds the directory should know."""
    held_out = config["receipts"].get("held_out", {})
    lines = [
        "---",
        "library_name: odesteer",
        "tags: [activation-steering, odesteer]",
        "---",
        "",
        f"# A steering learnt by `{config['method']}`",
        "",
        f"- model: {config['model'].get('name', 'not recorded')}",
        f"- layer: output of decoder block {config['layer']}",
        f"- dose: {dose}",
        f"- solver: {config['solver']}, {config['steps']} steps",
        *[f"- held-out {key}: {value}" for key, value in held_out.items()],
        "",
        "```python",
        "import odesteer as ods",
        "",
        'steering = ods.Steering.from_pretrained("path/to/this/directory")',
        "with steering.attach(model):",
        "    model.generate(**inputs)",
        "```",
        "",
    ]
    return "\n".join(lines)


def dose_to_json(dose: Dose) -> dict[str, Any]:
    """A dose as JSON values."""
    name = next(name for name, cls in DOSES.items() if type(dose) is cls)
    if isinstance(dose, Target):
        return {
            "type": name,
            "probability": dose.probability,
            "budget": dose_to_json(as_dose(dose.budget)),
        }
    return {"type": name, "amount": dose.size}


def dose_from_json(tree: dict[str, Any]) -> Dose:
    """The dose that `dose_to_json` wrote."""
    values = {key: value for key, value in tree.items() if key != "type"}
    if "budget" in values:
        values["budget"] = dose_from_json(values["budget"])
    return pick(DOSES, tree["type"], "dose")(**values)


def write_whole(path: Path, payload: bytes) -> None:
    """Write to a temporary name beside `path`, then rename: never half a file."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
        # mkstemp makes the file private; a new file gets what the umask grants.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
