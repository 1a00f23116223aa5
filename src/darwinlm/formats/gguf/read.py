"""From a GGUF file to a checkpoint: transformers dequantises it, and its result is checked against the header."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from math import prod
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from darwinlm.formats.gguf.dropped_settings import check_keys, complete
from darwinlm.formats.gguf.header import GgufHeader, read_header, rounding_error
from darwinlm.formats.gguf.tokenizer_keys import split_as_named, unused_token
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.family import family_of
from darwinlm.model.families.loading import load_model, load_tokenizer, without_bars
from darwinlm.model.families.origin import write_gguf_origin
from darwinlm.runtime.artifact import StageFolder, code_version, file_digest, read_json, write_json
from darwinlm.runtime.errors import (
    CheckpointError,
    FamilyError,
    MissingExtraError,
    first_line,
    import_extra,
    storage_error,
)
from darwinlm.runtime.limits import shorten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

BYTE_LEVEL = "gpt2"
"""A GGUF file's name for byte-level BPE."""

ELSEWHERE = (
    "Give the model's original folder or hub id; chat and evaluate take the file as it is, in llama.cpp "
    "(pip install 'darwinlm[gguf]')"
)
"""What to do with a file that transformers can't read."""

ROWS = 1024
"""Rows that are compared or copied at once."""
CONVERTED = 5.0
"""Bytes of main memory for each weight of a file at the peak of its conversion by transformers, in float32. Measured on
a file of 630M weights on 2026-11-30."""
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
VERSION = 7
"""Raised when the same file is converted to another model."""
GGUF_DTYPE = "bfloat16"
"""Type in which models of GGUF files are saved; the files don't record the original one."""


def describe_gguf(path: Path) -> Checkpoint:
    """The configuration in a file's header, without weights. Raises CheckpointError."""
    header = read_header(path)
    with _alone(path) as file:
        config = _config(header, file)
    config.dtype = GGUF_DTYPE
    return Checkpoint(path.parent, config, family_of(config), str(path))


def conversion_bytes(path: Path) -> float:
    """Bytes of main memory that the conversion of a file takes, from its header. Raises CheckpointError."""
    return CONVERTED * sum(map(prod, read_header(path).weights().values()))


def _config(header: GgufHeader, file: Path) -> PreTrainedConfig:
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(file.parent, gguf_file=str(file), trust_remote_code=False)
    complete(config, header)
    config.tie_word_embeddings = config.tie_word_embeddings or _is_tied(header)
    return config


def dequantise(path: Path, work: Path, say: Callable[[str], None] = lambda message: None) -> Path:
    """Convert a GGUF file to a folder of float32 safetensors, once; `say` hears what a user should know of it."""
    for package in ("gguf", "accelerate"):  # transformers needs both, and reports it late
        import_extra(package, "gguf", f"reading {path.name}")
    header = read_header(path)
    stage = StageFolder(work, {"gguf": file_digest(path), **code_version(VERSION)})
    if stage.is_complete():
        return work
    with _alone(path) as file:
        tokenizer = _tokenizer(header, file, load_tokenizer)
        config = _config(header, file)
        tied, config.tie_word_embeddings = config.tie_word_embeddings, HEAD not in header.tensors
        quantised = load_model(str(file.parent), torch.float32, gguf_file=str(file), config=config)
    _check_all_read(path, header, quantised)
    tree = {name: value for name, value in quantised.config.to_dict().items() if name != "quantization_config"}
    config = type(quantised.config).from_dict(tree | {"tie_word_embeddings": tied})
    if stage.begin():  # by a process that was killed, of which safetensors leaves a file
        stage.discard()
        stage.begin()
    try:
        # transformers refuses to save a model loaded from GGUF, so its weights move to a new one.
        with torch.device("meta"):
            plain = type(quantised)(config)
        plain.load_state_dict(quantised.state_dict(), assign=True)
        del quantised
        plain.tie_weights()
        if tied and HEAD in header.tensors:
            say(_take_one(header, plain))
        with without_bars():
            plain.save_pretrained(work)
        tokenizer.save_pretrained(work)
        config = read_json(work / "config.json")
        write_json(work / "config.json", config | {"dtype": GGUF_DTYPE})
        write_gguf_origin(work, header.keys)
        check_keys(path, header, Checkpoint.open(work))
    except (OSError, SafetensorError) as error:
        shutil.rmtree(work, ignore_errors=True)
        raise storage_error(work, error) from error
    except CheckpointError:
        shutil.rmtree(work, ignore_errors=True)
        raise
    stage.finish()
    return work


def _take_one(header: GgufHeader, model: PreTrainedModel) -> str:
    """Give a tied model the more precise one of a file's embedding and head; returns what was done, for the user."""
    better, worse = sorted((EMBEDDING, HEAD), key=lambda name: rounding_error(header.types[name]))
    weight = model.get_input_embeddings().weight.data
    for start in range(0, len(weight), ROWS):
        rows = slice(start, start + ROWS)
        weight[rows].copy_(header.numbers(better, rows))
    return (
        f"the file holds one matrix as embedding and as head: the model shares that of {header.types[better]}, not "
        f"{header.types[worse]}"
    )


def tokenizer_in(path: Path, header: GgufHeader) -> PreTrainedTokenizerFast:
    """The tokenizer in a file, for transformers, whatever the architecture. Raises CheckpointError."""
    with _alone(path) as file:
        tokenizer = _tokenizer(header, file, PreTrainedTokenizerFast.from_pretrained)
    tree = json.loads(tokenizer.backend_tokenizer.to_str())  # with tokens that transformers adds to the file's
    words, count = tree["model"]["vocab"], header.counts["tokenizer.ggml.tokens"]
    tree["added_tokens"] = [added for added in tree["added_tokens"] if added["id"] < count]
    tree["model"]["vocab"] = {word: number for word, number in words.items() if word != unused_token(number)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(tree))
    return tokenizer


def _tokenizer(header: GgufHeader, file: Path, load: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """What transformers loads, which splits text as the file says."""
    tokenizer = load(file.parent, gguf_file=str(file))
    if header.keys.get("tokenizer.ggml.model") == BYTE_LEVEL:
        split_as_named(tokenizer, header.keys.get("tokenizer.ggml.pre"))
    return tokenizer


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A link to a file in a folder of its own, because transformers prefers other files in its folder to its contents.

    Errors are reported as errors of the file.
    """
    with tempfile.TemporaryDirectory(prefix="darwinlm-gguf-") as folder, _parsed_once(import_module("gguf")):
        file = Path(folder, path.name)
        file.symlink_to(path.absolute())
        try:
            yield file
        except (FamilyError, MissingExtraError):
            raise
        except Exception as error:
            reason = shorten(first_line(error).replace(folder, str(path.parent)), 300)
            raise CheckpointError(f"can't read the GGUF file {path}: {reason}. {ELSEWHERE}") from error


@contextmanager
def _parsed_once(gguf: ModuleType) -> Iterator[None]:
    """Let transformers parse a file once, and list the names of tensors once.

    Otherwise it parses a file three times, which takes two seconds every time, and lists the names again for every
    module. It takes both functions from the package `gguf` whenever it needs them, so they are replaced in that package
    by ones that remember their result.
    """
    plain = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    try:
        for name, function in plain.items():
            setattr(gguf, name, cache(function))
        yield
    finally:
        for name, function in plain.items():
            setattr(gguf, name, function)


def _is_tied(header: GgufHeader) -> bool:
    """Whether a file's head is its embedding in another type: no row differs by more than rounding explains."""
    if header.tensors.get(HEAD) != header.tensors[EMBEDDING]:
        return False
    tolerance = sum(rounding_error(header.types[name]) for name in (EMBEDDING, HEAD))
    for start in range(0, header.tensors[HEAD][0], ROWS):
        embedding, head = (header.numbers(name, slice(start, start + ROWS)) for name in (EMBEDDING, HEAD))
        if not bool(((embedding - head).norm(dim=1) <= tolerance * head.norm(dim=1)).all()):
            return False
    return True


def _check_all_read(path: Path, header: GgufHeader, model: PreTrainedModel) -> None:
    """Check that the model has every weight of the file, since transformers silently ignores unknown names.

    Raises CheckpointError if the file holds more or fewer numbers than the model.
    """
    stored = sum(map(prod, header.weights().values()))
    loaded = sum(parameter.numel() for parameter in model.parameters())
    if stored != loaded:
        raise CheckpointError(
            f"{path} holds {stored:,} weights, but transformers reads {loaded:,} of a {model.config.model_type} model: "
            "some tensors have names that aren't known. Give the model's original folder or hub id"
        )
