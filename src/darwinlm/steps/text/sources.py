"""Text sources: a string names a source, and a function reads its documents.

A source is one of

- a text file, ``.txt``, ``.txt.gz``, ``.md`` or ``.rst``, with documents between two or more blank lines;
- an HTML page, of which the visible text is a document, or a file of program code, which is one document;
- a file of records: ``.jsonl``, ``.jsonl.gz`` or ``.json`` (one record per line, or one list of records), ``.csv``,
  ``.csv.gz``, ``.tsv``, ``.parquet`` or ``.arrow`` (stream or file format). The text is the field named after a ``#``,
  as in ``reviews.jsonl#body``, else ``text``, ``passage``, ``page`` or ``content``. Chats are rendered by the model's
  chat template: ``messages`` (OpenAI), ``conversations`` (ShareGPT), ``instruction``, ``input`` and ``output``
  (Alpaca), ``prompt`` and ``completion`` (TRL), ``question`` and ``answer``, or two fields that are named,
  ``faq.csv#ask+reply``. ``system`` and ``tools`` in the same record become part of the chat. Names may differ in case;
- a folder of such files, read in sorted order, subfolders included, without ``README.md``. It is refused if most of its
  files can't be read;
- a data set of the Hugging Face hub, ``hf:owner/name[:config][@split][#field]``, streamed;
- several of these, separated by commas: equal parts of each.

Everything is read lazily. A consumer that stops early only pays for the documents that it took and, with shuffling, for
those in the buffer.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.runtime.errors import DataError, first_line
from darwinlm.runtime.limits import shorten
from darwinlm.steps.text.file_kinds import EXTENSIONS, extension_of, is_code
from darwinlm.steps.text.folder import FolderFiles, list_folder
from darwinlm.steps.text.local_files import read_files, shuffled
from darwinlm.steps.text.records import Record, listed, text_fields, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase

DOCUMENT_CHARACTERS = 1 << 20
"""Maximum length of a document in characters; longer ones are divided."""
_USED_CHARACTERS = 2048
"""Characters of a document that splits use, about 512 tokens."""
_HUB_PATTERN = re.compile(
    r"hf:(?P<name>[\w.-]+(?:/[\w.-]+)?)(?::(?P<config>[^:@#]+))?(?:@(?P<split>[^@#]+))?(?:#(?P<field>.+))?"
)

_ADDRESS = re.compile(
    r"(?:https?://)?(?:www\.)?(?P<hub>huggingface\.co|hf\.co)/(?:datasets/(?P<name>[\w.-]+/[\w.-]+))?|https?://"
)
"""An address on the web, of a data set of the hub, of something else there, or elsewhere."""


@dataclass(frozen=True)
class LocalSource:
    """A file or a folder on this machine."""

    path: Path
    field: str | None = None

    def files(self) -> list[Path]:
        """List the files to read, sorted by path.

        Raises DataError if the file's extension isn't supported, it is a pipe or a device, or the folder has no
        readable file, or mostly others.
        """
        if not self.path.is_dir():
            if not self.path.is_file():
                raise DataError(
                    f"Text source {self.path}: this is a pipe or a device, which can't be read twice. Write the text "
                    "into a file."
                )
            if extension_of(self.path) is None and not is_code(self.path):
                raise DataError(
                    f"Text source {self.path}: the extension isn't supported. "
                    f"Give program code, or a file that ends in {listed(EXTENSIONS)}."
                )
            return [self.path]
        return list(self._in_folder().read)

    def told(self) -> str | None:
        """What a user should know of a folder's files, such as how many are skipped. Raises DataError, as `files`."""
        told = self._in_folder().told() if self.path.is_dir() else None
        return told and f"text: {self.path} {told}"

    def _in_folder(self) -> FolderFiles:
        return list_folder(self.path, with_prose=self.field is None)


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face hub."""

    name: str
    config: str | None = None
    split: str = "train"
    field: str | None = None

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return f"hf:{self.name}{config}@{self.split}"


def parse_source(source: str) -> LocalSource | HubSource:
    """Parse a source string; an existing path is used as it is, even with a ``#``. Raises DataError."""
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
    if path := _reached(source):
        return LocalSource(path)
    stem, _, field = source.rpartition("#")
    if field and stem and (path := _reached(stem)):
        return LocalSource(path, field)
    if address := _ADDRESS.match(source):
        raise DataError(f"Text source '{shorten(source)}': this is an address on the web. {_instead(source, address)}")
    raise DataError(
        f"Text source '{shorten(source)}': there is no such file or folder, or it can't be reached. Check the path, or "
        "name a data set as hf:owner/name."
    )


def _instead(source: str, address: re.Match[str]) -> str:
    """What to give instead of an address on the web."""
    if address["name"]:
        return f"Name the data set of the hub as hf:{address['name']}."
    if address["hub"]:
        return "Name a data set of the hub as hf:owner/name."
    return f"Download the file first (for example with curl -LO {shlex.quote(source)}), and give its path."


def parts_of(source: str) -> list[str]:
    """The sources that a string names, separated by commas; an existing path with a comma is one."""
    words, parts = source.split(","), list[str]()
    while words:
        paths = (",".join(words[:count]) for count in range(len(words), 1, -1))
        parts.append(next(filter(_reached, paths), words[0]))
        words = words[parts[-1].count(",") + 1 :]
    return parts


def _reached(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long a name, of an unknown user, or with a zero byte
        return None


def read_documents(
    source: str,
    *,
    seed: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    say: Callable[[str], object] | None = None,
) -> Iterator[str]:
    """Read a source as documents, lazily and always in the same order.

    A text file is split at two or more consecutive blank lines (a line of white space is blank). So a single blank
    line separates paragraphs, and a file with many articles, such as WikiText, gives many documents. A book without
    such places is divided into passages. In all other formats a record is a document. A byte-order mark is removed. An
    unpaired surrogate, which JSON allows and tokenizers refuse, becomes U+FFFD.

    Args:
        source: See the module's description.
        seed: Random order of the documents within each file, from a bounded buffer; None keeps the order.
        tokenizer: Renders chats; other text doesn't need it.
        say: Hears which files of a folder are skipped, and whose encoding had to be guessed.

    Returns:
        Iterator over the documents, files of a folder in turn, and sources separated by commas by equal amounts of
        text. Documents above `DOCUMENT_CHARACTERS` are divided, empty ones are skipped.

    Raises:
        DataError: From the call, if there is no such source; from the iterator, if it is unreadable, damaged or empty,
            a record has no text, a chat can't be rendered, or the hub can't be reached.
    """
    if len(parts := parts_of(source)) > 1:
        return _in_balance([read_documents(part, seed=seed, tokenizer=tokenizer, say=say) for part in parts])
    parsed = parse_source(source)
    if isinstance(parsed, HubSource):
        documents = _read_hub(parsed, seed, tokenizer)
    else:
        if say is not None and (told := parsed.told()):
            say(told)
        documents = read_files(parsed.files(), parsed.field, seed, tokenizer, say)
    return _visible(documents, source)


def _in_balance(sources: list[Iterator[str]]) -> Iterator[str]:
    """Documents of several sources, the next one from the source with the least text so far.

    A long document counts only up to the length that splits use.
    """
    read = dict.fromkeys(range(len(sources)), 0)
    while read:
        least = min(read, key=read.__getitem__)
        document = next(sources[least], None)
        if document is None:
            del read[least]
        else:
            read[least] += min(len(document), _USED_CHARACTERS)
            yield document


def read_domains(
    source: str, characters: int, *, seed: int | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> Iterator[tuple[str, str]]:
    """Read documents with the names of their domains: each file is one, and so is a data set of the hub.

    Reading ends after `characters`, of which files get equal parts. Otherwise as `read_documents`.
    """
    domains: list[tuple[str, str]] = []
    for part in parts_of(source):
        parsed = parse_source(part)
        if isinstance(parsed, HubSource):
            domains.append((parsed.name, part))
            continue
        field = f"#{parsed.field}" if parsed.field else ""
        names = {path: path.name.removesuffix(extension_of(path) or "") for path in parsed.files()}
        domains += [(name, f"{path}{field}") for path, name in names.items()]
    for name, part in domains:
        remaining = characters // len(domains)
        for document in read_documents(part, seed=seed, tokenizer=tokenizer):
            yield name, document
            remaining -= len(document)
            if remaining <= 0:
                break


def _visible(documents: Iterator[str], source: str) -> Iterator[str]:
    """Yield documents with a visible character, long ones in pieces. Raises DataError if no document has one."""
    from darwinlm.steps.text.packing import pieces  # with NumPy, which reading a recipe doesn't need

    empty = True
    for document in documents:
        if document and not document.isspace():
            yield from pieces(document, DOCUMENT_CHARACTERS)
            empty = False
    if empty:
        raise DataError(f"Text source {source!r}: there is no text in it. Give a source with at least one document.")


def _read_hub(source: HubSource, seed: int | None, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    field = source.field
    for number, row in enumerate(hub_rows(source, seed), start=1):
        location = f"{source}, row {number}"
        fields = text_fields(list(row), field, location)
        field = "+".join(fields)
        yield text_of(row, fields, location, tokenizer)


def hub_rows(source: HubSource, seed: int | None) -> Iterator[Record]:
    """Stream the rows; all network errors of the library become a `DataError`."""
    try:
        import datasets

        rows = datasets.load_dataset(source.name, source.config, split=source.split, streaming=True)
        yield from rows if seed is None else shuffled(rows, f"{seed}")
    except Exception as error:
        raise _hub_error(source, error) from error


def _hub_error(source: HubSource, error: Exception) -> DataError:
    offline = [name for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE") if os.environ.get(name, "").strip()]
    return DataError(
        f"{source}: the data set can't be read ({first_line(error) or type(error).__name__}). Check its name, :config, "
        f"@split, your log-in and the network{f', and unset {offline[0]}' if offline else ''}, or give local text: a "
        ".txt, .jsonl, .csv or .parquet file, or a folder of them."
    )
