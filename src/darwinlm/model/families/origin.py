"""Files that accompany a model: generation settings, licence, and origin."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from darwinlm.model.families.files import CARD, GENERATION, LICENCES, PROCESSORS, model_files
from darwinlm.model.families.sentence_transformers import carry_modules
from darwinlm.runtime.artifact import read_json, read_record, write_json
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import TEXT_BYTES, parse_yaml, read_text, shorten, visible

RECORD = "origin.json"
"""Metadata of a GGUF file, saved beside the weights from it."""

_REPOSITORY = r"[A-Za-z0-9][\w.-]*/[\w.-]+"


@dataclass(frozen=True)
class Origin:
    """Origin of a model according to its files: its name on the hub, licence, and codes of its languages.

    `name` is what a GGUF file calls its model. A licence without a standard identifier has a name and a link; `license`
    holds several where a card lists them.
    """

    base_model: str | None = None
    license: str | tuple[str, ...] | None = None
    license_name: str | None = None
    license_link: str | None = None
    languages: tuple[str, ...] = ()
    name: str | None = None


def origin_of(folder: Path, source: str) -> Origin:
    """Origin of a model, from its folder and its name as the user gave it.

    Raises ArtifactError if the record of a GGUF file's origin is damaged.
    """
    if (folder / RECORD).is_file():
        fields: Mapping[str, object] = read_record(folder / RECORD)
        base_model = _word(fields.get("base_model"))
    else:
        fields, base_model = _front_matter(folder / CARD), None
        if not Path(source).expanduser().exists() and re.fullmatch(rf"{_REPOSITORY}(@.+)?", source):
            base_model = source.partition("@")[0]
        elif "darwinlm" in _words(fields.get("tags")):
            base_model = next(iter(_words(fields.get("base_model"))), None)
    return Origin(
        base_model,
        license=_word_or_words(fields.get("license")),
        license_name=_word(fields.get("license_name")),
        license_link=_word(fields.get("license_link")),
        languages=_words(fields.get("languages", fields.get("language"))),
        name=_word(fields.get("name")),
    )


def write_gguf_origin(folder: Path, fields: JsonObject) -> None:
    """Save name, licence, languages, base model and end tokens of a GGUF file beside the weights read from it.

    `fields` are the file's metadata by key. The folder already holds config.json. Raises StorageError if the disk is
    full.
    """
    general = {key.removeprefix("general."): value for key, value in fields.items() if key.startswith("general.")}
    urls = (general.get(name) for name in ("base_model.0.repo_url", "source.repo_url", "repo_url"))
    matches = (re.search(rf"huggingface\.co/({_REPOSITORY})", str(url)) for url in urls if url)
    record = {
        "base_model": next((match.group(1) for match in matches if match), None),
        "license_name": general.get("license.name"),
        "license_link": general.get("license.link"),
        "license": general.get("license"),
        "languages": general.get("languages"),
        "name": general.get("name"),
    }
    write_json(folder / RECORD, record)
    numbers = (fields.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    ends = list(dict.fromkeys(int(number) for number in numbers if number is not None))
    if ends:
        generation = read_json(folder / GENERATION) if (folder / GENERATION).is_file() else {}
        write_json(folder / GENERATION, {**generation, "eos_token_id": ends if len(ends) > 1 else ends[0]})


def carry(source: Path, target: Path) -> None:
    """Give a model derived from another its generation settings, processors of images, modules and licence files.

    Raises:
        CheckpointError: The generation settings are damaged.
        OSError: A file can't be written.
    """
    from darwinlm.model.families.generation import carried_generation  # with PyTorch, which takes seconds

    if (settings := carried_generation(source)) is not None:
        settings.save_pretrained(target)
    for name, path in model_files(source, (*PROCESSORS, *LICENCES)):
        shutil.copyfile(path, target / name)
    carry_modules(source, target)


def _front_matter(path: Path) -> dict[str, object]:
    """The metadata of a model card; empty if it can't be read, since cards are free text."""
    if not path.is_file():
        return {}
    try:
        match = re.match(r"---\s*\n(.*?)\n---", read_text(path, TEXT_BYTES), flags=re.DOTALL)
        metadata = parse_yaml(match.group(1)) if match else None
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _word(value: object) -> str | None:
    """A value that is a word, on one line."""
    return shorten(visible(value), 300) or None if isinstance(value, str) else None


def _word_or_words(value: object) -> str | tuple[str, ...] | None:
    """A value that is a word, or a list of several."""
    words = _words(value)
    return words if len(words) > 1 else next(iter(words), None)


def _words(value: object) -> tuple[str, ...]:
    """A value that is one word or a list of words."""
    if isinstance(value, str):
        values: Iterable[object] = [value]
    else:
        values = value if isinstance(value, list | tuple) else []
    return tuple(word for word in map(_word, values) if word is not None)
