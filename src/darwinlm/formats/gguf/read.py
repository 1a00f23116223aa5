"""From a GGUF file to a checkpoint, tensor by tensor; configuration and tokenizer are read by transformers."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from darwinlm.formats.gguf.dropped_settings import OTHERWISE, check_keys, complete
from darwinlm.formats.gguf.file_tensors import EMBEDDING, HEAD, FileTensors
from darwinlm.formats.gguf.header import GgufHeader, read_header, refuse_reader, rounding_error
from darwinlm.formats.gguf.rope import UnsupportedError
from darwinlm.formats.gguf.stock_layout import choose_layout
from darwinlm.formats.gguf.tokenizer_keys import split_as_named, unused_token
from darwinlm.model.families.checkpoint import Checkpoint, Outline
from darwinlm.model.families.family import family_of
from darwinlm.model.families.loading import check_finite, load_tokenizer, without_warnings
from darwinlm.model.families.origin import write_gguf_origin
from darwinlm.model.families.shapes import module_shapes
from darwinlm.model.families.stored import INDEX, SINGLE
from darwinlm.model.layer_sizes import block_sizes
from darwinlm.model.surgery.reshape import Reshaper
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
from darwinlm.runtime.tensor_stream import write_float32

if TYPE_CHECKING:
    from gguf import GGUFValueType
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

BYTE_LEVEL = "gpt2"
"""A GGUF file's name for byte-level BPE."""

ELSEWHERE = (
    "Give the model's original folder or hub id; chat and evaluate take the file as it is, in llama.cpp "
    "(pip install 'darwinlm[gguf]')"
)
"""What to do with a file that can't be read."""

ROWS = 1024
"""Rows that are compared or copied at once."""
CONVERTED = 12.0
"""Bytes of main memory for each weight of the largest tensor of a file at the peak of its conversion: in float32, once
as it is read, and twice while it is rearranged."""
VERSION = 9
"""Raised when the same file is converted to another model."""
SHARD = 4_000_000_000
"""Most bytes of a file of weights. Linux refuses to map a file that is larger than all main memory."""
WRITTEN_ANYWAY = ("general.architecture", "general.alignment", "tokenizer.ggml.tokens")
"""Keys that a writer sets itself."""
GGUF_DTYPE = "bfloat16"
"""Type in which models of GGUF files are saved; the files don't record the original one."""


@dataclass(frozen=True)
class GgufOutline(Outline):
    """A model by the header of its file, without weights. There is no folder, so `folder` is the file."""

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that a conversion of the file saves. Raises CheckpointError, ModelError."""
        with _readable(self.folder), _alone(self.folder) as file:
            return _tokenizer(read_header(self.folder), file, partial(load_tokenizer, config=self.config))


def describe_gguf(path: Path) -> GgufOutline:
    """The configuration in a file's header, without weights. Raises CheckpointError."""
    header = read_header(path)
    refuse_reader(header)
    config = _config(header)
    config.dtype = GGUF_DTYPE
    return GgufOutline(path, config, family_of(config), str(path))


def conversion_bytes(path: Path) -> float:
    """Bytes of main memory that the conversion of a file takes, from its header. Raises CheckpointError."""
    return CONVERTED * max(map(prod, read_header(path).weights().values()))


def _config(header: GgufHeader) -> PreTrainedConfig:
    """The configuration that transformers reads from a header, with what it leaves out. Raises CheckpointError."""
    from transformers import AutoConfig

    with _readable(header.path), _outline(header) as file, without_warnings():
        config = AutoConfig.from_pretrained(file.parent, gguf_file=str(file), trust_remote_code=False)
        config.vocab_size = header.tensors[EMBEDDING][0]
        complete(config, header)
        config.tie_word_embeddings = config.tie_word_embeddings or _is_tied(header)
    return config


def dequantise(path: Path, work: Path, say: Callable[[str], None] = lambda message: None) -> Path:
    """Convert a GGUF file to a folder of float32 safetensors, once; `say` hears what a user should know of it.

    Memory holds one tensor at a time. Raises CheckpointError, FamilyError, MissingExtraError, StorageError.
    """
    for package in ("gguf", "accelerate"):  # transformers needs both, and reports it late
        import_extra(package, "gguf", f"reading {path.name}")
    header = read_header(path)
    refuse_reader(header)
    stage = StageFolder(work, {"gguf": file_digest(path), **code_version(VERSION)})
    if stage.is_complete():
        return work
    with _readable(path), _alone(path) as file:
        config = _config(header)
        tokenizer = _tokenizer(header, file, partial(load_tokenizer, config=config))
    tensors = _tensors(header, config)
    tensors.check()
    check_keys(path, header, tensors.reshaper, tensors.layout)
    if stage.begin():  # by a process that was killed, of which a file may be left
        stage.discard()
        stage.begin()
    try:
        if HEAD in header.tensors and tensors.tied:
            say(_one_matrix(header, tensors.embedding))
        _write(tensors, work)
        tokenizer.save_pretrained(work)
        write_gguf_origin(work, header.keys)
    except OSError as error:
        shutil.rmtree(work, ignore_errors=True)
        raise storage_error(work, error) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    stage.finish()
    return work


def _tensors(header: GgufHeader, config: PreTrainedConfig) -> FileTensors:
    """The tensors of a model with this configuration in a file. Raises CheckpointError."""
    checkpoint = Checkpoint(header.path.parent, config, family_of(config), str(header.path))
    shapes = module_shapes(checkpoint)
    reshaper = Reshaper(checkpoint, block_sizes(checkpoint.n_blocks, {shape.place: shape.sizes for shape in shapes}))
    try:
        layout = choose_layout(reshaper, 1)
    except UnsupportedError as error:
        raise CheckpointError(f"{header.path}: as transformers reads it, {error.reason}: {OTHERWISE}") from error
    stock = checkpoint.family.gguf
    if stock is not None and stock.name == header.architecture:  # whatever else could hold such sizes
        layout = replace(layout, architecture=stock, folded={})
    embedding = EMBEDDING
    if checkpoint.tied and HEAD in header.tensors:
        embedding = min((EMBEDDING, HEAD), key=lambda name: rounding_error(header.types[name]))
    return FileTensors(header, reshaper, layout, embedding)


def _write(tensors: FileTensors, work: Path) -> None:
    """Write configuration, generation settings and weights as transformers does."""
    checkpoint = tensors.reshaper.checkpoint
    model = checkpoint.skeleton(torch.float32)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(work)
    write_json(work / "config.json", read_json(work / "config.json") | {"dtype": GGUF_DTYPE})
    if model.can_generate():
        model.generation_config.save_pretrained(work)

    def parts(name: str) -> Iterator[torch.Tensor]:
        for part in tensors.parts(name):
            check_finite({name: part}, tensors.header.path)
            yield part

    shards = list(_shards(tensors.shapes))
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    )
    for name, shapes in zip(names, shards, strict=True):
        write_float32(work / name, shapes, parts)
    if len(shards) > 1:
        where = {tensor: name for name, shapes in zip(names, shards, strict=True) for tensor in shapes}
        size = sum(map(_bytes, tensors.shapes.values()))
        write_json(work / INDEX, {"metadata": {"total_size": size}, "weight_map": where})


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[dict[str, tuple[int, ...]]]:
    """Shapes of the tensors of each shard, which takes at most `SHARD` bytes or is a single tensor."""
    shard: dict[str, tuple[int, ...]] = {}
    for name in sorted(shapes):
        if shard and sum(map(_bytes, shard.values())) + _bytes(shapes[name]) > SHARD:
            yield shard
            shard = {}
        shard[name] = shapes[name]
    yield shard


def _bytes(shape: tuple[int, ...]) -> int:
    return prod(shape) * torch.float32.itemsize


def _one_matrix(header: GgufHeader, better: str) -> str:
    """What a user should know of a tied model whose file holds both its embedding and its head."""
    worse = HEAD if better == EMBEDDING else EMBEDDING
    return (
        f"the file holds one matrix as embedding and as head: the model shares that of {header.types[better]}, not "
        f"{header.types[worse]}"
    )


def tokenizer_in(path: Path, header: GgufHeader) -> PreTrainedTokenizerFast:
    """The tokenizer in a file, for transformers, whatever the architecture. Raises CheckpointError."""
    with _readable(path), _alone(path) as file:
        tokenizer = _tokenizer(header, file, PreTrainedTokenizerFast.from_pretrained)
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    words = tree["model"]["vocab"]
    tree["model"]["vocab"] = {word: number for word, number in words.items() if word != unused_token(number)}
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(tree))
    return tokenizer


def _tokenizer(header: GgufHeader, file: Path, load: Callable[..., PreTrainedTokenizerFast]) -> PreTrainedTokenizerFast:
    """What transformers loads, which splits text as the file says, and has no further tokens than the file."""
    tokenizer = load(file.parent, gguf_file=str(file))
    if len(tokenizer) > (count := header.counts["tokenizer.ggml.tokens"]):
        # Transformers adds <|endoftext|> to every byte-level tokenizer without one, such as Llama 3's.
        tree = json.loads(tokenizer.backend_tokenizer.to_str())
        tree["added_tokens"] = [added for added in tree["added_tokens"] if added["id"] < count]
        words = tree["model"]["vocab"]
        tree["model"]["vocab"] = {word: number for word, number in words.items() if number < count}
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(tree))
    if header.keys.get("tokenizer.ggml.model") == BYTE_LEVEL:
        split_as_named(tokenizer, header.keys.get("tokenizer.ggml.pre"))
    return tokenizer


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """A link to a file in a folder of its own: transformers prefers other files in its folder to its contents."""
    with tempfile.TemporaryDirectory(prefix="darwinlm-gguf-") as folder:
        file = Path(folder, path.name)
        file.symlink_to(path.absolute())
        yield file


@contextmanager
def _outline(header: GgufHeader) -> Iterator[Path]:
    """A small file with a header's keys and the names of its tensors, from which transformers reads a configuration.

    Parsing the tokenizer of the whole file would take it seconds.
    """
    from gguf import GGUFWriter

    with tempfile.TemporaryDirectory(prefix="darwinlm-gguf-") as folder:
        file = Path(folder, header.path.name)
        writer = GGUFWriter(file, header.architecture)
        for name, value in header.keys.items():
            if name not in WRITTEN_ANYWAY and value != []:
                writer.add_key_value(name, value, *_value_types(value))
        writer.add_array("tokenizer.ggml.tokens", [""])  # whose number is set afterwards
        for name in header.tensors:
            writer.add_tensor(name, np.zeros(1, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        yield file


def _value_types(value: object) -> list[GGUFValueType]:
    """The type of a key's value; of a list also that of its entries."""
    from gguf import GGUFValueType

    if isinstance(value, list):
        return [GGUFValueType.ARRAY, *_value_types(value[0])]
    if isinstance(value, bool):
        return [GGUFValueType.BOOL]
    if isinstance(value, int):
        return [GGUFValueType.INT64 if value < 0 else GGUFValueType.UINT64]
    return [GGUFValueType.FLOAT64 if isinstance(value, float) else GGUFValueType.STRING]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Report errors of transformers as errors of the file."""
    try:
        yield
    except (CheckpointError, FamilyError, MissingExtraError):
        raise
    except Exception as error:
        reason = re.sub(r"/\S*darwinlm-gguf-[^/\s]*", str(path.parent), first_line(error))
        raise CheckpointError(f"can't read the GGUF file {path}: {shorten(reason, 300)}. {ELSEWHERE}") from error


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
