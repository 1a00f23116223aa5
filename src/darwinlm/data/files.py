"""Read documents from the files of a source: text, JSON lines, Parquet and Arrow."""

from __future__ import annotations

import codecs
import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from darwinlm.data.arrow import unpacked_bytes
from darwinlm.runtime.errors import DataError, MissingExtraError
from darwinlm.runtime.limits import LINE_NODES, parse_json, shorten

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from transformers import PreTrainedTokenizerBase

    from darwinlm.data.shuffle import Shuffle

CHAT_FIELD = "messages"
"""Field for the chat of a record without text."""
TEXT_FIELDS = ("text", "passage", "page", "content", CHAT_FIELD)
"""Fields that may hold a record's text, in order of preference; `messages` holds a chat."""

_TEXT_EXTENSIONS = (".txt", ".txt.gz")
_JSON_EXTENSIONS = (".jsonl", ".jsonl.gz", ".json")
_ARROW_EXTENSIONS = (".parquet", ".arrow")
EXTENSIONS = _TEXT_EXTENSIONS + _JSON_EXTENSIONS + _ARROW_EXTENSIONS
"""Supported file extensions."""

OPEN_FILES = 64
"""Maximum number of files of a folder that are read at once."""

DOCUMENT_CHARACTERS = 1 << 24
"""Maximum length of a document in characters; longer ones are cut and counted."""
LINE_BYTES = 1 << 24
"""Maximum length of a line in bytes; longer lines of text are cut, longer records are refused."""
BLANK_LINES = 10**6
"""Maximum number of consecutive blank lines."""
FREE_BYTES, RATIO = 1 << 26, 200
"""Maximum unpacked size of a compressed file: this number of bytes, or this multiple of its size (text: about 3)."""

_ROWS_PER_BATCH = 8
"""Rows that are unpacked at once; a dictionary may repeat a long text in all of them."""
_ARROW_FILE = b"ARROW1"
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


def listed(names: Sequence[str]) -> str:
    """Names as a list for messages: a, b or c."""
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def read_files(
    files: Sequence[Path],
    field: str | None,
    shuffle: Shuffle | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Iterator[str]:
    """Read the documents of files, one of each in turn, so that the first documents come from all files.

    At most `OPEN_FILES` are read at once; when one ends, the next one is opened. `field` holds the text of a record;
    None tries `TEXT_FIELDS`. Without `shuffle`, the order is kept. Only chats need the tokenizer. Raises DataError,
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
    else:
        yield from _read_arrow(path, field, tokenizer, is_parquet=extension == ".parquet")


def _lines(path: Path, *, cut: bool) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a UTF-8 file, unpacked if its name ends in ``.gz``.

    A line longer than `LINE_BYTES` is cut or refused. A blank line is yielded as "".
    """
    opened = gzip.open if path.name.lower().endswith(".gz") else Path.open
    try:
        with cast("IO[bytes]", opened(path, "rb")) as handle:
            number, blank, most = 0, 0, max(FREE_BYTES, RATIO * path.stat().st_size)
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
                    raise DataError(
                        f"{path}, line {number}: {BLANK_LINES:,} lines in a row are blank. Give a text file."
                    )
                yield number, line
                while not whole:
                    _check_unpacked(path, handle, most)
                    rest = handle.readline(LINE_BYTES)
                    whole = rest.endswith(b"\n") or not rest
                if number % 4096 == 0 or len(raw) > 1 << 20:
                    _check_unpacked(path, handle, most)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: the file is damaged or isn't gzip ({error}). Pack or download it again.") from error
    except OSError as error:
        raise DataError(f"{path}: the file can't be read ({error.strerror}). Check its permissions.") from error


def _check_unpacked(path: Path, handle: IO[bytes], most: int) -> None:
    if path.name.lower().endswith(".gz") and handle.tell() > most:
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
    """Yield (place for messages, record) of every line of a file that isn't blank. Raises DataError."""
    for number, line in _lines(path, cut=False):
        if not line:
            continue
        where = f"{path}, line {number}"
        try:
            record = parse_json(line, LINE_NODES)
        except ValueError as error:
            raise DataError(
                f"{where}: this isn't JSON ({shorten(error, 200)}). Every line has to be one whole record."
            ) from error
        if not isinstance(record, dict):
            raise DataError(
                f"{where}: the line holds a {type(record).__name__}, not a record. "
                'Every line has to be an object like {"text": "..."}.'
            )
        yield where, record


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
        for names, columns in batches:
            for values in zip(*columns, strict=True):
                row += 1
                yield text_of(values, names, f"{path}, row {row}", tokenizer)
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError, struct.error) as error:
        kind = "Parquet" if is_parquet else "Arrow"
        reason = shorten(error, 200)
        raise DataError(f"{path}: the file is damaged or isn't {kind} ({reason}). Write it again.") from error


def _parquet_batches(path: Path, field: str | None) -> Iterator[tuple[tuple[str, ...], list[list[Any]]]]:
    """Yield (names of the text columns, a batch of the values of each); other columns aren't read."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as table:
        names = text_fields(table.schema_arrow.names, field, str(path))
        for batch in table.iter_batches(batch_size=_ROWS_PER_BATCH, columns=list(names)):
            yield names, [batch.column(name).to_pylist() for name in names]


def _arrow_batches(path: Path, field: str | None) -> Iterator[tuple[tuple[str, ...], list[list[Any]]]]:
    """Yield (names of the text columns, a batch of the values of each) of an Arrow stream or file."""
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
        schema = reader.schema
        names = text_fields(schema.names, field, str(path))
        places = [schema.get_field_index(name) for name in names]
        for batch in reader:
            columns = [batch.column(place) for place in places]
            for column in columns:
                column.validate(full=True)  # else an offset beyond the file ends the process
            for start in range(0, batch.num_rows, _ROWS_PER_BATCH):
                yield names, [column.slice(start, _ROWS_PER_BATCH).to_pylist() for column in columns]


def text_fields(names: Sequence[str], wanted: str | None, where: str) -> tuple[str, ...]:
    """Choose the text fields: the wanted one, or two joined by a plus, a question and its answer.

    None takes the first existing one of `TEXT_FIELDS`. `where` names the record or file in errors. Raises DataError.
    """
    if wanted is not None and wanted not in names and wanted.count("+") == 1:
        question, answer = wanted.split("+")
        return text_fields(names, question, where) + text_fields(names, answer, where)
    candidates = TEXT_FIELDS if wanted is None else (wanted,)
    chosen = next((name for name in candidates if name in names), None)
    if chosen is None:
        there = shorten(", ".join(sorted(map(str, names))), 200) or "none"
        raise DataError(
            f"{where}: there is no field {listed(candidates)}; the existing fields are: {there}. "
            "Name the one that holds the text after a '#' at the end of the source."
        )
    return (chosen,)


def texts_of(
    records: Iterable[tuple[str, dict[str, Any]]], field: str | None, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[str]:
    """Texts of records, each with its place for messages; all have the text fields of the first. Raises DataError."""
    for where, record in records:
        names = text_fields(list(record), field, where)
        field = "+".join(names)
        yield text_of([record[name] for name in names], names, where, tokenizer)


def text_of(
    values: Sequence[object], fields: Sequence[str], where: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Text of a record: a string as it is; messages, or a question and its answer, rendered as a chat.

    Only chats need the tokenizer. `where` names the record in errors. Raises DataError.
    """
    if len(values) == 2:
        parts = [text_of([value], [field], where) for value, field in zip(values, fields, strict=True)]
        if not all(map(str.strip, parts)):
            return ""
        return chat_text(
            [{"role": role, "content": part} for role, part in zip(("user", "assistant"), parts, strict=True)],
            tokenizer,
            where,
        )
    (value,), (field,) = values, fields
    if value is None:
        return ""
    if isinstance(value, list) or field == CHAT_FIELD:
        value = chat_text(value, tokenizer, where)
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


def chat_text(messages: object, tokenizer: PreTrainedTokenizerBase | None, where: str) -> str:
    """Render a chat with the model's template, without the bos token, which packing adds.

    `messages` should be a list of records with a `role` and a `content`, both text. Raises DataError.
    """
    from jinja2 import TemplateError

    if not isinstance(messages, list) or not all(
        isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
        for each in messages
    ):
        raise DataError(
            f"{where}: the field with the chat holds no list of messages like "
            '[{"role": "user", "content": "..."}]. Name the field that holds the text or the chat after a \'#\'.'
        )
    if tokenizer is None or not tokenizer.chat_template:
        raise DataError(
            f"{where}: this is a chat, but the model's tokenizer has no chat template to render it. Give plain "
            "text, or a model with a chat template."
        )
    if not messages:
        return ""
    template: Any = tokenizer.apply_chat_template
    try:
        text = str(template(messages, tokenize=False))
    except TemplateError as error:
        raise DataError(
            f"{where}: the model's chat template refuses this chat ({error}). Correct or remove it."
        ) from error
    bos = tokenizer.bos_token
    return text.removeprefix(str(bos)) if bos else text
