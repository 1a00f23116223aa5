"""From a hub id, folder or GGUF file to a local checkpoint."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.files import LICENCES
from darwinlm.gguf.read import dequantise, describe_gguf
from darwinlm.recipe.settled import is_here
from darwinlm.runtime.artifact import model_folder
from darwinlm.runtime.errors import ModelError, first_line
from darwinlm.runtime.limits import shorten


def resolve_model(
    model: str, work: Path, *, allow_remote_code: bool = False, say: Callable[[str], None] = lambda message: None
) -> Checkpoint:
    """Find a model (hub id `owner/name[@revision]`, folder or GGUF file) and return it as a local checkpoint.

    Converted files go to the folder `work`; `say` hears what a user should know of it.

    Raises:
        ModelError: The model doesn't exist or can't be reached.
        FamilyError: Its architecture isn't known.
        CheckpointError: Its files are damaged.
        MissingExtraError: A GGUF file without the extra `gguf`.
    """
    path = Path(model).expanduser()
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, None):
            raise ModelError(f"there is no model at '{shorten(model)}': {error.strerror}") from error
    except ValueError:  # a zero byte
        raise ModelError(f"there is no model at {model[:80]!r}: this isn't a path") from None
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path} is a file, but not a .gguf one: give a folder, a GGUF file or a hub id")
        checkpoint = Checkpoint.open(dequantise(path, work, say), model)
    elif path.is_dir():
        source = f"./{path}" if is_here(str(path)) else str(path)
        checkpoint = Checkpoint.open(path, source, allow_remote_code=allow_remote_code)
    else:
        checkpoint = Checkpoint.open(from_hub(model, download), model, allow_remote_code=allow_remote_code)
    checkpoint.check_embeddings()
    return checkpoint


def resolve_finished(model: str, work: Path, *, allow_remote_code: bool = False) -> Checkpoint:
    """As `resolve_model`; of the output folder of a finished run, the model that it saved. Also raises ModelError."""
    given = Path(model).expanduser()
    inside = model_folder(given)
    return resolve_model(model if inside == given else str(inside), work, allow_remote_code=allow_remote_code)


def describe_model(model: str, *, allow_remote_code: bool = False) -> Checkpoint:
    """A model's configuration, without its weights.

    Of a hub id only config.json is fetched, of a GGUF file only the header is read.

    Raises:
        ModelError: There is no such model, or it can't be reached.
        FamilyError: Its architecture isn't known.
    """
    path = Path(model).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return describe_gguf(path)
    if path.is_dir():
        source = f"./{path}" if is_here(str(path)) else str(path)
        return Checkpoint.describe(path, source, allow_remote_code=allow_remote_code)
    folder = from_hub(model, _fetch, ", or give a folder that holds its config.json")
    return Checkpoint.describe(folder, model, allow_remote_code=allow_remote_code)


def _fetch(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, "config.json", revision=revision)).parent


def from_hub(model: str, fetch: Callable[[str, str | None], Path], otherwise: str = "") -> Path:
    """The folder that `fetch` gets for a name on the hub and its revision.

    Raises ModelError if the name is none of the hub, or nothing is found; the message ends with what to do `otherwise`.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    path = Path(model).expanduser()
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(f"there is no model at '{model}': give a folder, a GGUF file or a hub id such as owner/name")
    name, _, revision = model.partition("@")
    try:
        return fetch(name, revision or None)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"can't find the model '{model}' on this machine or on the hub ({reason}): check the name, the network "
            f"and, for gated models, your login{otherwise}"
        ) from error


def download(name: str, revision: str | None) -> Path:
    """The folder of a model of the hub in its cache, for `from_hub`."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "README.md", *LICENCES]
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
