"""Stage folders: complete if they have a manifest, reusable if their keys match.

A stage writes files into its folder, and the manifest last, by rename. The manifest holds the key (its part of the
recipe and the digests of its inputs) and a hash of every file. A stage with an unchanged key is skipped, one with a
changed key starts again, and a killed one resumes from its finished files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors import SafetensorError

from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import ArtifactError, NumericsError, StorageError, storage_error
from darwinlm.runtime.folders import make_folder, remove
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import load_json, shorten

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Name = TypeVar("Name", bound=str)
MANIFEST = "manifest.json"
KEY = "key.json"
READS = "reads.json"
"""What an unfinished stage has read; a finished one has it in its manifest."""
MARKER = "darwinlm.json"
STAGES = "stages"
"""The file that marks a run's output folder, and the folder of the stages in it."""
HASHED_TOGETHER = min(os.cpu_count() or 1, 8)
"""Files that are hashed at a time."""
TICK = 50_000_000
"""Nanoseconds within which a change of a file may leave its time as it was."""
_DIGESTS: dict[tuple[str, int, int, int, int], str] = {}
SEEN_LATE = 90.0
"""Seconds after which every machine sees a file in a shared folder; NFS keeps what it knows of folders for up to 60."""
ARTIFACT_BYTES = 1 << 30
"""Largest JSON file of a stage: the hashes of thirty million documents."""


def digest_of(value: object) -> str:
    """Hash of a JSON-like value (32 hex digits, independent of the order of its keys)."""
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Hash of a file's bytes (32 hex digits), computed once while the file doesn't change."""
    status = path.stat()
    key = _state(path, status)
    digest = _DIGESTS.get(key)
    if digest is None:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, new_hash).hexdigest()
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > TICK:
            _DIGESTS[key] = digest
    return digest


def new_hash() -> hashlib.blake2b:
    """The hash of `file_digest` of no bytes yet."""
    return hashlib.blake2b(digest_size=16)


def note_digest(path: Path, digest: str) -> None:
    """Note the hash of a file that was just written, so that it isn't read for it."""
    _DIGESTS[_state(path, path.stat())] = digest


def _state(path: Path, status: os.stat_result) -> tuple[str, int, int, int, int]:
    # The time of the last change can't be set, as that of the last write can.
    return str(path), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def file_digests(paths: Iterable[Path]) -> dict[Path, str]:
    """Hashes of files, several at a time."""
    files = list(paths)
    with ThreadPoolExecutor(HASHED_TOGETHER) as threads:
        return dict(zip(files, threads.map(file_digest, files), strict=True))


def folder_digests(folder: Path, *without: str) -> dict[str, str]:
    """Hashes of the files in a folder by their relative paths, without hidden files, which belong to the system."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    digests = file_digests(path for path in files if path.name not in without and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): digest for path, digest in digests.items()}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write to a file in a temporary folder next to `path` and rename it, so that `path` is always complete.

    The folder is a new one, so that no link is followed, and holds what safetensors leaves when it is killed. Its name
    is random: processes of several containers can have one number and share a folder. Raises StorageError.
    """
    try:
        make_folder(path.parent)
        with fresh_folder(path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")) as folder:
            write(folder / "new")
            share(folder)
            (folder / "new").replace(path)
    except (OSError, SafetensorError) as error:
        raise storage_error(path, error) from error


@contextlib.contextmanager
def fresh_folder(path: Path) -> Iterator[Path]:
    """An empty folder while the body runs, in place of what a killed process left. Raises StorageError."""
    remove(path)
    try:
        path.mkdir()
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def share(folder: Path) -> None:
    """Give all files in a folder the permissions of new files; safetensors lets only the owner read its own."""
    os.umask(mask := os.umask(0))
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(PermissionError):  # some file systems can't change any
                path.chmod(0o666 & ~mask)


def write_json(path: Path, value: object) -> None:
    """Write JSON atomically. Raises StorageError, or NumericsError for NaN and infinity, which JSON doesn't know."""
    try:
        text = json.dumps(value, indent=1, sort_keys=False, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NumericsError(
            f"a figure for {path} isn't finite (NaN or infinity), so it isn't written: the model's activations "
            "overflow; try float32"
        ) from error
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically. Raises StorageError."""
    write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def write_tensors(path: Path, tensors: Mapping[Name, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors atomically. Raises StorageError."""
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # With an empty mapping and no tensors, the library writes what it can't read.
    about = dict(metadata) if metadata else None
    write_atomically(path, lambda to: save_file(contiguous, to, metadata=about))


def await_files(paths: Iterable[Path]) -> None:
    """Wait until this machine sees files that others wrote; NFS may show them a minute late. Raises StorageError."""
    ends = time.monotonic() + SEEN_LATE
    for path in paths:
        while not path.exists():
            if time.monotonic() > ends:
                raise StorageError(
                    f"{path} was written by another process, but isn't here: give an output folder that all machines "
                    "of the run share"
                )
            time.sleep(0.1)


def read_json(path: Path) -> Any:
    """Read JSON that a stage wrote. Raises ArtifactError if the file is missing or isn't JSON."""
    try:
        return load_json(path, ARTIFACT_BYTES)
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error


def read_record(path: Path) -> JsonObject:
    """Read a JSON file that must hold a mapping. Raises ArtifactError."""
    return read_as(path, JsonObject)


def validated(path: Path, kind: type[T], value: object) -> T:
    """A part of a JSON file, as in `read_as`. Raises ArtifactError if it is something else."""
    try:
        validated_value: T = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        mistake = error.errors()[0]
        place = ".".join(map(str, mistake["loc"]))
        raise damaged(path, f"it holds something else{place and f' at {place}'}: {mistake['msg']}") from error
    return validated_value


def read_as(path: Path, kind: type[T]) -> T:
    """A whole JSON file as a model, a dataclass or a type with parameters. Raises ArtifactError."""
    return validated(path, kind, read_json(path))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read safetensors that a stage wrote. Raises ArtifactError if the file is missing or damaged."""
    with open_tensors(path) as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - it is no mapping


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Safetensors that a stage wrote, to read some of them. Raises ArtifactError if the file is missing or damaged."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except (OSError, SafetensorError) as error:
        raise damaged(path, str(error)) from error


def check_room(folder: Path, n_bytes: float, what: str, remedy: str) -> None:
    """Create a folder, and check that its disk has room for some bytes. Raises StorageError."""
    try:
        make_folder(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    free_bytes = shutil.disk_usage(folder).free
    if n_bytes > free_bytes:
        raise StorageError(
            f"{folder}: {what} {size(n_bytes)}, but {size(free_bytes)} are free: free some space, {remedy}"
        )


def damaged(path: Path, reason: str, stage: Path | None = None) -> ArtifactError:
    """The error for a damaged artifact; `stage` is its folder, or None to find it from the path.

    Only the deletion of stage folders is advised, because a run can rebuild them.
    """
    reason = shorten(reason, 200)
    folder = stage or next((parent for parent in path.parents if parent.parent.name == STAGES), None)
    if folder is None:
        return ArtifactError(f"{path} is damaged ({reason}): restore an intact copy, or choose another folder or file")
    return ArtifactError(
        f"{path} is damaged ({reason}): delete the folder {folder} and rerun the same command, or the one that "
        "created the folder; that stage is then redone"
    )


class Manifest(BaseModel):
    """What marks a stage as finished: its key, what it read of its inputs' parts, its time, and its files' hashes."""

    key: JsonObject
    reads: dict[str, dict[str, str]] = {}
    seconds: float = 0.0
    resumed: bool = False
    files: dict[str, str]


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished stage. Raises ArtifactError."""
    return read_as(folder / MANIFEST, Manifest)


def what_changed(path: Path, digest: str | None) -> str | None:
    """The difference of a file from its recorded hash, which may be missing too; None if there is none."""
    if not path.is_file():
        return "it is missing"
    return None if file_digest(path) == digest else "it was changed after it was written"


def check_file(path: Path, digest: str | None, stage: Path | None = None) -> None:
    """Compare a file of a stage with its hash in the manifest; None if that lacks it. Raises ArtifactError."""
    try:
        problem = what_changed(path, digest)
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise damaged(path, str(error), stage) from error
    if problem:
        raise damaged(path, problem, stage)


def code_version(number: int) -> dict[str, int | str]:
    """Version of a stage and of transformers, whose models and tokenizers it runs: a part of the stage's key."""
    return {"version": number, "transformers": version("transformers")}


def result_digest(key: Mapping[str, object], reads: Mapping[str, Mapping[str, str]]) -> str:
    """Hash of what a finished stage's result depends on: its key, and what it read of its inputs' parts."""
    return digest_of({"key": key, "reads": reads} if reads else key)


def check_no_link(*folders: Path) -> None:
    """Refuse to write or delete behind a link. Raises ArtifactError."""
    link = next((path for path in folders if path.is_symlink()), None)
    if link is not None:
        raise ArtifactError(
            f"{link} is a symbolic link, and what lies behind one is kept: remove the link, and rerun the same command"
        )


def check_written(folder: Path, names: Collection[str]) -> None:
    """Refuse to delete what no run wrote, except the system's: hidden files but Git's. Raises ArtifactError."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        hidden = "/." in f"/{name}" and not name.startswith(".git/")
        if not (hidden or name in names or path.suffix == ".pyc") and (path.is_symlink() or not path.is_dir()):
            raise ArtifactError(f"{path} was not written by a run, so {folder} is kept: move it away")


class StageFolder:
    """The folder of a stage, with the key that its content must match.

    The key is a JSON-like description of everything that the result depends on.
    """

    def __init__(self, folder: Path, key: Mapping[str, object]) -> None:
        self.folder = folder
        self.key = json.loads(json.dumps(key, default=str))
        self.reads: Mapping[str, Mapping[str, str]] = {}

    @property
    def digest(self) -> str:
        """Hash of the key and of what a finished stage has read, which is a part of later stages' keys."""
        return result_digest(self.key, self.reads)

    def is_complete(self) -> bool:
        """Whether the stage is finished for this key; its files are then compared with their hashes.

        Raises ArtifactError if a file is missing or differs from what the manifest recorded.
        """
        if not (self.folder / MANIFEST).exists():
            return False
        manifest = read_manifest(self.folder)
        if manifest.key != self.key:
            return False
        with contextlib.suppress(OSError, ValueError):  # `check_file` tells which one
            file_digests(path for name in manifest.files if (path := self.folder / name).is_file())
        for name, expected in manifest.files.items():
            check_file(self.folder / name, expected, self.folder)
        self.reads = manifest.reads
        return True

    def await_manifest(self) -> None:
        """Wait until this machine sees the manifest that another one wrote. Raises as `await_files`."""
        await_files([self.folder / MANIFEST])
        self.reads = read_manifest(self.folder).reads

    @property
    def reads_so_far(self) -> dict[str, dict[str, str]]:
        """What an interrupted run with the same key had read of its inputs' parts."""
        path = self.folder / READS
        return read_as(path, dict[str, dict[str, str]]) if path.exists() and self._is_interrupted() else {}

    def keep_reads(self, reads: Mapping[str, Mapping[str, str]]) -> None:
        """Keep what was read, for the run that resumes this one. Raises StorageError."""
        write_json(self.folder / READS, reads)

    def _is_interrupted(self) -> bool:
        path = self.folder / KEY
        return path.exists() and not (self.folder / MANIFEST).exists() and bool(read_json(path) == self.key)

    def why_redone(self) -> str:
        """Why an earlier, possibly unfinished result in the folder can't be used; empty if it can, or there is none."""
        path = self.folder / KEY
        key = read_json(path) if path.exists() else None
        if not isinstance(key, dict) or key == self.key:
            return ""
        for field, package in (("version", "darwinlm"), ("transformers", "transformers")):
            if {**key, field: None} == {**self.key, field: None}:
                return f"done by another version of {package}"
        return "its settings or inputs have changed"

    def begin(self) -> bool:
        """Prepare the folder: keep files of an interrupted run with the same key, delete all others.

        Returns whether there was an interrupted run. Raises ArtifactError if the folder isn't one of this run.
        """
        if self._is_interrupted():
            return True
        if self.folder.is_symlink() and not self.folder.exists():
            raise ArtifactError(f"{self.folder} is a broken link: remove it, or restore its target")
        if self.folder.exists():
            if not self.folder.is_dir():
                raise ArtifactError(f"{self.folder} is a file where a folder should be: move it away")
            self.discard()
        write_json(self.folder / KEY, self.key)
        return False

    def discard(self) -> None:
        """Delete a result that can't be used, so that the stage starts again.

        Raises ArtifactError if it lies behind a link or holds what no run wrote, StorageError.
        """
        check_no_link(self.folder, self.folder.parent)
        finished = (self.folder / MANIFEST).exists()
        if finished or not (self.folder / KEY).exists():
            check_written(self.folder, {MANIFEST, KEY, READS, *(read_manifest(self.folder).files if finished else ())})
        try:
            shutil.rmtree(self.folder)
        except OSError as error:
            raise storage_error(self.folder, error) from error

    def finish(
        self, *, reads: Mapping[str, Mapping[str, str]] | None = None, seconds: float = 0.0, resumed: bool = False
    ) -> None:
        """Write the manifest, which marks the stage as finished, with the time it took since it was `resumed`."""
        share(self.folder)
        self.reads = reads or {}
        files = folder_digests(self.folder, MANIFEST, KEY, READS)
        manifest = Manifest(key=self.key, reads=self.reads, seconds=seconds, resumed=resumed, files=files)
        write_json(self.folder / MANIFEST, manifest.model_dump())
        (self.folder / READS).unlink(missing_ok=True)  # only now, so that no kill loses what was read
