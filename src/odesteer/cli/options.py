"""Options that several commands share, and their completion.

`odesteer --install-completion` installs the completion. The shell runs it at every press of the
key, so nothing here may import torch.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated

import typer

from odesteer.common.catalogue import BEHAVIOURS, FORMATS, KL_BUDGETS, METHODS, POSITIONS, SOLVERS

_SMOLLM2 = "smollm2"


def among(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a completion by words that begin with the incomplete one."""

    def matching(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return matching


def models(incomplete: str) -> list[str]:
    """Complete smollm2, the models in the Hub's cache, and directories."""
    known = [_SMOLLM2, *hub_models()]
    return [*among(known)(incomplete), *_directories(incomplete)]


def hub_folder() -> Path:
    """Return the folder of the Hub's cache."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", home / "hub"))


def hub_models() -> list[str]:
    """Return the names of the models in the Hub's cache."""
    prefix = "models--"
    return sorted(
        each.name.removeprefix(prefix).replace("--", "/", 1)
        for each in hub_folder().glob(f"{prefix}*")
    )


def _directories(incomplete: str) -> list[str]:
    start, _, name = incomplete.rpartition("/")
    folder = Path(start or ("/" if incomplete.startswith("/") else "."))
    lead = incomplete[: len(incomplete) - len(name)]
    try:
        names = sorted(each.name for each in folder.iterdir() if each.is_dir())
    except OSError:
        return []
    # Hidden directories are completed once the dot is typed.
    shown = [each for each in names if name.startswith(".") or not each.startswith(".")]
    return [f"{lead}{each}" for each in shown if each.startswith(name)]


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A local directory, a GGUF file, a Hub model, or `smollm2` (works offline).",
        autocompletion=models,
    ),
]
_FITTED = "A directory written by `odesteer fit`."
SteeringPath = Annotated[Path | None, typer.Option("--steering", "-s", help=_FITTED)]
SavedSteering = Annotated[Path, typer.Option("--steering", "-s", help=_FITTED)]
SavedDirectory = Annotated[Path, typer.Argument(metavar="DIR", help=_FITTED)]
Directory = Annotated[Path, typer.Option("--out", "-o", help="Directory to write.")]
SteeringDirectory = Annotated[
    Path, typer.Option("--out", "-o", help="Directory to write the steering to.")
]
*_FIRST, _LAST = METHODS
METHOD_NAMES = f"{', '.join(_FIRST)} or {_LAST}; `odesteer methods` explains them."
Method = Annotated[
    str,
    typer.Option("--method", "-m", help=METHOD_NAMES, autocompletion=among(METHODS)),
]
MethodNow = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help=f"Instead of --steering: fit now. {METHOD_NAMES}",
        autocompletion=among(METHODS),
    ),
]
ContrastNow = Annotated[
    Path | None,
    typer.Option(
        "--contrast",
        "-c",
        help="JSONL, CSV or Parquet to fit --method on; the packaged moods by default.",
    ),
]
Contrast = Annotated[
    Path,
    typer.Argument(
        metavar="CONTRAST",
        help="JSONL, CSV or Parquet: `positive` and `negative` (and `prompt`) a row, or `text` "
        "and `label`.",
    ),
]
# The commands that also take `--behaviour`.
ContrastOrBehaviour = Annotated[
    Path | None,
    typer.Argument(
        metavar="[CONTRAST]",
        help="JSONL, CSV or Parquet: `positive` and `negative` (and `prompt`) a row, or `text` "
        "and `label`. Or --behaviour.",
    ),
]
Behaviour = Annotated[
    str | None,
    typer.Option(
        "--behaviour",
        "-b",
        help="Learn a packaged behaviour such as `formal`; `odesteer behaviours` lists them.",
        autocompletion=among(BEHAVIOURS),
    ),
]
Check = Annotated[
    bool,
    typer.Option(help="Let the model answer prompts before and after, and print a verdict."),
]
RequireEffect = Annotated[
    bool, typer.Option("--require-effect", help="Exit code 1 unless the verdict is `works`.")
]
Columns = Annotated[
    str | None,
    typer.Option(
        help="Column names of the file: `positive=chosen,negative=rejected,prompt=question`."
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} (axbench:3 for concept 3); by default "
        "what the columns say.",
        autocompletion=among(FORMATS),
    ),
]
Template = Annotated[
    str,
    typer.Option(
        help='auto, chat, plain, or a format such as "Q: {prompt}\\nA: {response}".',
        autocompletion=among(("auto", "chat", "plain")),
    ),
]
Cache = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        envvar="ODESTEER_CACHE_ACTIVATIONS",
        help="Keep activations on disk and read them again; see `odesteer cache`.",
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(
        min=2, help="Truncate longer texts at the beginning; by default to the model's context."
    ),
]
Layer = Annotated[
    str,
    typer.Option(
        help="Block index, negative from the end, several as `10,13,16`, or `auto`: by held-out "
        "loss.",
        autocompletion=among(("auto",)),
    ),
]
Spread = Annotated[bool, typer.Option("--spread", help="Share one dose out over several layers.")]
Strength = Annotated[
    float | None,
    typer.Option(help="Integration time T; negative steers away, 0 is the unsteered model."),
]
Angle = Annotated[
    float | None,
    typer.Option(help="Path length relative to the activation's norm; transfers between models."),
]
Target = Annotated[
    float | None,
    typer.Option(
        help="Stop each token where P(positive) reaches this; --strength or --angle is the budget."
    ),
]
Coverage = Annotated[
    float | None,
    typer.Option(
        help="Of a target: stop no earlier than where at least this share of rows is wanted, by "
        "conformal prediction on held-out rows."
    ),
]
KL = Annotated[
    str | None,
    typer.Option(
        "--kl",
        help="Instead of a strength: allowed change of the output, in nats a token, or "
        f"{', '.join(KL_BUDGETS)}; measured on held-out texts.",
        autocompletion=among(tuple(KL_BUDGETS)),
    ),
]
Solver = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(SOLVERS[:-1])} or {SOLVERS[-1]}; by default the method's.",
        autocompletion=among(SOLVERS),
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of the solver; by default the method's.")
]
Positions = Annotated[
    str | None,
    typer.Option(
        help=f"Tokens to steer: {', '.join(POSITIONS)}, or windows joined by + and -, such as "
        "'prompt[:4]+generated[:32]' or 'all-prompt[:1]'; by default those it was fitted for.",
        autocompletion=among(POSITIONS),
    ),
]
FittedPositions = Annotated[
    str | None,
    typer.Option(
        help="Tokens that it will steer, as --positions of `odesteer generate`; by default all of "
        "them where a KL or the text sets the dose, else last+generated.",
        autocompletion=among(POSITIONS),
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
Engine = Annotated[
    str,
    typer.Option(
        help="Where to compute: local (this process) or ray (a cluster).",
        autocompletion=among(("local", "ray")),
    ),
]
Backend = Annotated[
    str,
    typer.Option(
        help="Who generates: transformers (the model in this process), vllm, or another package's."
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Workers of the engine ray; by default one per GPU, else one per node."
    ),
]
Seed = Annotated[int, typer.Option(help="Random seed.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
