"""`odesteer serve`: vLLM's own server, with steerings."""

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import uuid
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from odesteer.cli import library
from odesteer.cli.console import say, teaching_errors
from odesteer.cli.load_steering import pairs
from odesteer.common.expression import check_served

HOST, PORT = "127.0.0.1", 8000
# In the environment of every process of a server; the watcher looks for it.
WATCHED = "ODESTEER_SERVER"
_SERVER = "vllm.entrypoints.openai.api_server"


@teaching_errors
def serve(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A local directory, a Hub model, or `smollm2` (works offline)."
        ),
    ],
    steering: Annotated[
        list[str],
        typer.Option(
            "--steering",
            "-s",
            metavar="NAME=DIR",
            help="A directory written by `odesteer fit`, by the name that clients use; repeat. "
            "They act in this order.",
        ),
    ],
    compose: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=EXPRESSION",
            help="Of those, such as `safe=truthful & ~toxic`; repeat.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", help="What clients call the model; its own name by default."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 is reachable from other machines.")
    ] = (HOST),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where it listens.")] = PORT,
    check: Annotated[
        str,
        typer.Option(
            help="How much the model must be the one they were fitted on: exact, "
            "architecture or width."
        ),
    ] = "architecture",
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Print the command that would be run; do nothing.")
    ] = False,
) -> None:
    """Serve a model that each request may steer: vLLM's OpenAI-compatible server.

    What follows `--` goes to vLLM (`--tensor-parallel-size 2`, `--max-model-len 4096`, ...). A
    request steers by `"vllm_xargs": {"odesteer": "{\\"name\\": \\"truthful\\"}"}`, or by asking for
    the model `MODEL:truthful`; GET /v1/steerings lists what there is.

    Example: odesteer serve smollm2 -s cheerful=cheerful

    Example: odesteer serve meta-llama/Llama-3.1-8B-Instruct -s truthful=runs/truthful
    -s toxic=me/toxic --compose "safe=truthful & ~toxic" -- --tensor-parallel-size 2
    """
    steerings, composed = pairs(steering, "--steering"), pairs(compose or [], "--compose")
    # Before torch, which takes seconds to import, reads the steerings.
    if not dry:
        missing_engine()
    check_served(steerings, composed, check)
    config = library.configuration(steerings, composed, check)
    source = str(library.local_copy(say)) if model == library.SMOLLM2 else model
    served = library.served_model_names(
        [name or (Path(model).name if Path(model).is_dir() else model)],
        [*steerings, *composed],
    )
    command = [
        sys.executable, "-m", _SERVER, "--model", source, "--host", host, "--port", str(port),
        "--served-model-name", *served, "--additional-config", json.dumps(config),
        *context.args,
    ]  # fmt: skip
    environment = {**memory_settings(), "VLLM_PLUGINS": allowed_plugins()}
    if dry:
        typer.echo(
            shlex.join([*(f"{key}={value}" for key, value in environment.items()), *command])
        )
        return
    say(f"Serving {', '.join(served)} on http://{host}:{port}/v1")
    say(guarded(context.args))
    sys.stdout.flush()
    token = uuid.uuid4().hex
    watch(token)
    # Replaces this process: signals reach the server, and its exit code is ours.
    # SPT_NOENV: vLLM's process titles would overwrite what the watcher looks for.
    marked = {**os.environ, **environment, WATCHED: token, "SPT_NOENV": "1"}
    os.execve(sys.executable, command, marked)


def watch(token: str) -> None:
    """Start the watcher that ends the processes of this server if it is killed."""
    script = str(Path(__file__).with_name("end_with_server.py"))
    command = [sys.executable, "-I", script, str(os.getpid()), WATCHED, token]
    null = subprocess.DEVNULL
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null)


def guarded(arguments: list[str]) -> str:
    """Describe who can use the server, given vLLM's arguments."""
    keyed = any(each.split("=")[0] == "--api-key" for each in arguments)
    if keyed or os.environ.get("VLLM_API_KEY"):
        return (
            "The API key is asked for on every route but health, version, load, documentation and "
            "/metrics, which names the steerings."
        )
    return "No --api-key: whoever reaches it can generate, steer and read /metrics."


def missing_engine() -> None:
    """Raise ValueError if vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            "Serving needs vLLM, which this Python does not have: pip install 'odesteer[vllm]' on "
            "a machine with a GPU; docs/serving.md says how on a CPU."
        )


def memory_settings() -> dict[str, str]:
    """Return settings of the environment that keep the memory of a server on a CPU flat.

    oneDNN keeps the last 1,024 matrix products that it compiled: one for every number of tokens in
    a batch and every shape of a weight, of 0.5 MB each for SmolLM2-135M. vLLM itself keeps 32 of
    every weight, so 160 serve the five shapes of a decoder. glibc puts them between larger buffers,
    and cannot give back what is free there, unless large buffers are mapped apart from its heap:
    a fixed threshold does that (measured in docs/robustness.md). What is set already stays.
    """
    import torch

    if torch.accelerator.is_available():
        return {}
    settings = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "160", "MALLOC_MMAP_THRESHOLD_": "131072"}
    return {key: os.environ.get(key, value) for key, value in settings.items()}


def allowed_plugins() -> str:
    """Return VLLM_PLUGINS: vLLM loads plugins that add routes only if it names them.

    Naming one leaves out the others, so it names all that vLLM would have loaded.
    """
    setting = os.environ.get("VLLM_PLUGINS")
    names = setting.split(",") if setting else []
    if setting is None:
        groups = (
            "vllm.general_plugins",
            "vllm.platform_plugins",
            "vllm.io_processor_plugins",
            "vllm.stat_logger_plugins",
        )
        names = sorted({point.name for group in groups for point in entry_points(group=group)})
    return ",".join(dict.fromkeys([*(each for each in names if each), "odesteer"]))
