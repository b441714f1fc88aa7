"""`odesteer export`, `import`, `push` and `pull`: steerings in other formats and on the Hub."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

import odesteer as ods
from odesteer.cli import library, options
from odesteer.cli.console import out, parse_dose, progress, say, teaching_errors, warn
from odesteer.cli.load_steering import read_contrast, with_dose
from odesteer.common.registry import lookup


@teaching_errors
def export(
    steering: options.SavedDirectory,
    output: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A .gguf, .svec, .safetensors or .pt file to write; with --bake a directory.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="The model it steers, to see where a field moves and what that changes."
        ),
    ] = None,
    contrast: Annotated[
        Path | None,
        typer.Option(
            "--contrast",
            "-c",
            help="JSONL, CSV or Parquet whose negatives are moved; the packaged moods by default.",
        ),
    ] = None,
    columns: options.Columns = None,
    strength: options.Strength = None,
    angle: options.Angle = None,
    target: options.Target = None,
    coverage: options.Coverage = None,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Export even if a vector is a poor approximation of the field."
        ),
    ] = False,
    bake: Annotated[
        bool,
        typer.Option(
            "--bake",
            help="Write --model itself, with the vector as a bias: to a directory, or from a GGUF "
            "model to a .gguf file.",
        ),
    ] = False,
    cache: options.Cache = True,
    as_json: options.AsJson = False,
) -> None:
    """Write a steering as a control vector: GGUF (llama.cpp, repeng), .svec, plain or lm-eval's.

    A vector is exact for a constant field. Any other is flattened to its mean displacement of the
    negatives of --contrast, which should be held out from fitting; how well that stands for it is
    printed, kept in the file, and refused where it is poor. With --model, also how far the next
    token is from that under the field itself.

    With --bake the model steers every token by itself, wherever it runs. Architectures without a
    place for a bias are refused.

    Example: odesteer export gloomy gloomy.gguf --model smollm2 --contrast held-out.jsonl
    """
    vector_files = library.control_vectors
    source = None
    if bake:
        source = _check_bake(model, output)
    else:
        lookup(vector_files.FORMATS, output.suffix, "kind of control vector")
    loaded = with_dose(
        ods.load(steering), parse_dose(strength, angle, target, coverage), spread=False
    )
    if loaded.positions != "all":
        warn(
            f"The vector acts on every token, and this steering was fitted for "
            f"{loaded.positions}: the same dose does more there. Fit it with --positions all."
        )
    rows = apart = None
    if model is not None:
        language_model, tokenizer = library.load_model(model, say)
    # Nothing is to be seen of a vector that is one already.
    if model is not None and not (bake and all(map(vector_files.is_constant, loaded.parts))):
        data = read_contrast(contrast, columns=columns)
        parts = loaded.parts
        tokens = library.check_tokens(str(parts[0].receipts.get("tokens", "last")))
        with progress("Reading texts") as callback:
            activations = ods.activations(
                language_model,
                tokenizer,
                data,
                [part.layer for part in parts if part.layer is not None],
                tokens=tokens,
                progress=callback,
                cache=cache,
            )
        rows = {layer: negative for layer, (_, negative) in activations.items()}
    vectors, fidelity = vector_files.flattened(loaded, rows, force)
    if rows is not None:
        with progress("Comparing next tokens") as callback:
            apart = vector_files.divergence(
                language_model,
                tokenizer,
                loaded,
                vectors,
                data.negative,
                data.template,
                callback,
            )
        vectors = vectors.noted("odesteer.kl", str(apart))
    baked = None
    if bake:
        baked = _bake(language_model, tokenizer, vectors, output, source)
    else:
        vector_files.write_vectors(vectors, output)
    if as_json:
        measured: dict[str, Any] = {str(layer): f._asdict() for layer, f in fidelity.items()}
        kl = None if apart is None else apart._asdict()
        facts = {"path": str(output), "fidelity": measured, "kl": kl}
        out.print_json(data=facts if baked is None else facts | {"baked": baked._asdict()})
        return
    if baked is None:
        out.print(f"Wrote {output}: {len(vectors.directions)} directions of width {vectors.width}")
    else:
        out.print(
            f"Wrote {output}: the model with a vector of width {vectors.width} in "
            f"{', '.join(baked.biases)}; it steers every token",
            soft_wrap=True,
        )
    for layer, quality in fidelity.items():
        out.print(f"Layer {layer}: {quality if quality.n else 'exact, a constant field'}")
    if apart is not None:
        out.print(f"Next token: {apart}")
    if baked is not None:
        out.print(
            f"Logits: at most {baked.difference:.2g} from the steered model's, which go up to "
            f"{baked.largest:.3g}"
        )


class _Baked(NamedTuple):
    """Biases that were written, and how well they stand for the steering."""

    biases: list[str]
    difference: float
    largest: float


def _check_bake(model: str | None, output: Path) -> Path | None:
    """Return the GGUF file that is to be copied, None for a directory; refuse what cannot be."""
    if model is None:
        raise ValueError("--bake writes the model itself: name it, with --model.")
    source: Path | None = library.gguf_file(model)
    if output.suffix != ".gguf":
        if model.endswith(".gguf"):
            raise ValueError(f"'{model}' is baked into a .gguf file; got '{output}'.")
        library.control_vectors.check_new(output)
        return None
    if source is None:
        raise ValueError(
            f"A .gguf file is baked from a GGUF model, and '{model}' is none: name a directory, "
            f"which llama.cpp's converter reads."
        )
    return source


def _bake(model: Any, tokenizer: Any, vectors: Any, output: Path, source: Path | None) -> _Baked:
    """Write the model with its biases, and compare its logits with the steered model's."""
    vector_files = library.control_vectors
    expected = vector_files.Logits(model, tokenizer, vectors)
    biases = vector_files.bake(model, vectors)
    if source is not None:
        # The weights here are those of the file.
        biases = vector_files.bake_gguf(source, vectors, output)
        return _Baked(biases, expected.difference(model), expected.largest)
    vector_files.save_baked(model, tokenizer, output)
    model, _ = library.load_model(str(output))
    return _Baked(biases, expected.difference(model), expected.largest)


@teaching_errors
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .gguf, .svec or .safetensors file.")
    ],
    output: options.SteeringDirectory,
    strength: Annotated[
        float, typer.Option(help="Scale of the vector; negative steers away.")
    ] = 1.0,
    as_extracted: Annotated[
        bool,
        typer.Option(
            "--as-extracted",
            help="Of llama.cpp's own generator: its numbers are one above where it read.",
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Read another library's control vector as a steering; nothing in the file is executed.

    It steers every token, as llama.cpp does.

    Example: odesteer import happy.gguf --out happy
    """
    vectors = library.control_vectors.read_vectors(file, as_extracted)
    path = vectors.steering(strength).save_pretrained(output)
    layers = list(vectors.directions)
    if as_json:
        out.print_json(data={"path": str(path), "layers": layers, "width": vectors.width})
        return
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    kind = f", of a {vectors.model_type}" if vectors.model_type else ""
    out.print(f"Wrote {path}: {len(layers)} vectors of width {vectors.width} at {where}{kind}")


Repository = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="On the Hub, such as me/truthful.")
]


@teaching_errors
def push(
    steering: options.SavedDirectory,
    repository: Repository,
    private: Annotated[
        bool | None,
        typer.Option(
            "--private/--public", help="Of a repository that is made now; else your default."
        ),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="The branch to write to, made if it is not there.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", help="Of the commit; the method and layer.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Write a steering to the Hugging Face Hub: its three files as they are, in one commit.

    The directory is read and checked first, so what is pushed can be loaded. Its README.md is the
    model card; what you have added to it goes along. Log in with `hf auth login`, or set HF_TOKEN:
    a token is never an argument, which the shell's history and the list of processes would show.

    Example: odesteer push gloomy me/gloomy --private
    """
    if not steering.is_dir():
        raise FileNotFoundError(
            f"No steering at '{steering}': there is no such directory; `odesteer fit --out` "
            f"writes one."
        )
    loaded = ods.load(steering)
    say(f"Writing {steering} to {repository}")
    commit = loaded.push_to_hub(
        repository, private=private, revision=revision, commit_message=message, folder=steering
    )
    if as_json:
        out.print_json(data={"repository": repository, "commit": commit})
        return
    out.print(f"Wrote {commit}", soft_wrap=True, markup=False)  # the Hub chose it
    at = "" if revision is None else f" --revision {revision}"
    out.print(f"Anybody who may read it: [bold]odesteer pull {repository}{at} --out DIR[/]")


@teaching_errors
def pull(
    repository: Repository,
    output: options.SteeringDirectory,
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit; the newest of main.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Copy a steering from the Hugging Face Hub, checked before it is written.

    Only its own three files are fetched, and nothing in them is executed.

    Example: odesteer pull me/gloomy --out gloomy
    """
    if Path(repository).exists():
        raise ValueError(
            f"'{repository}' is a directory here, which every command takes as it is: a Hub "
            f"repository of that name can be read from another directory."
        )
    say(f"Reading {repository}")
    source = library.hub.locate(repository, revision)
    loaded = ods.load(source)
    path = library.hub.copy(source, output)
    if as_json:
        layers = [part.layer for part in loaded.parts]
        out.print_json(data={"path": str(path), "method": loaded.method, "layers": layers})
        return
    out.print(f"Wrote {path}: {loaded.method} at layer {loaded.layer}, {loaded.dose}")
