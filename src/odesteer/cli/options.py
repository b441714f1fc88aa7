"""Options shared by several commands."""

from pathlib import Path
from typing import Annotated

import typer

from odesteer.cli import completion as completing

# Said here, since the real tables import torch and help does not wait for it; a test compares.
METHODS = (
    "none",
    "random",
    "caa",
    "repe",
    "iti",
    "iti-heads",
    "mimic",
    "linear-act",
    "hpr",
    "re-control",
    "truthflow",
    "odesteer",
    "odesteer-paper",
    "odesteer-one-step",
    "odesteer-fourier",
    "odesteer-gaussian",
    "odesteer-mixture",
    "odesteer-network",
    "safety-filter",
)
SOLVERS = ("euler", "midpoint", "heun", "rk4", "rk4-38", "great-circle", "dopri5")
POSITIONS = ("last+generated", "generated", "prompt", "all")
TOKENS = ("last", "mean", "response", "prompt")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A local directory, a Hub model, or `smollm2` (works offline).",
        autocompletion=completing.models,
    ),
]
SteeringPath = Annotated[
    Path | None, typer.Option("--steering", "-s", help="A directory written by `odesteer fit`.")
]
METHOD_NAMES = f"{', '.join(METHODS[:-1])} or {METHODS[-1]}; `odesteer methods` explains them."
Method = Annotated[
    str,
    typer.Option("--method", "-m", help=METHOD_NAMES, autocompletion=completing.among(METHODS)),
]
MethodNow = Annotated[
    str | None,
    typer.Option(
        "--method",
        "-m",
        help=f"Instead of --steering: fit now. {METHOD_NAMES}",
        autocompletion=completing.among(METHODS),
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
Columns = Annotated[
    str | None,
    typer.Option(
        help="What the file calls them: `positive=chosen,negative=rejected,prompt=question`."
    ),
]
Template = Annotated[
    str,
    typer.Option(
        help='auto, chat, plain, or a format such as "Q: {prompt}\\nA: {response}".',
        autocompletion=completing.among(("auto", "chat", "plain")),
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
    typer.Option(min=2, help="Longer texts lose their beginning; the model's context."),
]
Layer = Annotated[
    str,
    typer.Option(
        help="Block index, negative from the end, several as `10,13,16`, or `auto`: by held-out "
        "loss.",
        autocompletion=completing.among(("auto",)),
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
Solver = Annotated[
    str | None,
    typer.Option(
        help=f"Of the ODE: {', '.join(SOLVERS[:-1])} or {SOLVERS[-1]}; the method's own.",
        autocompletion=completing.among(SOLVERS),
    ),
]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Steps of the solver; the method's own number.")
]
Positions = Annotated[
    str,
    typer.Option(
        help="Tokens to steer: last+generated, generated, prompt or all.",
        autocompletion=completing.among(POSITIONS),
    ),
]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Tokens to generate.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="0 is greedy.")]
Engine = Annotated[
    str,
    typer.Option(
        help="Who computes: local (this process), or ray (a cluster).",
        autocompletion=completing.among(("local", "ray")),
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
    typer.Option(min=1, help="Of the engine ray; one a GPU by default, else one a node."),
]
Seed = Annotated[int, typer.Option(help="Of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
