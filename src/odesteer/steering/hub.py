"""Transfer of steerings from and to the Hugging Face Hub.

Only the three files of a saved steering are transferred. A token is passed to `huggingface_hub`
alone: it is not stored, not printed, and part of no error.
"""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from odesteer.common.files import replace_files
from odesteer.common.limits import brief
from odesteer.steering.download import fetch
from odesteer.steering.serialization.directory import CARD, CONFIG, TENSORS

FILES = (CONFIG, TENSORS, CARD)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """Return a local directory, or a copy of the Hub repository of that name.

    Args:
        source: a directory, which comes first, or "namespace/name". Private repositories need
            a login (`hf auth login`, or HF_TOKEN).
        revision: of the repository: a branch, a tag or a commit.

    Raises:
        FileNotFoundError: if there is neither.
        ConnectionError: if the Hub cannot be reached, and the repository was not read before.
        ValueError: for a revision of a local directory.
    """
    path = Path(source)
    if path.exists():
        if revision is not None:
            raise ValueError(
                f"'{source}' is a local directory and has no revision '{revision}': leave it out, "
                f"or rename the directory to read the Hub repository of that name."
            )
        return path
    if not _REPOSITORY.fullmatch(os.fspath(source)):
        raise FileNotFoundError(
            f"No steering at '{source}': there is no such directory. save_pretrained and "
            f"`odesteer fit --out` write one; a Hub repository is named like 'me/truthful'."
        )
    with _teaching_errors(os.fspath(source), revision):
        return fetch(os.fspath(source), revision)


class Pushable:
    """Mixin of what can be saved to a directory and pushed to the Hub."""

    # Of a steering: its `method`, `layer` and `save_pretrained`.
    def push_to_hub(
        self: Any,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Push the directory of `save_pretrained` to a Hub repository, in one commit.

        Args:
            repo_id: "namespace/name", or a name in your own namespace; made if it is not there.
            private: whether a repository that is made is private; None: as your account says.
            token: with the right to write; None: the one you are logged in with.
            revision: the branch to write to, made if it is not there; None: main.
            commit_message: its first line; None: the method and layer.

        Returns:
            The address of the commit.

        Raises:
            ValueError: if it cannot be saved.
            PermissionError: if the token may not write there.
            ConnectionError: if the Hub cannot be reached.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = self.save_pretrained(Path(name) / "steering")
            return push(
                self,
                folder,
                repo_id,
                private=private,
                token=token,
                revision=revision,
                commit_message=commit_message,
            )


def push(
    steering: Any,
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Push the three files of a saved steering to a Hub repository, in one commit.

    Other args and errors as of `Pushable.push_to_hub`. The files go as they are.

    Raises:
        FileNotFoundError: if one of the files is missing.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"'{folder}' has no {' and no '.join(missing)}: save the steering again, and push then."
        )
    files = [CommitOperationAdd(file, folder / file) for file in FILES]
    message = commit_message or f"{steering.method} at layer {steering.layer}"
    with _teaching_errors(repo_id, revision):
        api = HfApi(token=token, library_name="odesteer")
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(repository, files, commit_message=message, revision=revision)
    return commit.commit_url


def copy(source: Path, folder: Path) -> Path:
    """Copy the files of a steering atomically, the configuration last."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in (TENSORS, CARD, CONFIG) if (source / name).is_file()]
    replace_files(folder, {name: (source / name).read_bytes() for name in names})
    return folder


@contextmanager
def _teaching_errors(repo_id: str, revision: str | None) -> Iterator[None]:
    """Translate errors of the Hub's client, whose texts are long, to one line."""
    from huggingface_hub import errors

    where = f"'{repo_id}'" + ("" if revision is None else f" at revision '{revision}'")
    try:
        yield
    except errors.RevisionNotFoundError:
        raise FileNotFoundError(
            f"The Hub repository '{repo_id}' has no revision '{revision}': give a branch, a tag "
            f"or a commit of it."
        ) from None
    except errors.GatedRepoError:
        raise PermissionError(
            f"The Hub repository {where} asks for its conditions to be accepted: do so on its "
            f"page, and log in with `hf auth login` or HF_TOKEN."
        ) from None
    except errors.RepositoryNotFoundError:
        raise FileNotFoundError(
            f"No steering at {where}: there is no such directory, and no such repository on the "
            f"Hub that you may read. Check the name; a private one needs `hf auth login` or "
            f"HF_TOKEN."
        ) from None
    except errors.HFValidationError:
        raise ValueError(
            f"{where} is no name of a Hub repository; it looks like 'me/truthful'."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        raise ConnectionError(
            f"{where} is no local directory, and the Hub cannot be reached to look there: go "
            f"online (and unset HF_HUB_OFFLINE), or give the directory of a copy."
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"The Hub refuses you access to {where} (status {status}): log in with `hf auth "
                f"login`, or give a token with the right to read or write there."
            ) from None
        raise ConnectionError(
            f"The Hub answered status {status} for {where}: try again later."
        ) from None
    except (OSError, ValueError) as error:
        if type(error) is OSError and error.errno is None:  # not of the system: a file cut off
            raise ConnectionError(f"A file of {where} cannot be used: {brief(error)}.") from None
        raise
    except Exception as error:
        # A server that is no Hub makes its client fail in any way: with errors of HTTP, KeyError.
        raise ConnectionError(
            f"The Hub's answer for {where} cannot be used ({type(error).__name__}: "
            f"{brief(error, 120)}): check HF_ENDPOINT, or try again later."
        ) from None
