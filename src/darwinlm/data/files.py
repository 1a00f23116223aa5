"""Read documents from the files of a source: text, JSON, CSV, Parquet and Arrow."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import struct
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from darwinlm.data.arrow import unpacked_bytes
from darwinlm.data.records import CHAT_COLUMNS, text_fields, text_of, texts_of
from darwinlm.runtime.errors import DataError, MissingExtraError
from darwinlm.runtime.limits import LINE_NODES, parse_json, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from darwinlm.data.shuffle import Shuffle

_TEXT_EXTENSIONS = (".txt", ".txt.gz", ".md")
_JSON_EXTENSIONS = (".jsonl", ".jsonl.gz", ".json")
_CSV_EXTENSIONS = (".csv", ".csv.gz", ".tsv")
_ARROW_EXTENSIONS = (".parquet", ".arrow")
EXTENSIONS = _TEXT_EXTENSIONS + _JSON_EXTENSIONS + _CSV_EXTENSIONS + _ARROW_EXTENSIONS
"""Supported file extensions."""

OPEN_FILES = 64
"""Maximum number of files of a folder that are read at once."""

DOCUMENT_CHARACTERS = 1 << 24
"""Maximum length of a document in characters; longer ones are cut and counted."""
LINE_BYTES = 1 << 24
"""Maximum length of a line in bytes; longer lines of text are cut, longer records are refused."""
CELL_CHARACTERS = 1 << 22
"""Maximum length of a cell of a CSV table."""
PIECE = 1 << 20
"""Characters of a JSON list that are read at once."""
BLANK_LINES = 10**6
"""Maximum number of consecutive blank lines."""
FREE_BYTES, RATIO = 1 << 26, 200
"""Maximum unpacked size of a compressed file: this number of bytes, or this multiple of its size (text: about 3)."""

_ROWS_PER_BATCH = 8
"""Rows that are unpacked at once; a dictionary may repeat a long text in all of them."""
_ARROW_FILE = b"ARROW1"
_BETWEEN = re.compile(r"[\s,]*")
_BOMB = f"{{}}: the file unpacks to more than {RATIO} times its size, as text never does. Give the text itself."


@dataclass
class Tally:
    """Counts of text that was left out; updated while documents are read."""

    cut: int = 0
    empty: int = 0

    def words(self) -> str | None:
        """A message about the counts; None if nothing was left out."""
        parts = []
        if self.cut:
            parts.append(f"{self.cut} documents were cut to {DOCUMENT_CHARACTERS:,} characters")
        if self.empty:
            parts.append(f"{self.empty} empty documents were skipped")
        return " and ".join(parts) or None


def extension_of(path: Path) -> str | None:
    """The extension of a file among `EXTENSIONS`."""
    name = path.name.lower()
    return next((extension for extension in EXTENSIONS if name.endswith(extension)), None)


def read_files(
    files: Sequence[Path],
    field: str | None,
    shuffle: Shuffle | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[str]:
    """Read the documents of files, one of each in turn, so that the first documents come from all files.

    At most `OPEN_FILES` are read at once; when one ends, the next one is opened. `field` holds the text of a record;
    None finds it by its name. Without `shuffle`, the order is kept. Only chats need the tokenizer. Raises DataError,
    MissingExtraError.
    """
    waiting = [_read_file(path, field, tokenizer) for path in files]
    if shuffle is not None:
        at_once = min(len(files), OPEN_FILES)
        names = [path.name for path in files]
        waiting = [shuffle.draw(waiting[number], names[number], files=at_once) for number in shuffle.order(names)]
    while waiting:
        ended = []
        for documents in waiting[:OPEN_FILES]:
            try:
                yield next(documents)
            except StopIteration:
                ended.append(documents)
        waiting = [documents for documents in waiting if documents not in ended]


def _read_file(path: Path, field: str | None, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    extension = extension_of(path)
    if extension in _TEXT_EXTENSIONS:
        if field is not None:
            raise DataError(f"{path}: a text file has no field '#{field}'. Leave '#{field}' out.")
        yield from _split_text(path)
    elif extension in _JSON_EXTENSIONS:
        yield from texts_of(json_records(path), field, tokenizer)
    elif extension in _CSV_EXTENSIONS:
        yield from texts_of(_csv_records(path), field, tokenizer)
    else:
        yield from _read_arrow(path, field, tokenizer, is_parquet=extension == ".parquet")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, unpacked if its name ends in ``.gz``; errors of reading become a `DataError`."""
    opened = gzip.open if path.name.lower().endswith(".gz") else Path.open
    try:
        with cast("IO[bytes]", opened(path, "rb")) as handle:
            yield handle
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file is damaged or isn't gzip ({error}). Pack or download it again.") from error
    except OSError as error:
        raise DataError(f"{path}: the file can't be read ({error.strerror}). Check its permissions.") from error


def _lines(path: Path, *, cut: bool) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file.

    A line longer than `LINE_BYTES` is cut or refused. A blank line is yielded as "".
    """
    with _opened(path) as handle:
        number, blank = 0, 0
        while raw := handle.readline(LINE_BYTES):
            number += 1
            whole = raw.endswith(b"\n") or len(raw) < LINE_BYTES
            if not whole and not cut:
                raise DataError(
                    f"{path}, line {number}: the line has more than {LINE_BYTES:,} bytes. Every line has to be one "
                    "record of text."
                )
            line = _decoded(raw, path, number, whole=whole)
            blank = 0 if line else blank + 1
            if blank > BLANK_LINES:
                raise DataError(f"{path}, line {number}: {BLANK_LINES:,} lines in a row are blank. Give a text file.")
            yield number, line
            while not whole:
                _check_unpacked(path, handle)
                rest = handle.readline(LINE_BYTES)
                whole = rest.endswith(b"\n") or not rest
            if number % 4096 == 0 or len(raw) > 1 << 20:
                _check_unpacked(path, handle)


def _check_unpacked(path: Path, handle: IO[bytes]) -> None:
    if path.name.lower().endswith(".gz") and handle.tell() > max(FREE_BYTES, RATIO * path.stat().st_size):
        raise DataError(_BOMB.format(path))


def _decoded(raw: bytes, path: Path, number: int, *, whole: bool) -> str:
    if number == 1:
        raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        line, _ = codecs.utf_8_decode(raw, "strict", whole)  # a line that is cut may end inside a character
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
    return "" if line.isspace() else line.rstrip("\r\n")


def _split_text(path: Path) -> Iterator[str]:
    """Yield the documents of a text file, which are separated by two or more blank lines."""
    kept: list[str] = []
    blank, held = 0, 0
    for _, line in _lines(path, cut=True):
        if not line:
            blank += 1
            continue
        if kept and blank >= 2:
            yield "\n".join(kept)
            kept, held = [], 0
        elif kept and blank == 1:
            kept.append("")
        if held <= DOCUMENT_CHARACTERS:  # one line beyond the limit shows that the document is too long
            kept.append(line)
            held += len(line) + 1
        blank = 0
    if kept:
        yield "\n".join(kept)


def json_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place for messages, record) of a file with one record per line, or with one list of records.

    Raises DataError.
    """
    with _opened(path) as handle:
        is_list = handle.read(PIECE).removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"[")
    for where, record in _json_list(path) if is_list else _json_lines(path):
        if not isinstance(record, dict):
            raise DataError(
                f"{where}: this is a {type(record).__name__}, not a record. "
                'Give one object like {"text": "..."} on every line, or one list of such objects.'
            )
        yield where, record


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path, cut=False):
        if line:
            where = f"{path}, line {number}"
            try:
                yield where, parse_json(line, LINE_NODES)
            except ValueError as error:
                raise DataError(
                    f"{where}: this isn't JSON ({shorten(error, 200)}). Every line has to be one whole record, or the "
                    "file one list of records."
                ) from error


def _json_list(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the items of a file that is one list, of which never more than one piece and one item are in memory."""
    decode = json.JSONDecoder().raw_decode
    with _opened(path) as handle:
        pieces = io.TextIOWrapper(handle, encoding="utf-8-sig")
        number, text, place = 0, "", 0
        try:
            while True:
                try:
                    place = cast("re.Match[str]", _BETWEEN.match(text, place)).end()
                    if text[place : place + 1] == "]":
                        return
                    record, place = decode(text, place)
                except (ValueError, RecursionError) as error:
                    text, place = text[place:], 0
                    piece = pieces.read(min(max(PIECE, len(text)), LINE_BYTES - len(text)))
                    if not piece:
                        raise DataError(
                            f"{path}, record {number + 1}: this isn't JSON ({shorten(error, 200)}). Correct the list, "
                            "or write one record per line."
                        ) from error
                    text += piece if number or text else piece.lstrip().removeprefix("[")
                    _check_unpacked(path, handle)
                else:
                    number += 1
                    yield f"{path}, record {number}", record
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: the file isn't UTF-8 ({error}). Convert it (for example with iconv).") from error


def _csv_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, record) of a table with commas, semicolons or tabs, whose first line names the columns."""
    lines = (f"{line}\n" for _, line in _lines(path, cut=False))
    first = next(lines, "")
    csv.field_size_limit(CELL_CHARACTERS)
    table = csv.DictReader(chain([first], lines), delimiter=max(",;\t", key=first.count), strict=True)
    try:
        for record in table:
            where = f"{path}, line {table.line_num}"
            if None in record:
                raise DataError(
                    f"{where}: there are more cells than columns in the first line. Put cells with "
                    f"{table.reader.dialect.delimiter!r} in double quotes."
                )
            yield where, record
    except csv.Error as error:
        raise DataError(
            f"{path}, line {table.line_num}: {error}. Correct the line, or write the table again."
        ) from error


def _read_arrow(
    path: Path, field: str | None, tokenizer: PreTrainedTokenizerBase | None, *, is_parquet: bool
) -> Iterator[str]:
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", f"Reading {path}") from error

    row = 0
    batches = _parquet_batches(path, field) if is_parquet else _arrow_batches(path, field)
    try:
        for names, batch in batches:
            for record in batch.to_pylist():
                row += 1
                yield text_of(record, names, f"{path}, row {row}", tokenizer)
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, struct.error) as error:
        kind = "Parquet" if is_parquet else "Arrow"
        reason = shorten(error, 200)
        raise DataError(f"{path}: the file is damaged or isn't {kind} ({reason}). Write it again.") from error


def _parquet_batches(path: Path, field: str | None) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (names of the text columns, a batch of rows); columns that hold no text aren't read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as table:
        names, columns = _columns(table.schema_arrow.names, field, path)
        for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=columns):
            yield names, batch


def _columns(names: Sequence[str], field: str | None, path: Path) -> tuple[tuple[str, ...], list[str]]:
    """The text fields of a table, and the columns to read."""
    chosen = text_fields(names, field, str(path))
    return chosen, [*chosen, *(name for name in CHAT_COLUMNS if name in names and name not in chosen)]


def _arrow_batches(path: Path, field: str | None) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield (names of the text columns, a batch of rows) of an Arrow stream or file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as mapped:
        start = 8 if mapped.read(len(_ARROW_FILE)) == _ARROW_FILE else 0  # a file is a stream between two marks
        mapped.seek(max(mapped.size() - len(_ARROW_FILE), 0))
        if start and mapped.read() != _ARROW_FILE:
            raise DataError(
                f"{path}: the file ends too early, after {mapped.size():,} bytes. Write or download it again."
            )
        mapped.seek(start)
        most = max(FREE_BYTES, RATIO * path.stat().st_size)
        if any(unpacked_bytes(message) > most for message in pa.ipc.MessageReader.open_stream(mapped)):
            raise DataError(_BOMB.format(path))
        mapped.seek(start)
        reader = pa.ipc.open_stream(mapped)
        names, columns = _columns(reader.schema.names, field, path)
        for batch in reader:
            rows = batch.select(columns)
            rows.validate(full=True)  # else an offset beyond the file ends the process
            for start in range(0, rows.num_rows, _ROWS_PER_BATCH):
                yield names, rows.slice(start, _ROWS_PER_BATCH)
