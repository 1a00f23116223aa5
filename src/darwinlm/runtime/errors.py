"""All errors that input can cause, as a tree.

::

    DarwinLMError
    ├── ModelError            the model can't be found, read or understood
    │   ├── FamilyError       its architecture isn't supported
    │   └── CheckpointError   its files are missing, damaged or inconsistent
    ├── RecipeError           a field of the recipe or an option of the command is wrong
    │   └── BudgetError       the budget can't be met
    ├── DataError             text is missing, empty, too short or unreadable
    ├── MeasureError          a measure of the user's own fails, or its scores can't be used
    ├── NumericsError         a tensor isn't finite or a matrix can't be factorised
    ├── TimeLimitError        a time limit has passed; the search then returns its best result
    ├── ArtifactError         a folder of an earlier stage is damaged or belongs to something else
    ├── ParallelError         several processes can't work together
    ├── ExportError           the model doesn't fit the format, or the written model differs from the original
    ├── EngineError           an inference engine refuses a model or dies on it
    ├── MissingExtraError     an optional dependency is needed and not installed
    ├── DeviceMemoryError     a stage needs more memory than the device has
    ├── BusyError             another process works on the same folder or file
    └── StorageError          the disk is full or can't be written

The command line prints the message and exits with status 2. A message says what is wrong, where, and what to do.
"""

from __future__ import annotations

import errno
import json
import os
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from darwinlm.runtime.shell import word

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DISK = {
    errno.ENOSPC: "the disk is full: free some space",
    errno.EDQUOT: "your quota of the disk is used up: free some space",
    errno.EROFS: "the disk is read-only: make it writable or choose another place",
    errno.EFBIG: "the file system or a limit allows no file this large (FAT: none of 4 GiB): choose another place",
}
"""What a disk refuses, and what to do."""


class DarwinLMError(Exception):
    """Base class of all errors that input can cause.

    Attributes:
        of_another: Whether it was raised in another process of this run, or because that one has ended.
    """

    of_another = False


class ModelError(DarwinLMError):
    """The model can't be found, read or understood.

    What to do: check the path or hub id. Without a network connection, give a local folder or a GGUF file.
    """


class FamilyError(ModelError):
    """The model's architecture isn't supported.

    What to do: choose a supported family; the message lists them.
    """


class CheckpointError(ModelError):
    """The model's files are missing, damaged or inconsistent.

    What to do: download the checkpoint again, or convert it as the message says.
    """


class RecipeError(DarwinLMError):
    """A field of the recipe or an option of the command is wrong.

    What to do: correct the named field. `recipe.default.yaml` lists the fields with their defaults.
    """


class BudgetError(RecipeError):
    """The budget can't be met.

    What to do: choose a bound between the smallest and the largest size in the message.
    """


class DataError(DarwinLMError):
    """Text is missing, empty, too short or unreadable.

    What to do: give more or other text with `--text`, or lower the settings that the message names.
    """


class MeasureError(DarwinLMError):
    """A measure of the user's own fails, or its scores can't be used.

    What to do: correct the item that the message names, and rerun the command; finished scores are kept.
    """


class NumericsError(DarwinLMError):
    """A tensor isn't finite, or a matrix can't be factorised.

    What to do: try `--set compute.dtype=float32`, or give more calibration text.
    """


class TimeLimitError(DarwinLMError):
    """A time limit has passed; the search then returns its best result.

    What to do: nothing, or give the run more time with `--time`.
    """


class ArtifactError(DarwinLMError):
    """A folder of an earlier stage is damaged or belongs to something else.

    What to do: choose another output folder, or delete the stage's folder that the message names; the stage is then
    redone.
    """


class ParallelError(DarwinLMError):
    """Several processes can't work together.

    What to do: start all of them with one `torchrun` command on the same files. Rerun it to resume.
    """


class ExportError(DarwinLMError):
    """The model doesn't fit the format, or the written model differs from the original.

    What to do: choose another format; the message names the layer and the reason.
    """


class EngineError(DarwinLMError):
    """An inference engine refuses a model or crashes on it.

    What to do: read the engine's last line in the message, and check the engine's version and the free memory.
    """


class MissingExtraError(DarwinLMError):
    """An optional dependency is needed and not installed.

    What to do: install the extra that the message names.
    """


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtraError:
    """The error for a package that isn't installed, with the command that adds its extra."""
    return MissingExtraError(f"{purpose} needs the package '{package}': {install(extra)}")


def import_extra(package: str, extra: str, purpose: str) -> None:
    """Import an optional package, for code that needs it later. Raises MissingExtraError if it isn't installed."""
    try:
        import_module(package)
    except ImportError as error:
        raise missing_extra(package, extra, purpose) from error


class DeviceMemoryError(DarwinLMError):
    """A stage needs more memory than the device has.

    What to do: change the setting that the message names, or find one with `darwinlm plan`.
    """


class BusyError(DarwinLMError):
    """Another process works on the same folder or file.

    What to do: wait until it has finished, or choose another folder or file.
    """


class StorageError(DarwinLMError):
    """The disk is full or can't be written.

    What to do: free some disk space, or choose another output folder. Rerun the command to resume.
    """


def install(extra: str) -> str:
    """The command that adds an extra to this package as it was installed: from a clone, a file, or an index."""
    try:
        origin = json.loads(distribution("darwinlm").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        origin = {}
    url = str(origin.get("url", ""))
    if origin.get("dir_info", {}).get("editable"):
        return f"pip install -e {word(f'{unquote(urlsplit(url).path)}[{extra}]')}"
    if "vcs_info" in origin:
        url = f"{origin['vcs_info']['vcs']}+{url}"
    return f"pip install 'darwinlm[{extra}]{f' @ {url}' if url else ''}'"


def _free_some(path: Path) -> str:
    return "free some space"


_how_much: Callable[[Path], str] = _free_some


def tell_when_full(how_much: Callable[[Path], str]) -> None:
    """Let messages about a full disk say how much space to free for a file that couldn't be written."""
    global _how_much  # noqa: PLW0603
    _how_much = how_much


def storage_error(path: Path, error: Exception) -> StorageError:
    """The error for a failed write, with the path and a remedy."""
    text = str(error)
    refused = (advice for number, advice in DISK.items() if os.strerror(number) in text)
    reason = next(refused, f"{getattr(error, 'strerror', None) or text}: check the path and its permissions")
    if reason == DISK[errno.ENOSPC]:
        reason = f"the disk is full: {_how_much(path)}"
    return StorageError(f"can't write {path}: {reason}, then rerun the same command; finished work is kept")


def first_line(error: BaseException) -> str:
    """The first line of another library's error, for our messages, and the next one if it ends with a colon.

    An error without words, or whose words can't be made, gives its type.
    """
    try:
        words = str(error).strip()
    except Exception:  # noqa: BLE001 - the error is of any class, and this one would hide it
        words = ""
    line, _, further_lines = words.partition("\n")
    told = (f"{line} {further_lines.strip()}".partition("\n")[0] if line.endswith(":") else line).rstrip(": .")
    return told or type(error).__name__
