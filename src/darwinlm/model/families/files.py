"""The files of a model's folder: which names they have, what is carried along, and that no link leads out of it."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import TEXT_BYTES, TOKENIZER_BYTES, read_text, shorten

GENERATION = "generation_config.json"
CARD = "README.md"
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")
"""Files beside the weights that licences require to keep."""
PROCESSORS = ("*processor_config.json", "chat_template.json")
"""Settings of a multimodal model's inputs."""
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "chat_template.jinja", "additional_chat_templates/*.jinja",
)  # fmt: skip
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
MODEL = (
    "config.json",
    GENERATION,
    CARD,
    "modeling_darwinlm.py",
    "modeling_mlx.py",
    "darwinlm_recipe.json",
    *WEIGHTS,
    *TOKENIZER,
    *PROCESSORS,
    *LICENCES,
)
"""Names of the files that a model consists of."""


def is_named(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a file's path in its folder is among such names, in any case: macOS and Windows open them alike."""
    return any(fnmatchcase(name.lower(), pattern.lower()) for pattern in patterns)


def model_files(folder: Path, patterns: tuple[str, ...] = MODEL) -> Iterator[tuple[str, Path]]:
    """Names and paths of a model's files, sorted."""
    for path in _entries(folder):
        name = path.relative_to(folder).as_posix()
        if is_named(name, patterns) and path.is_file():
            yield name, path


def _entries(folder: Path) -> list[Path]:
    return sorted((*folder.glob("*"), *folder.glob("additional_chat_templates/*")))


def is_outside(folder: Path, path: Path) -> bool:
    """Whether a path leads out of a model's folder; links resolved. The hub's cache keeps a model's files elsewhere."""
    root = folder.resolve()
    cached = root.parent.name == "snapshots" and root.parents[1].name.startswith("models--")
    roots = (root, root.parents[1] / "blobs") if cached else (root,)
    return not any(path.resolve().is_relative_to(root) for root in roots)


def check_link(folder: Path, path: Path) -> None:
    """Refuse a link that leads out of a model's folder. Raises CheckpointError."""
    if path.is_symlink() and is_outside(folder, path):
        raise CheckpointError(
            f"{path} is a link to a file outside of the model's folder, which may be private: put a copy of the "
            "file there, or remove the link"
        )


def check_files(folder: Path) -> None:
    """Check everything that is read from a model's folder or carried along, before anything is.

    A smaller model may be published with its tokenizer, licences and card. So a link to a private file would publish
    that; only the hub's cache has links, which stay in the folder of a model.

    Raises:
        CheckpointError: A file is a link that leads out of the folder, is too large, or should be text and isn't; or
            something is neither a file nor a folder: reading a pipe waits for ever.
    """
    for path in _entries(folder):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise CheckpointError(f"{path} is neither a file nor a folder, but a pipe or a device: remove it")
        check_link(folder, path)  # tokenizers of transformers read files of many names
    for name, path in model_files(folder):
        if is_named(name, WEIGHTS[:1]):
            continue
        try:
            if is_named(name, (CARD, *LICENCES)):
                read_text(path, TEXT_BYTES)
            elif path.stat().st_size > TOKENIZER_BYTES:
                raise ValueError(f"it has more than {TOKENIZER_BYTES:,} bytes")  # noqa: TRY301 - told as the others are
        except (OSError, ValueError) as error:
            raise CheckpointError(f"can't use {path} ({shorten(error)}): correct or remove it") from error
