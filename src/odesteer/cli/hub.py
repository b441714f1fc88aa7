"""`odesteer push` and `odesteer pull`: steerings on the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from odesteer.cli import options
from odesteer.cli.console import out, say, teaching_errors

Repository = Annotated[
    str, typer.Argument(metavar="REPOSITORY", help="On the Hub, such as me/truthful.")
]


@teaching_errors
def push(
    steering: Annotated[
        Path, typer.Argument(metavar="DIR", help="A directory written by `odesteer fit`.")
    ],
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
    import odesteer as ods
    from odesteer.steering import hub

    if not steering.is_dir():
        raise FileNotFoundError(
            f"No steering at '{steering}': there is no such directory; `odesteer fit --out` "
            f"writes one."
        )
    one = ods.load(steering)
    say(f"Writing {steering} to {repository}")
    commit = hub.push(
        one, steering, repository, private=private, revision=revision, commit_message=message
    )
    if as_json:
        out.print_json(data={"repository": repository, "commit": commit})
        return
    out.print(f"Wrote {commit}", soft_wrap=True)
    at = "" if revision is None else f" --revision {revision}"
    out.print(f"Anybody who may read it: [bold]odesteer pull {repository}{at} --out DIR[/]")


@teaching_errors
def pull(
    repository: Repository,
    output: Annotated[
        Path, typer.Option("--out", "-o", help="Directory to write the steering to.")
    ],
    revision: Annotated[
        str | None, typer.Option(help="A branch, a tag or a commit; the newest of main.")
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Copy a steering from the Hugging Face Hub, checked before it is written.

    Only its own three files are fetched, and nothing in them is executed.

    Example: odesteer pull me/gloomy --out gloomy
    """
    import odesteer as ods
    from odesteer.steering import hub

    if Path(repository).exists():
        raise ValueError(
            f"'{repository}' is a directory here, which every command takes as it is: a Hub "
            f"repository of that name can be read from another directory."
        )
    say(f"Reading {repository}")
    source = hub.locate(repository, revision)
    one = ods.load(source)
    path = hub.copy(source, output)
    if as_json:
        layers = [part.layer for part in one.parts]
        out.print_json(data={"path": str(path), "method": one.method, "layers": layers})
        return
    out.print(f"Wrote {path}: {one.method} at layer {one.layer}, {one.dose}")
