"""Read the documents of local files, in a seeded random order.

The library `datasets` reads Parquet and Arrow, and shuffles. JSON and CSV are read with Python's own modules, because
the library gives the arguments of all tool calls the same fields, refuses records that differ after 10 MB, and shifts
the columns of a CSV table without a word if rows have more cells than the first line.
"""

from __future__ import annotations

import csv
import glob
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, TypedDict, cast

from darwinlm.runtime.errors import DataError
from darwinlm.runtime.limits import parse_json, shorten
from darwinlm.steps.text.encoding import UTF8, encoding_of, opened
from darwinlm.steps.text.file_kinds import JSON, PAGES, TABLES, extension_of, is_code
from darwinlm.steps.text.html_text import visible_text
from darwinlm.steps.text.records import CHAT_COLUMNS, Record, same_name, text_fields, text_of

if TYPE_CHECKING:
    from datasets import DatasetBuilder, IterableDataset
    from transformers import PreTrainedTokenizerBase

OPEN_FILES = 64
"""Maximum number of files of a folder that are read at once."""
BUFFER_DOCUMENTS = 10_000
"""Maximum number of documents in the buffer of the shuffle, all files together."""
BUFFER_CHARACTERS = 1 << 28
"""Maximum number of characters in the buffer, estimated from the first records: single ones may be whole books."""
PASSAGE_CHARACTERS = 1 << 14
"""Length from which a text file is divided at single blank lines too, and from twice as much anywhere."""
CELL_CHARACTERS = 1 << 22
"""Maximum length of a cell of a CSV table."""
PAGE_CHARACTERS = 1 << 24
"""Maximum length of an HTML page, of which the rest isn't read."""

_BINARY = (".parquet", ".arrow")
_SAMPLE = 32
_ROWS_PER_BATCH = 64


Columns = Callable[[Sequence[str], "str | None", str], "list[str]"]
"""Chooses the columns of a table from their names, the named field, and the place for messages."""


class Row(TypedDict):
    """A record of a file. The shuffle depends on the printed length of rows, and so on these names and types.

    Attributes:
        where: Its file and place there, for messages.
        fields: Names of the fields with its text.
        record: The fields that may belong to its text.
    """

    where: str
    fields: tuple[str, ...]
    record: Record


Rows = Callable[[str, "str | None", str], Iterator[Row]]
"""Gives the records of a file, from its path, the named field and its encoding."""


def read_files(
    files: Sequence[Path],
    field: str | None,
    seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    say: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """Read the documents of files, one from each file in turn, so that the first documents come from all files.

    At most `OPEN_FILES` are read at once; when one ends, the next one is opened. `field` holds the text of a record;
    None finds it by its name. Without `seed`, the order is kept. Only chats need the tokenizer. `say` hears of files
    whose encoding had to be guessed. Raises DataError.
    """
    for row in read_rows(files, field, seed, say=say):
        yield text_of(row["record"], row["fields"], row["where"], tokenizer)


def read_rows(
    files: Sequence[Path],
    field: str | None,
    seed: int | None = None,
    rows: Rows | None = None,
    *,
    say: Callable[[str], object] | None = None,
) -> Iterator[Row]:
    """The records of files in the order of `read_files`; `rows` gives those of one, with the fields that are needed."""
    order = list(files)
    if seed is not None:
        random.Random(seed).shuffle(order)  # noqa: S311 - no secret depends on it
    at_once = min(len(files), OPEN_FILES)
    waiting = [_in_order(path, field, seed, rows or _rows, at_once, say) for path in order]
    while waiting:
        ended = []
        for of_file in waiting[:OPEN_FILES]:
            try:
                yield next(of_file)
            except StopIteration:
                ended.append(of_file)
        waiting = [of_file for of_file in waiting if of_file not in ended]


def _in_order(
    path: Path,
    field: str | None,
    seed: int | None,
    rows: Rows,
    files: int,
    say: Callable[[str], object] | None,
) -> Iterator[Row]:
    encoding = UTF8 if path.suffix.lower() in _BINARY else encoding_of(path)
    if say is not None and encoding not in (UTF8, "utf-16"):
        say(f"text: {path} isn't UTF-8 and is read as {encoding}; if letters come out wrong, convert it to UTF-8")
    if seed is None:
        yield from rows(str(path), field, encoding)
        return
    from datasets.packaged_modules.generator.generator import Generator

    arguments = {"path": str(path), "field": field, "encoding": encoding}
    stream = _stream(Generator, generator=rows, gen_kwargs=arguments)
    yield from cast("Iterable[Row]", shuffled(stream, f"{seed} {path.name}", files))


def shuffled(rows: IterableDataset, seed: str, files: int = 1) -> IterableDataset:
    """Rows in a random order, drawn from a buffer that `files` share; a file that fits into it is shuffled as a whole.

    The first rows tell how long they are.
    """
    lengths = [len(str(row)) for row in rows.take(_SAMPLE)]
    fitting = BUFFER_CHARACTERS * len(lengths) // max(sum(lengths), 1)
    number = random.Random(seed).getrandbits(32)  # noqa: S311 - no secret depends on it
    return rows.shuffle(seed=number, buffer_size=max(1, min(BUFFER_DOCUMENTS, fitting) // files))


def _stream(builder: type[DatasetBuilder], **options: object) -> IterableDataset:
    """Rows by a builder of `datasets`, read as they are needed and never cached."""
    from datasets.utils.logging import CRITICAL, set_verbosity

    set_verbosity(CRITICAL)  # it logs an error before it raises it
    with TemporaryDirectory() as locks:
        rows: IterableDataset = builder(cache_dir=locks, **options).as_streaming_dataset("train")
        return rows


def _rows(path: str, field: str | None, encoding: str) -> Iterator[Row]:
    """The records of a file, without what isn't text. All have the text fields of the first."""
    for location, record in file_records(Path(path), field, encoding):
        fields = text_fields(list(record), field, location)
        field = "+".join(fields)
        columns = (*fields, *(same_name(name, record) for name in CHAT_COLUMNS))
        text = {name: record[name] for name in columns if name in record}
        yield {"where": location, "fields": fields, "record": text}


def text_columns(names: Sequence[str], field: str | None, location: str) -> list[str]:
    """The columns of a table that texts need. Raises DataError."""
    fields = text_fields(names, field, location)
    wanted = (*fields, *(same_name(name, names) for name in CHAT_COLUMNS))
    return [name for name in names if name in wanted]


def file_records(
    path: Path, field: str | None, encoding: str, columns: Columns = text_columns
) -> Iterator[tuple[str, Record]]:
    """Yield (location, record) of a file of any supported kind; `columns` are those that are read of a table."""
    extension = extension_of(path)
    if extension in JSON:
        return json_records(path, encoding)
    if extension in TABLES:
        return _csv_records(path, encoding)
    if path.suffix.lower() in _BINARY:
        return _table_records(path, field, columns)
    if field is not None:
        raise DataError(f"{path}: a text file has no field '#{field}'. Leave '#{field}' out.")
    return _page(path, encoding) if extension in PAGES else _passages(path, encoding)


def _page(path: Path, encoding: str) -> Iterator[tuple[str, Record]]:
    """The visible text of an HTML page, as a record."""
    with opened(path, encoding) as file:
        yield str(path), {"text": visible_text(_without_zeros(file.read(PAGE_CHARACTERS), path))}


def _without_zeros(text: str, path: Path) -> str:
    if "\0" in text:
        raise DataError(f"{path}: there is a zero byte, so this isn't text. Give a text file.")
    return text


def _passages(path: Path, encoding: str) -> Iterator[tuple[str, Record]]:
    """The documents of a text file, which two or more blank lines separate, as records. Program code is one document.

    Where they are rare, as in a book, `PASSAGE_CHARACTERS` or a little more are a document, up to the next blank line.
    """
    lines: list[str] = []
    length, blank = 0, 0
    separates = not is_code(path)
    with opened(path, encoding) as file:
        while line := file.readline(PASSAGE_CHARACTERS):
            _without_zeros(line, path)
            if line.isspace():
                blank += 1
                continue
            apart = separates and blank >= 2
            ends = apart or (blank and length >= PASSAGE_CHARACTERS) or length >= 2 * PASSAGE_CHARACTERS
            if lines and ends:
                yield str(path), {"text": "".join(lines).rstrip("\n")}
                lines, length = [], 0
            if lines and blank:
                lines.append("\n" * (1 if separates else blank))
            lines.append(line)
            length += len(line)
            blank = 0
    if lines:
        yield str(path), {"text": "".join(lines).rstrip("\n")}


def json_records(path: Path, encoding: str | None = None) -> Iterator[tuple[str, Record]]:
    """Yield (location, record) of a file with one record per line, or with one list of records, read whole.

    Without an encoding, it is found out. Raises DataError.
    """
    with opened(path, encoding) as file:
        for number, line in enumerate(file, start=1):
            location = f"{path}, line {number}"
            if line.lstrip().startswith("["):
                records = cast("list[object]", _parsed(line + file.read(), str(path)))  # it begins with a bracket
                for index, record in enumerate(records, start=1):
                    yield _record(record, f"{path}, record {index}")
                return
            if not line.isspace():
                yield _record(_parsed(line, location), location)


def _parsed(text: str, location: str) -> object:
    try:
        return parse_json(text)
    except ValueError as error:
        raise DataError(
            f"{location}: this isn't JSON ({shorten(error, 200)}). Every line has to be one whole record, or the file "
            "one list of records."
        ) from error


def _record(record: object, location: str) -> tuple[str, Record]:
    if not isinstance(record, dict):
        raise DataError(
            f"{location}: this is a {type(record).__name__}, not a record. "
            'Give one object like {"text": "..."} on every line, or one list of such objects.'
        )
    return location, record


def _csv_records(path: Path, encoding: str) -> Iterator[tuple[str, Record]]:
    """Yield (location, record) of a table with commas, semicolons or tabs, whose first line names the columns."""
    csv.field_size_limit(CELL_CHARACTERS)
    with opened(path, encoding) as file:
        first = file.readline()
        table = csv.DictReader(chain([first], file), delimiter=max(",;\t", key=first.count), strict=True)
        reason: object = "there are more cells than columns in the first line"
        try:
            for record in table:
                if None in record:
                    break
                yield f"{path}, line {table.line_num}", record
            else:
                return
        except csv.Error as error:
            reason = error
        raise DataError(f"{path}, line {table.line_num}: {reason}. Correct the table, with such cells in quotes.")


def _table_records(path: Path, field: str | None, columns: Columns) -> Iterator[tuple[str, Record]]:
    """Yield (location, record) of a Parquet or Arrow file; columns that hold no text aren't read from Parquet."""
    try:
        for number, record in enumerate(_table(path, field, columns), start=1):
            yield f"{path}, row {number}", record
    except DataError:
        raise
    except Exception as error:  # the libraries have no common class for what a damaged file leads to
        kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
        reason = shorten(error, 200)
        raise DataError(f"{path}: the file is damaged or isn't {kind} ({reason}). Write it again.") from error


def _table(path: Path, field: str | None, columns: Columns) -> IterableDataset:
    files = {"train": [glob.escape(str(path))]}
    if path.suffix.lower() == ".arrow":
        from datasets.packaged_modules.arrow.arrow import Arrow

        return _stream(Arrow, data_files=files)
    import pyarrow.parquet as pq
    from datasets.packaged_modules.parquet.parquet import Parquet

    wanted = columns(pq.read_schema(path).names, field, str(path))
    return _stream(Parquet, data_files=files, columns=wanted, batch_size=_ROWS_PER_BATCH)
