"""Limits on the size and depth of files.

All readers of JSON and YAML use this module. So a hostile or damaged file leads to a message and doesn't exhaust the
machine's memory.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MIB = 1 << 20
JSON_BYTES = 32 * MIB
"""Largest JSON file of a configuration, an index or a summary; the index of 100,000 tensors takes 15 MB."""
TOKENIZER_BYTES = 64 * MIB
"""Largest tokenizer.json; those of vocabularies of 256,000 take 35 MB."""
TEXT_BYTES = 4 * MIB
"""Largest model card and licence."""
YAML_BYTES = MIB // 4
"""Largest recipe."""
DEPTH = 100
"""Maximum depth of nested lists and mappings."""
JSON_NODES = LINE_NODES = 100_000
"""Maximum number of values in a JSON file and in a line of text in JSON."""
INDEX_NODES, TOKENIZER_NODES = 1_000_000, 3_000_000
"""The same for an index of weights and for a tokenizer.json (1.8 million with a vocabulary of 256,000)."""
YAML_NODES = 10_000
"""Maximum number of values in a recipe, including repetitions by aliases."""
MESSAGE = 1000
"""Maximum length of an error message in characters."""
SHOWN = 80
"""Maximum number of characters of a value in a message."""
TOO_DEEP = f"it is nested more than {DEPTH} levels deep"
_STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def read_bytes(path: Path, most: int) -> bytes:
    """A whole file of at most so many bytes. Raises OSError, or ValueError if it is larger or not a plain file."""
    binary, at_once = getattr(os, "O_BINARY", 0), getattr(os, "O_NONBLOCK", 0)  # a pipe isn't waited for
    with os.fdopen(os.open(path, os.O_RDONLY | binary | at_once), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("it isn't a plain file")
        content = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than the {most:,} bytes that such a file may have")
    return content


def read_text(path: Path, most: int) -> str:
    """A whole UTF-8 text file of at most so many bytes. Raises OSError, or ValueError if it is larger or no text."""
    try:
        text = read_bytes(path, most).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"it isn't UTF-8 text: {error}") from None
    if "\0" in text:
        raise ValueError("it isn't text: it holds a zero byte")
    return text


def load_json(path: Path, most: int = JSON_BYTES, nodes: int = JSON_NODES) -> Any:
    """Read a JSON file of at most so many bytes and values, and of bounded depth.

    Raises OSError, or ValueError if it isn't UTF-8 or JSON, or exceeds a limit.
    """
    text = read_bytes(path, most).decode("utf-8")
    value = parse_json(text, nodes)
    if _HALF_PAIR.search(text):  # half of a surrogate pair could not be written again
        json.dumps(value, ensure_ascii=False).encode()
    return value


def parse_json(text: str, nodes: int) -> Any:
    """Parse JSON of at most so many values and of bounded depth. Raises ValueError.

    Values are counted before they are made, by the commas and brackets outside of strings.
    """
    if _marks(text) > nodes and _marks(_STRING.sub("", text)) > nodes:
        raise ValueError(f"it holds more than the {nodes:,} values that such a file may have")
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        inside = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in inside if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(TOO_DEEP)


def _marks(text: str) -> int:
    return sum(map(text.count, "[{,"))


class _Loader(yaml.SafeLoader):
    """Counts values and depth while a document is read."""

    nodes = depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one value. Raises ValueError."""
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > YAML_NODES:
            raise ValueError(f"it holds more than {YAML_NODES:,} values")
        if self.depth > DEPTH:
            raise ValueError(TOO_DEEP)
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def parse_yaml(text: str) -> Any:
    """Parse YAML of bounded size, depth and number of values, of which aliases count too. Raises ValueError."""
    if len(text) > YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than the {YAML_BYTES:,} that it may have")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _count(node, {}, 0)
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    # A tag such as !!int or a date that doesn't fit its value fails in the library without an error of its own.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(shorten(str(error) or type(error).__name__, 300)) from error


def _count(node: yaml.Node | None, known: dict[int, int], depth: int) -> int:
    if node is None:
        return 0
    if depth > DEPTH:
        raise ValueError(f"{TOO_DEEP}, or contains itself")
    if id(node) not in known:
        below: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            below = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            below = node.value
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in below)
    if known[id(node)] > YAML_NODES:
        raise ValueError(f"its aliases expand to more than {YAML_NODES:,} values")
    return known[id(node)]


def is_utf8(name: str) -> bool:
    """Whether the name of a file can be written as text: on Linux it may be any bytes."""
    return name.isascii() or not re.search("[\ud800-\udfff]", name)


def visible(text: str) -> str:
    """Text from outside for a terminal or a page: without control characters, which could rewrite what stands there.

    Line breaks and tabs stay. Each other control character, mark that reorders text, or half of a surrogate pair
    becomes U+FFFD.
    """
    return text if text.isprintable() else _INVISIBLE.sub("\ufffd", text)


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about an unknown name: `did you mean 'x'?` if a known one is similar, else `otherwise`."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else otherwise


def shorten(value: object, most: int = SHOWN) -> str:
    """A value as text on one line, shortened in the middle to about `most` characters."""
    text = value if isinstance(value, str) else _bounded(value, most)
    text = " ".join(text[: 8 * most].split()) if len(text) > 8 * most else " ".join(text.split())
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-(most // 4) :]}"


def _bounded(value: object, most: int) -> str:
    """The text of a value, without building the whole text of a long list or mapping."""
    if isinstance(value, dict | list | tuple):
        import reprlib

        short = reprlib.Repr()
        short.maxstring = short.maxother = short.maxlong = most
        return short.repr(value)
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return str(value) if isinstance(value, Exception) else repr(value)
