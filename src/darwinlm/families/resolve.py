"""From what the user typed (hub id, folder, GGUF file) to a local checkpoint."""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from darwinlm.artifact import StageFolder, file_digest, read_json, stage_version, storage_error, write_json
from darwinlm.errors import CheckpointError, MissingExtraError, ModelError, first_line
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import family_of
from darwinlm.families.origin import FILES, write_gguf_origin
from darwinlm.families.pre_tokenizer import split_as_named

BYTE_LEVEL = "gpt2"
"""A GGUF file's name for byte-level BPE."""


def resolve_model(model: str, work: Path, *, allow_remote_code: bool = False) -> Checkpoint:
    """Find a model and make it a local checkpoint.

    Args:
        model: hub id (`owner/name`, optionally `@revision`), folder, or GGUF file.
        work: folder for what must be converted first.
        allow_remote_code: let the checkpoint run its own code.

    Raises:
        ModelError: nothing of that name exists or can be reached.
        FamilyError: its architecture isn't known.
        CheckpointError: its files are damaged.
        MissingExtraError: a GGUF file without the extra `gguf`.
    """
    path = Path(model).expanduser()
    if path.is_file():
        if path.suffix != ".gguf":
            raise ModelError(f"{path} is a file, but not a .gguf one: give a folder, a GGUF file or a hub id")
        return Checkpoint.open(_dequantise(path, work), model)
    if path.is_dir():
        return Checkpoint.open(path, allow_remote_code=allow_remote_code)
    if path.suffix == ".gguf" or path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ModelError(f"there is no model at '{model}': give a folder, a GGUF file or a hub id such as owner/name")
    return Checkpoint.open(_download(model), model, allow_remote_code=allow_remote_code)


def _download(model: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = model.partition("@")
    patterns = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.py", "README.md", *FILES]
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise ModelError(
            f"can't find the model '{model}' on this machine or on the hub ({reason}): check the name, the network "
            "and, for gated models, your login"
        ) from error


def _dequantise(path: Path, work: Path) -> Path:
    """Turn a GGUF file into a folder of float32 safetensors, once."""
    stage = StageFolder(work, {"gguf": file_digest(path), "version": stage_version("source")})
    if stage.is_complete():
        return work
    for package in ("gguf", "accelerate"):  # transformers wants both, and says so late
        try:
            import_module(package)
        except ImportError as error:
            raise MissingExtraError(package, "gguf", f"reading {path.name}") from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        fields = _fields(path)
        kind, pre = (_text(fields.get(f"tokenizer.ggml.{name}")) for name in ("model", "pre"))
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        if kind == BYTE_LEVEL:
            split_as_named(tokenizer, pre)
        quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    except Exception as error:
        reason = first_line(error)
        raise CheckpointError(f"can't read the GGUF file {path}: {reason}") from error
    family_of(quantised.config)
    stage.begin()
    try:
        # A model loaded from GGUF refuses to be saved, so its weights move to a fresh one.
        fresh = type(quantised)(_plain_config(quantised.config))
        fresh.load_state_dict(quantised.state_dict())
        fresh.save_pretrained(work)
        tokenizer.save_pretrained(work)
        # What a GGUF file was quantised from isn't recorded in it: the product saves such models as bfloat16.
        config = read_json(work / "config.json")
        write_json(work / "config.json", config | {"dtype": "bfloat16"})
        write_gguf_origin(work, fields)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise storage_error(work, error) from error
    stage.finish()
    return work


def _plain_config(config: Any) -> Any:
    tree = {name: value for name, value in config.to_dict().items() if name != "quantization_config"}
    return type(config).from_dict(tree)


def _fields(path: Path) -> dict[str, Any]:
    """What a GGUF file says about itself, by key; lists of tokens are left out."""
    from gguf import GGUFReader

    found = GGUFReader(path).fields
    long = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")
    return {name: field.contents() for name, field in found.items() if name not in long}


def _text(value: Any) -> str | None:
    return str(value) if value else None
