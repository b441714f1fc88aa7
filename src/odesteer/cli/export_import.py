"""`odesteer export` and `odesteer import`: other libraries' control vectors."""

from pathlib import Path
from typing import Annotated, Any

import typer

from odesteer.cli import options
from odesteer.cli.console import out, parse_dose, progress, say, teaching_errors
from odesteer.cli.load_steering import read_contrast, with_dose


@teaching_errors
def export(
    steering: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory written by `odesteer fit`.")
    ],
    output: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A .gguf, .svec, .safetensors or .pt file to write."),
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
    force: Annotated[
        bool, typer.Option("--force", help="Also where a vector hardly stands for the field.")
    ] = False,
    cache: options.Cache = True,
    as_json: options.AsJson = False,
) -> None:
    """Write a steering as a control vector: GGUF (llama.cpp, repeng), .svec, plain or lm-eval's.

    A vector is exact for a constant field. Any other is flattened to its mean displacement of the
    negatives of --contrast, which should be held out from fitting; how well that stands for it is
    printed, kept in the file, and refused where it is poor. With --model, also how far the next
    token is from that under the field itself.

    Example: odesteer export gloomy gloomy.gguf --model smollm2 --contrast held-out.jsonl
    """
    from odesteer.common.registry import lookup
    from odesteer.integrations.control_vectors import FORMATS, divergence, flattened, write_vectors
    from odesteer.steering import load

    lookup(FORMATS, output.suffix, "kind of control vector")
    one = with_dose(load(steering), parse_dose(strength, angle, target), spread=False)
    rows = apart = None
    if model is not None:
        import odesteer as ods
        from odesteer.extraction.tokenize import check_tokens
        from odesteer.models.loading import load_model

        data = read_contrast(contrast, columns=columns)
        parts = one.parts
        tokens = check_tokens(str(parts[0].receipts.get("tokens", "last")))
        language_model, tokenizer = load_model(model, say)
        with progress("Reading texts") as callback:
            read = ods.activations(
                language_model,
                tokenizer,
                data,
                [part.layer for part in parts if part.layer is not None],
                tokens=tokens,
                progress=callback,
                cache=cache,
            )
        rows = {layer: negative for layer, (_, negative) in read.items()}
    vectors, fidelity = flattened(one, rows, force)
    if model is not None:
        with progress("Comparing next tokens") as callback:
            apart = divergence(
                language_model,
                tokenizer,
                one,
                vectors,
                data.negative,
                data.template,
                callback,
            )
        vectors = vectors.noted("odesteer.kl", str(apart))
    path = write_vectors(vectors, output)
    if as_json:
        told: dict[str, Any] = {str(layer): one._asdict() for layer, one in fidelity.items()}
        kl = None if apart is None else apart._asdict()
        out.print_json(data={"path": str(path), "fidelity": told, "kl": kl})
        return
    out.print(f"Wrote {path}: {len(vectors.directions)} directions of width {vectors.width}")
    for layer, found in fidelity.items():
        out.print(f"Layer {layer}: {found if found.n else 'exact, a constant field'}")
    if apart is not None:
        out.print(f"Next token: {apart}")


@teaching_errors
def import_(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A .gguf, .svec or .safetensors file.")
    ],
    output: Annotated[
        Path, typer.Option("--out", "-o", help="Directory to write the steering to.")
    ],
    strength: Annotated[
        float, typer.Option(help="The scale, as other libraries call it; negative steers away.")
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

    llama.cpp adds it to every token: steer with --positions all to do the same.

    Example: odesteer import happy.gguf --out happy
    """
    from odesteer.integrations.control_vectors import read_vectors

    vectors = read_vectors(file, as_extracted)
    one = vectors.steering(strength)
    path = one.save_pretrained(output)
    layers = list(vectors.directions)
    if as_json:
        out.print_json(data={"path": str(path), "layers": layers, "width": vectors.width})
        return
    where = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    kind = f", of a {vectors.model_type}" if vectors.model_type else ""
    out.print(f"Wrote {path}: {len(layers)} vectors of width {vectors.width} at {where}{kind}")
