"""Publish a model on the Hugging Face hub: card, weights, tokenizer and, on request, a GGUF file."""

from __future__ import annotations

import glob
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from darwinlm.export.run import export_model
from darwinlm.recipe.quantisation import WRITTEN
from darwinlm.runtime.artifact import model_folder
from darwinlm.runtime.errors import ExportError, ModelError, first_line

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def folder_to_push(source: Path, repo: str, quantisation: str | None) -> Path:
    """Folder of the model, after all checks that need no network.

    `source` is the folder of a run or of a model, `repo` the repository `owner/name`, and `quantisation` the type of an
    additional GGUF file. Raises ExportError if name or type are wrong, ModelError if there is no finished model.
    """
    if not NAME.fullmatch(repo):
        raise ExportError(
            f"'{repo}' is not a repository name: give owner/name, made of letters, digits, '.', '_' and '-'"
        )
    if quantisation is not None and quantisation not in WRITTEN:
        raise ExportError(f"--gguf {quantisation}: there is no such type; use {', '.join(WRITTEN)}")
    folder = model_folder(source)
    if not source.is_dir():
        raise ModelError(f"there is no folder '{source}': give the output folder of a run, or the folder of a model")
    if folder != source and not (source / "summary.json").is_file():
        raise ModelError(f"the run in {source} isn't finished: rerun its command, which resumes it")
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ModelError(f"{source} is not a model: it has no config.json with safetensors beside it")
    return folder


def gguf_name(repo: str, quantisation: str) -> str:
    """Name of the GGUF file in a repository."""
    return f"{repo.partition('/')[2]}-{quantisation}.gguf"


def push_folder(
    folder: Path,
    names: Sequence[str],
    repo: str,
    quantisation: str | None,
    *,
    private: bool,
    update: bool,
    say: Callable[[str], None],
) -> str:
    """Create the repository and upload these files of a folder in one commit, after building the GGUF file.

    That file goes in a second commit, since the folder stays as it is. With `update`, the repository may exist. Returns
    the address of the model's page. Raises ExportError if there is no token, the hub refuses the upload or can't be
    reached, or the repository exists.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    # Error class of the hub's HTTP client, which differs between releases of huggingface_hub.
    bases: tuple[type, ...] = HfHubHTTPError.__mro__
    transport_error: type[Exception] = next(
        base for base in bases if base.__name__ in ("HTTPError", "RequestException")
    )
    token = get_token()
    if token is None:
        raise ExportError("there is no token for the hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi(token=token, library_name="darwinlm")
    with tempfile.TemporaryDirectory(prefix="darwinlm-") as work:
        more = [] if quantisation is None else [gguf_name(repo, quantisation)]
        for name in more:
            export_model(folder, Path(work) / name, to="gguf", quantisation=quantisation, say=say)
        try:
            created = api.create_repo(repo, private=private, exist_ok=update)
            say(f"uploading {len(names) + len(more)} files to {created}")
            uploads = ((folder, names, "Upload a pruned model"), (work, more, "Add a GGUF file"))
            for where, which, message in uploads if more else uploads[:1]:
                only = [glob.escape(name) for name in which]
                api.upload_folder(repo_id=repo, folder_path=where, allow_patterns=only, commit_message=message)
        except OfflineModeIsEnabled as error:
            raise ExportError("HF_HUB_OFFLINE is set: unset it to reach the hub") from error
        except HfHubHTTPError as error:
            raise _refused(repo, error) from error
        except ValueError as error:
            raise ExportError(f"the hub refuses the model card: {' '.join(str(error).split())}") from error
        except (OSError, transport_error) as error:
            raise ExportError(f"can't reach the hub ({first_line(error)}): check the network, try again") from error
    return str(created)


def _refused(repo: str, error: Exception) -> ExportError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 409:
        return ExportError(f"{repo} exists on the hub: choose another name, or pass --update to add to it")
    if status == 401:
        return ExportError("the hub doesn't accept the token: run `hf auth login`, or set HF_TOKEN to a valid one")
    if status == 403:
        return ExportError(f"the token may not write to {repo}: use one with write access to that owner")
    return ExportError(f"the hub refuses {repo}: {first_line(error)}")
