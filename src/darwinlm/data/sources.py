"""Where text comes from: one string names a source, one function reads it as documents.

A source is one of

- a text file, ``.txt`` or ``.txt.gz``;
- a file of records, ``.jsonl``, ``.jsonl.gz``, ``.json`` (one record per line), ``.parquet`` or ``.arrow`` (stream or
  file format), whose text lies in the field ``text``, else ``passage``, ``page`` or ``content``, or in the field named
  after a ``#``: ``reviews.jsonl#body``;
- a folder of such files, read in sorted order, subfolders included;
- a data set of the Hugging Face hub, ``hf:owner/name[:config][@split][#field]``, streamed.

Everything is read lazily: a consumer that stops early has paid only for what it took.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from darwinlm.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEFAULT_SOURCE = "hf:HuggingFaceFW/fineweb-edu"
"""Broad web text of good quality: what a model is calibrated and searched on unless the user says otherwise."""

TEXT_FIELDS = ("text", "passage", "page", "content")
"""Fields that may hold a record's text, the most likely first."""

_TEXT_EXTENSIONS = (".txt", ".txt.gz")
_JSON_EXTENSIONS = (".jsonl", ".jsonl.gz", ".json")
_ARROW_EXTENSIONS = (".parquet", ".arrow")
EXTENSIONS = _TEXT_EXTENSIONS + _JSON_EXTENSIONS + _ARROW_EXTENSIONS
"""Ends of the file names that can be read."""

_DATASET_METADATA = frozenset({"dataset_info.json", "dataset_dict.json", "dataset_infos.json", "state.json"})
_HUB_PATTERN = re.compile(
    r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@#]+))?(?:@(?P<split>[^@#]+))?(?:#(?P<field>.+))?"
)
_ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class LocalSource:
    """A file or a folder on this machine.

    Attributes:
        path: The file or folder; it exists.
        field: The records' field that holds the text, or None to look for one of `TEXT_FIELDS`.
    """

    path: Path
    field: str | None = None

    def files(self) -> list[Path]:
        """List the files to read, sorted by their path; hidden files and metadata of `datasets` are left out.

        Returns:
            The file itself, or a folder's readable files.

        Raises:
            DataError: The file's extension is unknown, or the folder has no readable file.
        """
        if not self.path.is_dir():
            if _extension(self.path) is None:
                raise DataError(
                    f"Text source {self.path}: the extension isn't one that can be read. "
                    f"Give a file that ends in {_listed(EXTENSIONS)}."
                )
            return [self.path]
        found = [path for path in self.path.rglob("*") if path.is_file() and self._is_text(path)]
        if not found:
            raise DataError(
                f"Text source {self.path}: the folder has no file that can be read. "
                f"Put files there that end in {_listed(EXTENSIONS)}."
            )
        return sorted(found, key=lambda path: path.relative_to(self.path).parts)

    def _is_text(self, path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(self.path).parts)
        return not hidden and path.name not in _DATASET_METADATA and _extension(path) is not None


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub.

    Attributes:
        name: ``owner/name``.
        config: The data set's configuration, or None for its default.
        split: The split to stream.
        field: The field that holds the text, or None to look for one of `TEXT_FIELDS`.
    """

    name: str
    config: str | None = None
    split: str = "train"
    field: str | None = None

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"hf:{self.name}{config}@{self.split}"


def parse_source(source: str) -> LocalSource | HubSource:
    """Read what a source string means; nothing is opened.

    A local path that exists is taken as it stands, even when it has a ``#`` in it.

    Args:
        source: See the top of this module.

    Returns:
        The source's parts.

    Raises:
        DataError: The string is empty or malformed, or there is no such file or folder.
    """
    if not source.strip():
        raise DataError("Text source: the name is empty. Give a file, a folder or hf:owner/name.")
    if source.startswith("hf:"):
        match = _HUB_PATTERN.fullmatch(source)
        if match is None:
            raise DataError(
                f"Text source {source!r}: this isn't a data set's name. "
                "Write hf:owner/name, and if need be :config, @split and #field after it, in this order."
            )
        parts = match.groupdict()
        return HubSource(parts["name"], parts["config"], parts["split"] or "train", parts["field"])
    path = Path(source).expanduser()
    if path.exists():
        return LocalSource(path)
    stem, mark, field = source.rpartition("#")
    if mark and stem and field and Path(stem).expanduser().exists():
        return LocalSource(Path(stem).expanduser(), field)
    raise DataError(
        f"Text source {source!r}: there is no such file or folder. Check the path, or name a data set as hf:owner/name."
    )


def read_documents(source: str, *, limit: int | None = None) -> Iterator[str]:
    """Read a source as documents, lazily and always in the same order.

    A ``.txt`` file is split where two or more blank lines stand in a row (a line of white space is blank), so that
    one blank line still separates paragraphs of the same document, and a file that strings many articles together, as
    WikiText does, gives many documents. In every other format one record is one document. Documents without any
    visible character are left out. A byte-order mark is removed; half a surrogate pair, which JSON can carry and no
    tokenizer takes, becomes U+FFFD.

    Args:
        source: A file, a folder or a data set of the hub; see the top of this module.
        limit: The most documents to read; None reads them all.

    Returns:
        The documents. What is wrong with the source's name is raised by the call; what is wrong with its content is
        raised when the iterator gets there.

    Raises:
        DataError: The source is missing, unreadable, damaged or empty, a record has no text, or the hub can't be
            reached.
        MissingExtraError: The format needs an optional package that isn't installed.
    """
    if limit is not None and limit < 1:
        raise DataError(f"Text source {source!r}: limit is {limit}, but at least one document has to be read.")
    parsed = parse_source(source)
    if isinstance(parsed, HubSource):
        documents = _read_hub(parsed, _load_dataset_function())
    else:
        documents = _read_files(parsed.files(), parsed.field)
    return _visible(documents, source, limit)


def _visible(documents: Iterator[str], source: str, limit: int | None) -> Iterator[str]:
    """Pass on at most `limit` documents that have a visible character; complain when there is none."""
    count = 0
    for document in documents:
        if not document or document.isspace():
            continue
        yield document
        count += 1
        if count == limit:
            return
    if count == 0:
        raise DataError(f"Text source {source!r}: there is no text in it. Give a source with at least one document.")


def _extension(path: Path) -> str | None:
    name = path.name.lower()
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), None)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


# ------------------------------------------------------------------------------------------------- local files


def _read_files(files: list[Path], field: str | None) -> Iterator[str]:
    for path in files:
        extension = _extension(path)
        if extension in _TEXT_EXTENSIONS:
            if field is not None:
                raise DataError(f"{path}: a text file has no field '#{field}'. Leave '#{field}' out.")
            yield from _split_text(path)
        elif extension in _JSON_EXTENSIONS:
            yield from _read_json_lines(path, field)
        else:
            yield from _read_arrow(path, field, is_parquet=extension == ".parquet")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file, unpacked when its name ends in ``.gz``."""
    try:
        with _opened(path) as handle:
            for number, raw in enumerate(handle, start=1):
                yield number, _decoded(raw, path, number)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file is damaged or isn't gzip ({error}). Pack or download it again.") from error
    except OSError as error:
        raise DataError(f"{path}: the file can't be read ({error.strerror}). Check its permissions.") from error


def _opened(path: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.name.lower().endswith(".gz") else path.open("rb")


def _decoded(raw: bytes, path: Path, number: int) -> str:
    try:
        line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        byte = raw[error.start]
        raise DataError(
            f"{path}, line {number}: byte 0x{byte:02x} at column {error.start + 1} isn't UTF-8. "
            "Convert the file to UTF-8 (for example with iconv)."
        ) from error
    if "\0" in line:
        raise DataError(
            f"{path}, line {number}: there is a zero byte, so this isn't UTF-8 text. "
            "Convert the file to UTF-8 (for example with iconv), or give a text file."
        )
    return line.rstrip("\r\n")


def _split_text(path: Path) -> Iterator[str]:
    """Yield the documents of a text file: what stands between runs of two or more blank lines."""
    kept: list[str] = []
    blank = 0
    for _, line in _lines(path):
        if not line or line.isspace():
            blank += 1
            continue
        if kept and blank >= 2:
            yield "\n".join(kept)
            kept = []
        elif kept and blank == 1:
            kept.append("")
        kept.append(line)
        blank = 0
    if kept:
        yield "\n".join(kept)


def _read_json_lines(path: Path, field: str | None) -> Iterator[str]:
    for number, line in _lines(path):
        if not line or line.isspace():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{where}: this isn't JSON ({error}). Every line has to be one whole record.") from error
        if not isinstance(record, dict):
            raise DataError(
                f"{where}: the line holds a {type(record).__name__}, not a record. "
                'Every line has to be an object like {"text": "..."}.'
            )
        field = _text_field(list(record), field, where)
        yield _text_of(record[field], field, where)


def _read_arrow(path: Path, field: str | None, *, is_parquet: bool) -> Iterator[str]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", f"Reading {path}") from error

    row = 0
    batches = _parquet_batches(path, field) if is_parquet else _arrow_batches(path, field)
    try:
        for name, values in batches:
            for value in values:
                row += 1
                yield _text_of(value, name, f"{path}, row {row}")
    except (pa.ArrowException, OSError) as error:
        kind = "Parquet" if is_parquet else "Arrow"
        raise DataError(f"{path}: the file is damaged or isn't {kind} ({error}). Write it again.") from error


def _parquet_batches(path: Path, field: str | None) -> Iterator[tuple[str, list[Any]]]:
    """Yield (name of the text's column, a batch of its values); no other column is read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as table:
        name = _text_field(table.schema_arrow.names, field, str(path))
        for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=[name]):
            yield name, batch.column(0).to_pylist()


def _arrow_batches(path: Path, field: str | None) -> Iterator[tuple[str, list[Any]]]:
    """Yield (name of the text's column, a batch of its values) of an Arrow stream or an Arrow file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        try:
            reader = pa.ipc.open_stream(mapped)
        except pa.ArrowInvalid:
            mapped.seek(0)
            table = pa.ipc.open_file(mapped)
            batches = (table.get_batch(index) for index in range(table.num_record_batches))
            schema = table.schema
        else:
            batches = iter(reader)
            schema = reader.schema
        name = _text_field(schema.names, field, str(path))
        for batch in batches:
            column = batch.column(schema.get_field_index(name))
            for start in range(0, len(column), _ROWS_PER_BATCH):
                yield name, column.slice(start, _ROWS_PER_BATCH).to_pylist()


def _text_field(names: Sequence[str], wanted: str | None, where: str) -> str:
    """Choose the field that holds the text: the wanted one, else the first of `TEXT_FIELDS` that is there."""
    candidates = TEXT_FIELDS if wanted is None else (wanted,)
    found = next((name for name in candidates if name in names), None)
    if found is None:
        there = ", ".join(sorted(names)) or "none"
        raise DataError(
            f"{where}: there is no field {_listed(candidates)}; the fields there are: {there}. "
            "Name the one that holds the text after a '#' at the end of the source."
        )
    return found


def _text_of(value: object, field: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(
            f"{where}: the field '{field}' holds a {type(value).__name__}, not text. "
            "Name the one that holds the text after a '#' at the end of the source."
        )
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


# -------------------------------------------------------------------------------------------------------- hub


def _load_dataset_function() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub", "Reading text from the Hugging Face hub") from error
    return datasets.load_dataset


def _read_hub(source: HubSource, load_dataset: Any) -> Iterator[str]:
    field = source.field
    rows = _hub_rows(source, load_dataset)
    for number, row in enumerate(rows, start=1):
        where = f"{source}, row {number}"
        field = _text_field(list(row), field, where)
        yield _text_of(row[field], field, where)


def _hub_rows(source: HubSource, load_dataset: Any) -> Iterator[dict[str, Any]]:
    """Stream the rows; whatever the library's several network stacks raise becomes one `DataError`."""
    try:
        yield from load_dataset(source.name, source.config, split=source.split, streaming=True)
    except Exception as error:
        raise _hub_error(source, error) from error


def _hub_error(source: HubSource, error: Exception) -> DataError:
    local = "Or pass local text instead: a .txt, .jsonl or .parquet file, or a folder of them."
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if _is_set(name)]
    reason = str(error).strip() or type(error).__name__
    if offline:
        return DataError(f"{source}: {offline[0]} is set, so the hub can't be asked ({reason}). Unset it. {local}")
    if isinstance(error, FileNotFoundError):
        return DataError(f"{source}: the hub has no such data set, or it asks for a log-in ({reason}). {local}")
    if isinstance(error, ValueError):
        return DataError(
            f"{source}: the data set can't be opened like this ({reason}). Check :config and @split. {local}"
        )
    return DataError(f"{source}: the hub can't be reached ({reason}). Check the network and try again. {local}")


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").strip().upper() in {"1", "ON", "YES", "TRUE"}
