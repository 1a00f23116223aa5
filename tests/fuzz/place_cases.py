"""Hostile folders: links that lead out, cards, names that a terminal would obey, and files of very many values."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.case import ANY, REFUSED, Case, alone, changed, copied, replaced

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x7f\u202e"
LINKED = (
    *("LICENSE", "NOTICE.txt", "COPYING", "README.md", "chat_template.jinja", "tokenizer.model", "merges.txt"),
    *("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"),
    *("preprocessor_config.json", "chat_template.json", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
)
TARGETS = ("/etc/hostname", "../outside", "/dev/zero", "/proc/self/mem", "../../..", "nowhere")
CARDS = {
    "a date": "date: 2024-02-30",
    "a tag": "a: !!int x",
    "an object": "a: !!python/object/apply:os.system ['touch RAN']",
    "brackets": "a: " + "[" * 900,
    "closed brackets": "a: " + "[" * 900 + "]" * 900,
    "many values": "[],\n" * 50_000,
    "itself": "license: &a [*a]",
    "laughs": "a: &a [x, x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '*a'] * 9)}]\n" for i in range(9)),
    "escape sequences": 'license: "\\e[2J"\nlicense_name: "\\x9b1m"',
    "half a pair": 'license: "\\ud800"',
    "a list": "- a\n- b",
    "an open quote": 'license: "',
    "zero": "\0",
}

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


def _link(name: str, target: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        (folder.parent / "outside").write_text("a private key")
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return write


def _pipe(name: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return write


def _named(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        tree = json.loads((folder / "tokenizer_config.json").read_text())
        change(tree)
        (folder / "tokenizer_config.json").write_text(json.dumps(tree))

    return write


def places() -> Iterator[Case]:
    """Links in models, cards and licences."""
    for name in LINKED:
        for target in TARGETS:
            # What isn't there, and no file either, is as if the link weren't.
            outcome = ANY if target in ("nowhere", "../../..", "/dev/zero") else REFUSED
            yield Case(f"place: {name} is a link to {target}", "model", _link(name, target), outcome)
        yield Case(f"place: {name} is a pipe", "model", _pipe(name))
    for name, front in CARDS.items():
        write = replaced("README.md", f"---\n{front}\n---\n# Model\n")
        yield Case(f"card: {name}", "model", write, REFUSED if name == "zero" else ANY)
    for name, content in {
        "LICENSE": b"\x7fELF\0\0", "NOTICE": b"\xff\xfe", "COPYING": b"a" * (5 << 20), "README.md": b"a" * (5 << 20),
    }.items():  # fmt: skip
        yield Case(f"card: {name} that is no text", "model", replaced(name, content))

    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        for field in ("vocab", "merges", "vocab_file", "spm_file", "init_inputs"):
            for target in ("/etc/hostname", "/proc/self/environ", "/etc/../etc/passwd"):
                value = [target] if field == "init_inputs" else target
                yield Case(f"place: {field} in {file} is {target}", "model", changed(file, **{field: value}))
    for name in ("._model.safetensors", "._config.json", "._README.md", ".DS_Store", "__MACOSX", "Thumbs.db"):
        yield Case(f"place: {name} of an archive", "model", replaced(name, b"\0\5\x16\7" * 20), ANY)


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
