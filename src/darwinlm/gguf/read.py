"""From a GGUF file to a checkpoint: transformers dequantises it, and its result is checked against the header."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import family_of
from darwinlm.families.loading import listed, load_model, load_tokenizer
from darwinlm.families.origin import write_gguf_origin
from darwinlm.gguf.header import GgufHeader, read_header
from darwinlm.gguf.llama3 import FACTORS, read_llama3
from darwinlm.gguf.pre_tokenizer import split_as_named
from darwinlm.gguf.tokenizer import unused_token
from darwinlm.runtime.artifact import StageFolder, code_version, file_digest, read_json, write_json
from darwinlm.runtime.errors import CheckpointError, MissingExtraError, first_line, import_extra, storage_error
from darwinlm.runtime.limits import shorten

T = TypeVar("T")
BYTE_LEVEL = "gpt2"
"""A GGUF file's name for byte-level BPE."""

ELSEWHERE = (
    "Give the model's original folder or hub id; chat, evaluate, bench and show take the file as it is, in llama.cpp "
    "(pip install 'darwinlm[llama-cpp]')"
)
"""What to do with a file that transformers can't read."""

VERSION = 5
"""Raised when the same file is converted to another model."""
GGUF_DTYPE = "bfloat16"
"""Type in which models of GGUF files are saved; the files don't record the original one."""


def describe_gguf(path: Path) -> Checkpoint:
    """The configuration in a file's header, without weights. Raises CheckpointError."""
    from transformers import AutoConfig

    read_header(path)
    config: Any = _readable(
        path, lambda: AutoConfig.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    )
    config.dtype = GGUF_DTYPE
    return Checkpoint(path.parent, config, family_of(config), str(path))


def dequantise(path: Path, work: Path) -> Path:
    """Convert a GGUF file to a folder of float32 safetensors, once."""
    for package in ("gguf", "accelerate"):  # transformers needs both, and reports it late
        import_extra(package, "gguf", f"reading {path.name}")
    header = read_header(path)
    stage = StageFolder(work, {"gguf": file_digest(path), **code_version(VERSION)})
    if stage.is_complete():
        return work
    source: dict[str, Any] = {"gguf_file": path.name, "allow_remote_code": False}
    with _parsed_once():
        tokenizer = _readable(path, lambda: load_tokenizer(str(path.parent), **source))
        if header.keys.get("tokenizer.ggml.model") == BYTE_LEVEL:
            _readable(path, lambda: split_as_named(tokenizer, header.keys.get("tokenizer.ggml.pre")))
        quantised = _readable(path, lambda: load_model(str(path.parent), torch.float32, **source))
    tree = {name: value for name, value in quantised.config.to_dict().items() if name != "quantization_config"}
    config = type(quantised.config).from_dict(tree)
    factors = _check_all_read(path, header, quantised)
    family_of(config)
    if factors:
        config.rope_parameters = _scaling(path, factors, config)
    stage.begin()
    try:
        # transformers refuses to save a model loaded from GGUF, so its weights move to a new one.
        plain = type(quantised)(config)
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        config = read_json(work / "config.json")
        write_json(work / "config.json", config | {"dtype": GGUF_DTYPE})
        write_gguf_origin(work, header.keys)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise storage_error(work, error) from error
    stage.finish()
    return work


def tokenizer_in(path: Path, header: GgufHeader) -> Any:
    """The tokenizer in a file, for transformers, whatever the architecture. Raises CheckpointError."""

    def read() -> Any:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
        if header.keys.get("tokenizer.ggml.model") == BYTE_LEVEL:
            split_as_named(tokenizer, header.keys.get("tokenizer.ggml.pre"))
        tree = json.loads(tokenizer.backend_tokenizer.to_str())  # with tokens that transformers adds to the file's
        words, count = tree["model"]["vocab"], header.counts["tokenizer.ggml.tokens"]
        tree["added_tokens"] = [added for added in tree["added_tokens"] if added["id"] < count]
        tree["model"]["vocab"] = {word: number for word, number in words.items() if word != unused_token(number)}
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(tree))
        return tokenizer

    return _readable(path, read)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Let transformers parse a GGUF file once.

    It does so three times, two seconds each for a vocabulary of 49,152 tokens, and lists all names of tensors again for
    every module.
    """
    gguf = import_module("gguf")
    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, each in slow.items():
            setattr(gguf, name, cache(each))
        yield
    finally:
        for name, each in slow.items():
            setattr(gguf, name, each)


def _readable(path: Path, read: Callable[[], T]) -> T:
    """Result of `read`; its errors are reported as errors of the GGUF file."""
    try:
        return read()
    except MissingExtraError:
        raise
    except Exception as error:
        reason = shorten(first_line(error), 300)
        raise CheckpointError(f"can't read the GGUF file {path}: {reason}. {ELSEWHERE}") from error


def _check_all_read(path: Path, header: GgufHeader, model: Any) -> list[str]:
    """Check that the model has every weight of the file, since transformers silently ignores unknown names.

    Returns:
        Tensors that aren't weights, but scale the rotary embedding.

    Raises:
        CheckpointError: The file holds more or fewer numbers than the model.
    """
    factors = sorted(name for name in header.tensors if name.startswith("rope_"))
    there = sum(prod(shape) for name, shape in header.tensors.items() if name not in factors)
    read = sum(parameter.numel() for parameter in model.parameters())
    if there != read:
        raise CheckpointError(
            f"{path} holds {there:,} weights, but transformers reads {read:,} of a {model.config.model_type} model: "
            "some tensors have names that aren't known. Give the model's original folder or hub id"
        )
    return factors


def _scaling(path: Path, factors: list[str], config: Any) -> dict[str, Any]:
    """Settings of a rotary embedding that is scaled by tensors of the file. Raises CheckpointError."""
    rope: dict[str, Any] = config.rope_parameters
    if rope.get("rope_type") != "default":
        return rope
    found = read_llama3(path, config) if factors == [FACTORS] else None
    if found is None:
        raise CheckpointError(
            f"{path} scales its rotary embedding by {listed(factors)}, which transformers doesn't read and no settings "
            "of the type llama3 give: give the model's original folder or hub id"
        )
    return found


class FileTensors:
    """Keys and dequantised tensors of a file."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.keys: dict[str, Any] = {
            name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")
        }
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}

    def get(self, name: str) -> Tensor | None:
        """A tensor in float32; None if the file doesn't have it."""
        from gguf.quants import dequantize

        tensor = self.tensors.get(name)
        return None if tensor is None else torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
