"""The files of a folder: which of them are read as text, and which are skipped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from darwinlm.runtime.errors import DataError
from darwinlm.runtime.limits import parse_json, wrong_name
from darwinlm.steps.text.file_kinds import EXTENSIONS, PAGES, extension_of, is_code, is_media
from darwinlm.steps.text.records import listed

README = "README.md"
_DATASET_METADATA = frozenset({"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"})
_NOBODYS_FOLDERS = frozenset({"__pycache__", "node_modules"})
"""Folders that programs fill, which are passed over as hidden ones are."""
_FIRST_BYTES = 1 << 12
_SHOWN_KINDS = 4


@dataclass(frozen=True)
class FolderFiles:
    """The files of a folder and its subfolders, sorted by path, without hidden files and metadata of `datasets`.

    Attributes:
        read: Those that are read as text.
        skipped: The others.
    """

    read: tuple[Path, ...]
    skipped: tuple[Path, ...]

    def told(self) -> str | None:
        """What a user should know: the numbers of files by kind. None if all are read and of one usual kind."""
        if not self.skipped and len({kind_name(path) for path in self.read}) < 2 and not any(map(is_code, self.read)):
            return None
        skipped = f", skipped {_counted(self.skipped)}" if self.skipped else ""
        return f"reads {_counted(self.read)}{skipped}"


def kind_name(path: Path) -> str:
    """The kind of a file for people: its extension, or a name that says more."""
    if path.name == README or (not path.suffix and is_code(path)):
        return path.name
    return extension_of(path) or path.suffix.lower() or "without an extension"


def _counted(paths: Iterable[Path]) -> str:
    """The number of files, and the most common kinds: ``243 files (242 .py, 1 .jsonl)``."""
    kinds = Counter(map(kind_name, paths))
    total = kinds.total()
    common = kinds.most_common(_SHOWN_KINDS)
    words = [f"{count:,} {kind}" for kind, count in common] if len(kinds) > 1 else [common[0][0]]
    if len(kinds) > _SHOWN_KINDS:
        words.append(f"{total - sum(count for _, count in common):,} others")
    return f"{total:,} file{'s' * (total != 1)} ({', '.join(words)})"


def list_folder(folder: Path, *, with_prose: bool = True) -> FolderFiles:
    """List the files of a folder. Without `with_prose`, program code and pages, which have no fields, are skipped.

    Raises DataError if no file can be read, or most of those that may hold text can't.
    """
    try:
        inside = {path.relative_to(folder).parts: path for path in folder.rglob("*") if path.is_file()}
    except RecursionError:
        nested = "its folders are nested too deeply. Name the one with the text."
        raise DataError(f"Text source {folder}: {nested}") from None
    read: list[Path] = []
    skipped: list[Path] = []
    for parts, path in sorted(inside.items()):
        if path.name in _DATASET_METADATA or any(p.startswith(".") or p in _NOBODYS_FOLDERS for p in parts):
            continue
        (read if _is_read(path, with_prose=with_prose) else skipped).append(path)
    files = FolderFiles(tuple(read), tuple(skipped))
    for path in files.read:
        if wrong := wrong_name(path.name):
            raise DataError(f"Text source {path}: {wrong}")
    lost = [path for path in files.skipped if path.name != README and not is_media(path)]
    if not files.read:
        found = f" It holds {_counted(files.skipped)}." if files.skipped else ""
        raise DataError(
            f"Text source {folder}: the folder has no readable file.{found} "
            f"Put files there that end in {listed(EXTENSIONS)}, or program code."
        )
    if len(lost) > len(files.read):
        raise DataError(
            f"Text source {folder}: most of its files can't be read as text: {_counted(lost)}. Those that can are "
            f"{_counted(files.read)}. Convert the others, or name the readable files or their folder, separated by "
            "commas."
        )
    return files


def _is_read(path: Path, *, with_prose: bool) -> bool:
    """Whether a file of a folder is read. Its first bytes decide where the name says too little."""
    extension = extension_of(path)
    if path.name == README or (not with_prose and (extension in PAGES or extension is None)):
        return False
    if extension == ".json":
        return _holds_records(path)
    return extension is not None or (is_code(path) and b"\0" not in _beginning(path))


def _beginning(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_FIRST_BYTES)
    except OSError:
        return b""  # reading it will say why


def _holds_records(path: Path) -> bool:
    """Whether a JSON file isn't a single object over several lines, as configurations are."""
    first, line_break, _ = _beginning(path).lstrip(b"\xef\xbb\xbf \t\r\n").partition(b"\n")
    if not first.startswith(b"{") or not line_break:
        return True
    try:
        return isinstance(parse_json(first.decode()), dict)
    except ValueError:
        return False
