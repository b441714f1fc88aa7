"""What is a steering?

The map a -> a(T) of one decoder block: a field, how its ODE is solved, how far, and the
calibration that turns its barrier into a probability. It is what gets saved, loaded,
composed and attached. float32, the cast back, `no_grad` and devices are dealt with here.
"""

import copy
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as dump_tensors
from torch import Tensor

from odesteer import ode
from odesteer.lookup import pick
from odesteer.ode import DOSES, SOLVERS, Barrier, Dose, GradientField, VectorField, as_dose
from odesteer.serialize import describe, rebuild

if TYPE_CHECKING:
    from odesteer.attach import Handle, Positions

SCHEMA = 1
CONFIG, TENSORS = "steering_config.json", "steering.safetensors"


class Calibration(NamedTuple):
    """P(positive | a) = sigmoid(scale * h(a) + offset) when both classes are equally likely.

    Fitted on held-out values of the barrier (Platt, 1999). scale > 0.
    """

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, eq=False)
class Steering:
    """The map a -> a(T), T being the `strength`.

    Attributes:
        field: v; `barrier` is its barrier.
        strength: a number (the paper's T) or a dose: `Angle`, `PathLength`, `Target`.
            0 is the identity bit for bit, a negative number steers away.
        solver: a name in `odesteer.ode.SOLVERS`.
        steps: fixed steps of that solver.
        layer: 0-based index of the decoder block whose output is steered.
        method: the name of the method that learnt it.
        hyperparameters: of that method.
        calibration: from h to a probability.
        receipts: what was measured when it was fitted (JSON values).
        model: what it was fitted on (JSON values).
    """

    field: VectorField
    strength: Dose | float = 1.0
    solver: str = "euler"
    steps: int = 1
    layer: int | None = None
    method: str = "custom"
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    receipts: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    _placed: dict[Any, VectorField] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        pick(SOLVERS, self.solver, "solver")
        as_dose(self.strength)
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}.")

    # ---- what it does to an activation

    def __call__(self, a: Tensor) -> Tensor:
        """a(T) for a [..., d], in a's own dtype; rows that need not move keep every bit."""
        dose = as_dose(self.strength)
        if dose.is_zero or a.numel() == 0:
            return a
        with torch.no_grad():
            field_, start = self._prepare(a)
            moved = ode.solve(
                field_,
                start,
                dose.time(field_, start),
                solver=SOLVERS[self.solver],
                steps=self.steps,
                level=self._level(dose),
            )
            return moved.to(a.dtype)

    def trajectory(self, a: Tensor) -> Tensor:
        """The path of a fixed dose: [..., d] -> [steps + 1, ..., d] in float32.

        Raises:
            ValueError: for a `Target`, whose rows stop at different times.
        """
        dose = as_dose(self.strength)
        if dose.stop_at is not None:
            raise ValueError(
                "A target stops each row at its own time; ask for the trajectory of its budget: "
                "steering.with_strength(steering.strength.budget).trajectory(a)."
            )
        with torch.no_grad():
            field_, start = self._prepare(a)
            time = dose.time(field_, start)
            return ode.trajectory(
                field_, start, time, solver=SOLVERS[self.solver], steps=self.steps
            )

    # ---- what it knows about an activation

    @property
    def barrier(self) -> Barrier:
        """h; h >= 0 is where the positive class is more likely.

        Raises:
            ValueError: if the method has no barrier.
        """
        if self.field.barrier is None:
            raise ValueError(f"Method '{self.method}' has no barrier: it moves but cannot detect.")
        return self.field.barrier

    def log_odds(self, a: Tensor) -> Tensor:
        """The calibrated barrier at even priors: [..., d] -> [...] in float32."""
        _ = self.barrier  # says so where there is none
        with torch.no_grad():
            field_, point = self._prepare(a)
            return self.calibration.scale * field_.value(point) + self.calibration.offset

    def probability(self, a: Tensor, prior: float = 0.5) -> Tensor:
        """P(positive | a), calibrated: [..., d] -> [...].

        Args:
            a: activations.
            prior: the share of positives where it is used; 0.5 asks about the evidence alone.
        """
        if not 0.0 < prior < 1.0:
            raise ValueError(f"prior must be between 0 and 1 (exclusive); got {prior}.")
        return torch.sigmoid(self.log_odds(a) + math.log(prior / (1.0 - prior)))

    # ---- others made from it

    def with_strength(self, strength: Dose | float) -> "Steering":
        """The same steering at another dose."""
        return replace(self, strength=strength)

    def __invert__(self) -> "Steering":
        """Steers away: field -v, barrier -h."""
        scale, offset = self.calibration
        return replace(
            self,
            field=self.field.reversed(),
            method=f"~{self.method}",
            calibration=Calibration(scale, -offset),
        )

    def __and__(self, other: "Steering") -> "Steering":
        """Both aims in one ODE: h = -log(e^-h1 + e^-h2) of the calibrated barriers."""
        return self._joined(other, ode.AndBarrier, "&")

    def __or__(self, other: "Steering") -> "Steering":
        """Either aim: h = log(e^h1 + e^h2) of the calibrated barriers."""
        return self._joined(other, ode.OrBarrier, "|")

    def _joined(self, other: "Steering", junction: Callable[..., Barrier], sign: str) -> "Steering":
        if self.layer != other.layer:
            raise ValueError(
                f"Steerings compose at one layer; these are at layers {self.layer} and "
                f"{other.layer}. Fit both at the same layer, or attach both."
            )
        parts = [s.barrier.affine(*s.calibration) for s in (self, other)]
        return Steering(
            field=GradientField(junction(parts)),
            strength=self.strength,
            solver="heun",
            steps=max(10, self.steps, other.steps),
            layer=self.layer,
            method=f"({self.method} {sign} {other.method})",
            hyperparameters={"left": self.hyperparameters, "right": other.hyperparameters},
            model=self.model,
        )

    # ---- attached to a model

    def attach(
        self,
        model: Any,
        positions: "Positions" = "last+generated",
        rows: Sequence[int] | None = None,
        measure: bool = False,
    ) -> "Handle":
        """Steer `model` until the handle is removed; see `odesteer.attach.attach`."""
        # The verb lives with the engine; imported when used, so that a steering needs no model.
        from odesteer.attach import attach

        return attach(self, model, positions=positions, rows=rows, measure=measure)

    # ---- written down

    def save_pretrained(self, path: str | os.PathLike[str]) -> Path:
        """Write the directory `path`: JSON, safetensors and a card. Each file is whole or absent.

        Raises:
            ValueError: if a part of it is code (a `ModuleBarrier`).
        """
        folder = Path(path)
        tree, tensors = describe(self.field)
        payload = dump_tensors(tensors)
        config = {
            "schema": SCHEMA,
            "method": self.method,
            "hyperparameters": self.hyperparameters,
            "layer": self.layer,
            "dose": _dose_to_json(self.strength),
            "solver": self.solver,
            "steps": self.steps,
            "calibration": self.calibration._asdict(),
            "model": self.model,
            "receipts": self.receipts,
            "field": tree,
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        folder.mkdir(parents=True, exist_ok=True)
        # The configuration holds the hash of the tensors and comes last: a directory cut off
        # in the middle is detected on load.
        _write(folder / TENSORS, payload)
        _write(folder / "README.md", self._card().encode())
        _write(folder / CONFIG, text.encode())
        return folder

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> "Steering":
        """Read a directory that `save_pretrained` wrote; nothing in it is executed.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is not a steering, is damaged, or was written by a newer version.
        """
        folder = Path(path)
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
            field_ = rebuild(config["field"], load_tensors(payload))
            if not isinstance(field_, VectorField):
                raise ValueError(f"it holds a {type(field_).__name__}, which is not a field")
            return cls(
                field=field_,
                strength=_dose_from_json(config["dose"]),
                solver=config["solver"],
                steps=config["steps"],
                layer=config["layer"],
                method=config["method"],
                hyperparameters=config["hyperparameters"],
                calibration=Calibration(**config["calibration"]),
                receipts=config["receipts"],
                model=config["model"],
            )
        except (KeyError, TypeError, ValueError, SafetensorError) as error:
            raise ValueError(f"'{folder / CONFIG}' is not a steering: {error}.") from None

    def _card(self) -> str:
        held_out = self.receipts.get("held_out", {})
        lines = [
            "---",
            "library_name: odesteer",
            "tags: [activation-steering, odesteer]",
            "---",
            "",
            f"# A steering learnt by `{self.method}`",
            "",
            f"- model: {self.model.get('name', 'not recorded')}",
            f"- layer: output of decoder block {self.layer}",
            f"- dose: {self.strength}",
            f"- solver: {self.solver}, {self.steps} steps",
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

    # ---- inside

    def _level(self, dose: Dose) -> float | None:
        """The value of h at which the dose's probability is reached."""
        if dose.stop_at is None:
            return None
        logit = math.log(dose.stop_at / (1.0 - dose.stop_at))
        return (logit - self.calibration.offset) / self.calibration.scale

    def _prepare(self, a: Tensor) -> tuple[VectorField, Tensor]:
        """The field on a's device, and a in the precision it is solved in.

        float64 stays float64; everything else is solved in float32.
        """
        dtype = torch.float64 if a.dtype == torch.float64 else torch.float32
        width = self.hidden_size
        if width is not None and a.shape[-1] != width:
            raise ValueError(
                f"This steering is for activations of width {width}; got {list(a.shape)}."
            )
        key = (a.device, dtype)
        if key not in self._placed:
            self._placed[key] = copy.deepcopy(self.field).to(a.device, dtype)
        return self._placed[key], a.to(dtype)

    @property
    def hidden_size(self) -> int | None:
        """d, or None where the field takes any width."""
        return self.field.width


def _dose_to_json(strength: Dose | float) -> dict[str, Any]:
    dose = as_dose(strength)
    name = next(name for name, cls in DOSES.items() if type(dose) is cls)
    if isinstance(dose, ode.Target):
        return {
            "type": name,
            "probability": dose.probability,
            "budget": _dose_to_json(dose.budget),
        }
    return {"type": name, "amount": dose.size}


def _dose_from_json(tree: dict[str, Any]) -> Dose:
    values = {key: value for key, value in tree.items() if key != "type"}
    if "budget" in values:
        values["budget"] = _dose_from_json(values["budget"])
    return pick(DOSES, tree["type"], "dose")(**values)


def _write(path: Path, payload: bytes) -> None:
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
