"""Limits on the size and depth of files.

All readers of JSON and YAML use this module. So a hostile or damaged file leads to a message and doesn't exhaust the
machine's memory.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MIB = 1 << 20
JSON_BYTES = 64 * MIB
"""Largest JSON file of a configuration, an index or a summary."""
TOKENIZER_BYTES = 1024 * MIB
"""Largest tokenizer.json; those of vocabularies of 256,000 take 35 MB."""
YAML_BYTES = MIB
"""Largest recipe."""
DEPTH = 100
"""Maximum depth of nested lists and mappings."""
YAML_NODES = 100_000
"""Maximum number of values in a recipe, including repetitions by aliases."""
MESSAGE = 1000
"""Maximum length of an error message in characters."""
SHOWN = 80
"""Maximum number of characters of a value in a message."""
TOO_DEEP = f"it is nested more than {DEPTH} levels deep"


def load_json(path: Path, most: int = JSON_BYTES) -> Any:
    """Read a JSON file of at most so many bytes, and of bounded depth.

    Raises OSError, or ValueError if it isn't UTF-8 or JSON, or exceeds a limit.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(f"it has {size:,} bytes, more than the {most:,} that such a file may have")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(DEPTH):
        inside = (inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer))
        level = [inner for inner in inside if isinstance(inner, dict | list)]
        if not level:
            return value
    raise ValueError(TOO_DEEP)


def parse_yaml(text: str) -> Any:
    """Parse YAML of bounded size, depth and number of values, of which aliases count too. Raises ValueError."""
    if len(text) > YAML_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than the {YAML_BYTES:,} that a recipe may have")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _count(node, {}, 0)
        return yaml.safe_load(text)
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except OverflowError as error:
        raise ValueError(shorten(error)) from None


def _count(node: yaml.Node | None, known: dict[int, int], depth: int) -> int:
    """Number of values below a node, including repetitions."""
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
