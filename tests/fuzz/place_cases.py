"""Chat templates that fail, and names that a terminal would obey."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.case import ANY, Case, alone, changed, copied, replaced

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202e"

TEMPLATES = (
    "{{ 1/0 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ messages[0].a.b }}",
    "{{ messages.__class__.__mro__ }}",
    "{{ ''.join(messages) }}",
    "{{ 'a' * 'b' }}",
    "{{ (messages|length)|tojson(indent='x') }}",
    "{% set messages = 1 %}{{ messages[0] }}",
    "{% include '/etc/hostname' %}",
    "{% if",
    "",
)


def _named(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        tree = json.loads((folder / "tokenizer_config.json").read_text())
        change(tree)
        (folder / "tokenizer_config.json").write_text(json.dumps(tree))

    return write


def templates() -> Iterator[Case]:
    """Chat templates that fail, each in its own way; those that only take long are not among them."""
    for template in TEMPLATES:
        yield Case(f"template: {template[:40]}", "model", replaced("chat_template.jinja", template), ANY)


def terminals() -> Iterator[Case]:
    """Names that a terminal would obey, in every file."""
    for field in ("model_type", "hidden_act", "dtype", "architectures", EVIL):
        yield Case(f"terminal: {field!r} in config.json", "model", changed("config.json", **{field: EVIL}), ANY)
    yield Case("terminal: a token", "model", changed("added_tokens.json", **{EVIL: -1}))
    yield Case(
        "terminal: a template", "model", _named(lambda tree: tree.update(chat_template=f"{{{{ {EVIL} }}}}")), ANY
    )
    yield Case("terminal: a class", "model", _named(lambda tree: tree.update(tokenizer_class=EVIL)), ANY)
    for what in (EVIL, f"{EVIL}: 1", f"search: {{generations: {EVIL}}}", f"search: {{{EVIL}: 1}}"):
        yield Case(f"terminal: a recipe with {what[-12:]!r}", "recipe", alone("recipe.yaml", what))
        quoted = json.dumps(what)
        yield Case(
            f"terminal: a quoted recipe with {what[-12:]!r}", "recipe", alone("recipe.yaml", f"{quoted}: {quoted}")
        )
    yield Case("terminal: a field of text", "text", alone("text.jsonl", json.dumps({EVIL: 1})))
    shards = {"weight_map": {EVIL: f"{EVIL}.safetensors"}}
    yield Case("terminal: an index", "model", replaced("model.safetensors.index.json", json.dumps(shards)))
    manifest = {"key": {"a": 1}, "facts": {}, "files": {EVIL: "b"}}
    yield Case("terminal: a manifest", "artifact", alone("manifest.json", json.dumps(manifest)))
