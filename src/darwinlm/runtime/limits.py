"""Files that are read whole: their largest sizes, and JSON and YAML, whose errors all are a ValueError."""

from __future__ import annotations

import difflib
import json
import os
import re
import reprlib
import stat
import sys
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
MESSAGE = 1000
"""Maximum length of an error message in characters."""
SHOWN = 80
"""Maximum number of characters of a value in a message."""
NOT_IN_UTF8 = (
    f"Python handles names of files as {sys.getfilesystemencoding()} here, which has no such letters: set PYTHONUTF8=1"
)
"""What is wrong with a name in UTF-8 where the locale and PYTHONUTF8 say that names aren't."""
TOO_DEEP = "it is nested too deeply"
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """A whole file of at most so many bytes. Raises OSError, or ValueError if it is larger or not a plain file."""
    binary, at_once = getattr(os, "O_BINARY", 0), getattr(os, "O_NONBLOCK", 0)  # a pipe isn't waited for
    with os.fdopen(os.open(path, os.O_RDONLY | binary | at_once), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ValueError("it isn't a plain file")
        content = stream.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"it has more than the {max_bytes:,} bytes that such a file may have")
    return content


def read_text(path: Path, max_bytes: int) -> str:
    """A whole UTF-8 text file of at most so many bytes. Raises OSError, or ValueError if it is larger or no text."""
    try:
        text = read_bytes(path, max_bytes).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"it isn't UTF-8 text: {error}") from None
    if "\0" in text:
        raise ValueError("it isn't text: it holds a zero byte")
    return text


def load_json(path: Path, max_bytes: int = JSON_BYTES) -> Any:
    """Read a JSON file of at most so many bytes. Raises OSError, or ValueError if it is larger, or no JSON in UTF-8."""
    text = read_bytes(path, max_bytes).decode("utf-8")
    value = parse_json(text)
    if _HALF_PAIR.search(text):  # half of a surrogate pair could not be written again
        json.dumps(value, ensure_ascii=False).encode()
    return value


def parse_json(text: str) -> Any:
    """Parse JSON. Raises ValueError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that occurs twice in a mapping, of which the plain one takes the last without a word.

    Numbers to the base of 60, such as 1:30, stay text: nobody who writes one means 90.
    """

    def compose_mapping_node(self, anchor: Any) -> Any:
        """A mapping as it is written, before others are merged into it. Raises ConstructorError."""
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{shorten(key.value)}' occurs twice: keep one of them", key.start_mark
                )
            keys.add(key.value)
        return node

    def construct_number(self, node: Any) -> Any:
        """A number, or the text of one with colons."""
        if ":" in node.value:
            return self.construct_yaml_str(node)
        return self.construct_yaml_int(node) if node.tag.endswith(":int") else self.construct_yaml_float(node)


for _tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
    _StrictLoader.add_constructor(_tag, _StrictLoader.construct_number)


def parse_yaml(text: str, *, strict: bool = False) -> Any:
    """Parse YAML of bounded size. Raises ValueError.

    `strict` is for what people write: a key that occurs twice in a mapping is refused, and 1:30 is text, not 90.
    """
    if len(text) > YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than the {YAML_BYTES:,} that it may have")
    try:
        return yaml.load(text, _StrictLoader if strict else yaml.SafeLoader)  # noqa: S506 - both are safe
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    # A tag such as !!int or a date that doesn't fit its value fails in the library without an error of its own.
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise ValueError(shorten(str(error) or type(error).__name__, 300)) from error


def wrong_name(name: str) -> str:
    """Why the name of a file can't be used, and what to do; empty if it can. On Linux, it may be any bytes but zero.

    A name in UTF-8 can't be written either where Python doesn't expect UTF-8.
    """
    if "\0" in name:
        return "no name can hold a zero byte: correct it"
    if name.isascii() or not re.search("[\ud800-\udfff]", name):
        return ""
    try:
        os.fsencode(name).decode()
    except UnicodeError:
        return "its name isn't UTF-8: rename it"
    return NOT_IN_UTF8


def visible(text: str) -> str:
    """Text from outside for a terminal or a page: without control characters, which could rewrite the screen.

    Line breaks and tabs stay. Each other control character, mark that reorders text, or half of a surrogate pair
    becomes U+FFFD.
    """
    return text if text.isprintable() else _INVISIBLE.sub("\ufffd", text)


def suggestion(name: str, known: Iterable[str], otherwise: str) -> str:
    """What to do about an unknown name: `did you mean 'x'?` if a known one is similar, else `otherwise`."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{near[0]}'?" if near else otherwise


def shorten(value: object, max_length: int = SHOWN) -> str:
    """A value as text on one line, shortened in the middle to about `max_length` characters."""
    text = value if isinstance(value, str) else _bounded(value)
    text = " ".join(text[: 8 * max_length].split()) if len(text) > 8 * max_length else " ".join(text.split())
    return text if len(text) <= max_length else f"{text[: max_length // 2]} ... {text[-(max_length // 4) :]}"


def _bounded(value: object) -> str:
    """The text of a value, without building the whole text of a long list or mapping."""
    if isinstance(value, int) and value.bit_length() > 256:
        return f"a number of {value.bit_length()} bits"
    return str(value) if isinstance(value, Exception) else reprlib.repr(value)
