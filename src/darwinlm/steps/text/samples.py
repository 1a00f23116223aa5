"""Texts and pairs for models that read: records of a source as samples, with labels if there are any.

A record is a text, or a pair of a query and a text. The fields of pairs go by the names that data sets of rerankers and
embedders use: `query`, `question`, `anchor` or `sentence1`; with `document`, `passage`, `positive`, `sentence2` or
`text`. Fields `negative`, `negative_1` and so on hold texts that don't answer. A label is in `label`, `score` or
`relevance`. Labels are only for the measures: what the dense model gives is enough to prune.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from darwinlm.runtime.errors import DataError
from darwinlm.runtime.limits import shorten
from darwinlm.steps.text.local_files import Row, file_records, read_rows
from darwinlm.steps.text.records import TEXT_FIELDS, Record, text_of
from darwinlm.steps.text.sources import HubSource, hub_rows, parse_source, parts_of

QUERIES = ("query", "question", "anchor", "sentence1", "sentence_A", "premise")
"""Fields for the first text of a pair, in order of preference."""
ANSWERS = (
    "document", "passage", "positive", "sentence2", "sentence_B", "hypothesis", "answer", "text", "content"
)  # fmt: skip
"""Fields for its second text."""
LABELS = ("label", "labels", "score", "relevance")
"""Fields for the label of a text or a pair."""
NEGATIVE = re.compile(r"negatives?(_\d+)?$")
"""Fields for texts that don't answer the query."""


@dataclass(frozen=True)
class Sample:
    """A text, or a query and a text, with its label if it has one, and where they were read."""

    query: str | None
    text: str
    label: float | None = None
    where: str = field(default="", compare=False)

    @property
    def key(self) -> str:
        """What keeps samples together when they are divided: the query, or else the text."""
        return self.text if self.query is None else self.query


def fields_of(names: Sequence[str], field: str | None, where: str) -> tuple[str | None, str]:
    """The fields of a record with its query and its text; None without a query.

    `field` names the text, or the query and the text joined by a plus. Raises DataError.
    """
    if field is not None:
        query, _, text = field.rpartition("+")
        for name in filter(None, (query, text)):
            if name not in names:
                raise DataError(f"{where}: there is no field '{name}'; the existing fields are: {_listed(names)}.")
        return query or None, text
    query_field = next((name for name in QUERIES if name in names), None)
    text_field = next((name for name in ANSWERS if name in names), None)
    if query_field is None:
        text_field = next((name for name in TEXT_FIELDS if name in names), None)
        if text_field is None and any(name in names for name in ANSWERS):
            raise DataError(
                f"{where}: this is a pair without a query: name it {', '.join(QUERIES[:3])} or {QUERIES[3]}, or name "
                "both fields after a '#' at the end of the source, as in '#question+passage'"
            )
    if text_field is None:
        raise DataError(
            f"{where}: there is neither a text nor a pair; the existing fields are: {_listed(names)}. Name the field "
            "with the text after a '#' at the end of the source, or a query and its text as '#query+document'."
        )
    return query_field, text_field


def columns_of(names: Sequence[str], field: str | None, where: str) -> list[str]:
    """The columns of a table that samples need."""
    wanted = {*fields_of(names, field, where), *LABELS}
    return [name for name in names if name in wanted or NEGATIVE.match(name)]


def read_samples(source: str, *, seed: int | None = None) -> Iterator[Sample]:
    """The samples of a source, in a seeded order; sources of several parts take turns. Raises DataError."""
    parts = [_of_part(part, seed) for part in parts_of(source)]
    empty = True
    while parts:
        for part in [*parts]:
            record = next(part, None)
            if record is None:
                parts.remove(part)
                continue
            for sample in record:
                empty = False
                yield sample
    if empty:
        raise DataError(f"Text source {source!r}: there is no text in it. Give a source with at least one text.")


def _of_part(part: str, seed: int | None) -> Iterator[list[Sample]]:
    """The samples of each record of one source."""
    parsed = parse_source(part)
    if isinstance(parsed, HubSource):
        for number, record in enumerate(hub_rows(parsed, seed), start=1):
            yield _samples(record, parsed.field, f"{parsed}, row {number}")
        return
    for row in read_rows(parsed.files(), parsed.field, seed, sample_rows):
        yield _samples(row["record"], "+".join(row["fields"]), row["where"])


def sample_rows(path: str, field: str | None, encoding: str) -> Iterator[Row]:
    """Records of a file with the fields that samples need."""
    # A text file has no fields, so a name for one is refused there.
    for where, record in file_records(Path(path), field, encoding, columns_of):
        query, text = fields_of(list(record), field, where)
        kept = {name: record[name] for name in columns_of(list(record), field, where)}
        yield {"where": where, "fields": (text,) if query is None else (query, text), "record": kept}


def _samples(record: Record, field: str | None, where: str) -> list[Sample]:
    query_field, text_field = fields_of(list(record), field, where)
    query = None
    if query_field is not None:
        query = text_of(record, (query_field,), where).strip()
        if not query:
            raise DataError(f"{where}: the field '{query_field}' of this pair is empty. Correct or remove it.")
    label = _label(record, where)
    texts = [(text_of(record, (text_field,), where), label)]
    negatives = [name for name in record if NEGATIVE.match(name) and record[name] is not None]
    if negatives and query is not None:
        texts = [(texts[0][0], 1.0 if label is None else label)]
        for name in negatives:
            given = record[name]
            values = given if isinstance(given, list) else [given]
            texts += [(text_of({name: value}, (name,), where), 0.0) for value in values]
    return [Sample(query, text, value, where) for text, value in texts if text and not text.isspace()]


def _label(record: Record, where: str) -> float | None:
    name = next((name for name in LABELS if record.get(name) is not None and record[name] != ""), None)
    if name is None:
        return None
    value = record[name]
    try:
        label = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        label = math.nan
    if math.isfinite(label):
        return label
    raise DataError(
        f"{where}: the label in '{name}' is {shorten(value)}, which isn't a number. Give the number of the class, or a "
        "score; leave the field out where there is none."
    )


def _listed(names: Sequence[str]) -> str:
    return shorten(", ".join(sorted(map(str, names))), 200) or "none"
