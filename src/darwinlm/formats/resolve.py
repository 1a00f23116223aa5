"""From a hub id, folder or GGUF file to a local checkpoint."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from darwinlm.formats.all_formats import format_of
from darwinlm.formats.format import Format, Say, silent
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.files import LICENCES
from darwinlm.runtime.artifact import MANIFEST, MARKER, STAGES
from darwinlm.runtime.errors import ModelError, first_line
from darwinlm.runtime.limits import shorten

FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "README.md", *LICENCES]
"""Files of a model that are fetched from the hub."""

_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?!datasets/|spaces/)(?P<name>[\w.-]+/[\w.-]+)|https?://"
)
"""An address on the web, of a model of the hub or elsewhere."""


def resolve_model(model: str, work: Path, say: Say = silent) -> Checkpoint:
    """Find a model (hub id `owner/name[@revision]`, folder or GGUF file) and return it as a local checkpoint.

    Converted files go to the folder `work`; `say` hears what a user should know of it.

    Raises:
        ModelError: The model doesn't exist or can't be reached.
        FamilyError: Its architecture isn't known.
        CheckpointError: Its files are damaged.
        MissingExtraError: A GGUF file without the extra `gguf`.
    """
    path, source = _locate(model, weights=True)
    checkpoint = _format(path).read(path, source, work, say)
    checkpoint.check_embeddings()
    return checkpoint


def resolve_finished(model: str, work: Path) -> Checkpoint:
    """As `resolve_model`; of the output folder of a finished run, the model that it saved. Also raises ModelError."""
    path = Path(model).expanduser()
    folder = model_folder(path)
    return resolve_model(model if folder == path else str(folder), work)


def describe_model(model: str) -> Checkpoint:
    """A model's configuration, without its weights.

    Of a hub id only config.json is fetched, of a GGUF file only the header is read.

    Raises:
        ModelError: There is no such model, or it can't be reached.
        FamilyError: Its architecture isn't known.
    """
    path, source = _locate(model, weights=False)
    return _format(path).describe(path, source)


def is_converted(model: str) -> bool:
    """Whether reading a model on this machine converts it."""
    kind = format_of(Path(model).expanduser())
    return kind is not None and kind.converts


def memory_to_read(model: str) -> float:
    """Bytes of main memory that reading a model takes beyond that of a checkpoint, by its name on this machine."""
    path = Path(model).expanduser()
    kind = format_of(path)
    return 0.0 if kind is None else kind.memory_to_read(path)


def _format(path: Path) -> Format:
    """The format of an existing path. Raises ModelError if it is in none."""
    kind = format_of(path)
    if kind is None:
        raise ModelError(f"{path} is a file, but not a .gguf one: give a folder, a GGUF file or a hub id")
    return kind


def _locate(model: str, *, weights: bool) -> tuple[Path, str]:
    """Path of a model's folder or GGUF file, and its name.

    Of a hub id, only config.json is fetched without `weights`.

    Raises ModelError if there is none.
    """
    path = Path(model).expanduser()
    try:
        path.stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, None):
            raise ModelError(f"there is no model at '{shorten(model)}': {error.strerror}") from error
        return _from_hub(model, path, weights=weights), model
    except ValueError:  # a zero byte
        raise ModelError(f"there is no model at {model[:80]!r}: this isn't a path") from None
    if path.is_dir():
        return path, f"./{path}" if is_here(str(path)) else str(path)
    _format(path)
    return path, model


def _from_hub(model: str, path: Path, *, weights: bool) -> Path:
    """The folder of a model of the hub in its cache."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    if address := _ADDRESS.match(model):
        name = address["name"]
        instead = f"give the hub id {name}" if name else "download the model, and give its folder or GGUF file"
        raise ModelError(f"there is no model at '{shorten(model)}', which is an address on the web: {instead}")
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(f"there is no model at '{model}': give a folder, a GGUF file or a hub id such as owner/name")
    name, _, revision = model.partition("@")
    try:
        if weights:
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=FETCHED))
        return Path(hf_hub_download(name, "config.json", revision=revision or None)).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"can't find the model '{model}' on this machine or on the hub ({first_line(error)}): check the name, the "
            "network and, for gated models, your login, or give a folder that holds its config.json"
        ) from error


def model_folder(folder: Path) -> Path:
    """The folder of a model, which is `folder` itself unless that is a run's output folder.

    Raises ModelError if the run isn't finished or holds several sizes.
    """
    if not (folder / MARKER).is_file():
        return folder
    if not (folder / STAGES / "export" / MANIFEST).is_file() or not (folder / "model" / "config.json").is_file():
        if sizes := ", ".join(str(path.parent) for path in sorted(folder.glob("*/summary.json"))):
            raise ModelError(f"{folder} holds several sizes: give one of {sizes}")
        raise ModelError(f"the run in {folder} isn't finished: it holds no exported model yet; rerun its command")
    return folder / "model"


def is_here(model: str) -> bool:
    """Whether a model that could be one of the hub is a folder in the current one."""
    return not model.startswith((".", "~", "/")) and model.count("/") == 1 and Path(model).is_dir()
