"""Whole models and tokenizers through transformers, without prompts, pickles and random weights.

transformers initialises missing weights at random, and asks on the terminal before it runs a checkpoint's code. Here
both are refused with a clear message.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES, tokenizer_class_from_name
from transformers.utils import logging

from darwinlm.model.families.files import is_outside
from darwinlm.runtime.artifact import digest_of
from darwinlm.runtime.compute import DTYPES, all_finite
from darwinlm.runtime.errors import CheckpointError, ModelError, first_line
from darwinlm.runtime.limits import TOKENIZER_BYTES, load_json, read_bytes, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

TOKENS = 1 << 22
"""Largest allowed token id."""
FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json")
MODEL, UNIGRAM = "tokenizer.model", 1
"""A SentencePiece model, and its number for Unigram."""
VOCABULARIES = (
    MODEL,
    "tokenizer.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
)
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
"""Those whose fields become arguments of transformers' class."""
SAVED_SETTINGS = (
    "model_max_length",
    "padding_side",
    "truncation_side",
    "clean_up_tokenization_spaces",
    "model_input_names",
    "response_schema",
)
"""Attributes of a tokenizer that are saved with it, beside its tokens and its template."""
WORDS = ("backend", "tokenizer_class", "chat_template")
"""Fields that transformers never takes for a file, whatever lies in the current folder."""
PROBE = "The river’s 3 banks, ├ 世界 🙂\n"
"""Text that every tokenizer must take; some damaged ones only fail on text, without an error of ours."""
UNUSABLE = (
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError,
    ImportError, SafetensorError, StrictDataclassError,
)  # fmt: skip
"""Errors of transformers on damaged files or impossible configurations."""


class LoadingReport(TypedDict):
    """What transformers says about the names of loaded weights; a mismatched one comes with both shapes."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]


def check_tokens(largest: int, vocabulary: int, source: str) -> None:
    """Refuse a token beyond the rows of the embedding. Raises ModelError."""
    if largest >= vocabulary:
        raise ModelError(
            f"the tokenizer of {source} gives the token {largest}, but the model's vocabulary ends at "
            f"{vocabulary - 1}: it belongs to another model"
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Silence the progress bars of transformers, which would appear beside ours or in a notebook."""
    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


@contextmanager
def without_warnings() -> Iterator[None]:
    """Silence what transformers says about settings, where it will say so again."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def check_loaded(loaded: torch.nn.Module, report: LoadingReport, model: Path | str) -> None:
    """Refuse weights that transformers made up or left out, and ones that aren't finite. Raises CheckpointError."""
    missing = sorted({*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])})
    if missing:
        raise CheckpointError(f"{model} lacks the tensor {shorten(', '.join(missing), 200)}: fetch the model again")
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        raise CheckpointError(
            f"{model} holds the tensor {shorten(', '.join(unexpected), 200)}, which a model with its config.json does "
            "not have: fetch the model again"
        )
    check_finite(loaded.state_dict(), model)


def check_finite(tensors: Mapping[str, torch.Tensor], where: Path | str) -> None:
    """Refuse weights that aren't finite. Raises CheckpointError; the message names the tensor.

    A GPU is waited for once, whatever the number of tensors.
    """
    checked = {name: all_finite(tensor) for name, tensor in tensors.items() if tensor.dtype in DTYPES.values()}
    if not checked or bool(torch.stack([*checked.values()]).all()):
        return
    name = next(name for name, finite in checked.items() if not bool(finite))
    raise CheckpointError(
        f"{where}: the tensor {name} holds numbers that aren't finite (NaN or infinity): fetch the model again, or set "
        "them to zero"
    )


def load_tokenizer(
    folder: Path, config: PreTrainedConfig | None = None, *, gguf_file: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, from its folder, or from a GGUF file in it.

    With a `config`, the configuration in the folder or in the file isn't read. Of a file it saves the time, seconds, in
    which AutoTokenizer would parse all of its tokens to find out the model's type.

    Raises:
        ModelError: There is no tokenizer.
        CheckpointError: Its files are damaged, it needs its own code, or transformers would read it as another kind.
    """
    _check_settings(folder)
    options: dict[str, object] = {"local_files_only": True}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        if gguf_file is None or config is None:
            known = {} if config is None else {"config": config}
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **known, **options)
        else:
            named = tokenizer_class_from_name(TOKENIZER_MAPPING_NAMES.get(config.model_type) or "")
            tokenizer = (named or PreTrainedTokenizerFast).from_pretrained(folder, **options)
        tokenizer(PROBE)
    except BaseException as error:
        # The tokenizers library panics on some files, with an error that isn't an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if "trust_remote_code" in str(error):
            raise no_tokenizer(folder, ValueError("its own Python code, which never runs here")) from error
        raise no_tokenizer(folder, error) from error
    check_sentence_piece(folder, tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and getattr(backend.model, "dropout", None):
        backend.model.dropout = None  # for training: merges are left out at random
    tokenizer.init_kwargs.pop("local_files_only", None)  # how it was loaded would be saved with it
    return tokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """What identifies a tokenizer: the tokens of any text, with special ones, the text of any chat, and settings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    spelling = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    settings = {name: getattr(tokenizer, name, None) for name in SAVED_SETTINGS}
    return digest_of([spelling, tokenizer.special_tokens_map, tokenizer.chat_template, settings])


def _check_settings(folder: Path) -> None:
    """Refuse settings of a tokenizer that are damaged, or name a file elsewhere.

    Transformers would read a private file as the vocabulary, to be saved. It writes the place of a SentencePiece file
    itself; a file with such a name is no secret. Raises CheckpointError.
    """
    for path in (folder / name for name in SETTINGS if (folder / name).is_file()):
        try:
            tree = load_json(path, TOKENIZER_BYTES)
            if not isinstance(tree, dict):
                raise ValueError(f"it holds a {type(tree).__name__}, not a mapping")  # noqa: TRY301, TRY004
        except (OSError, ValueError) as error:
            raise no_tokenizer(folder, ValueError(f"{path.name}: {shorten(error)}")) from error
        words_by_field = ((name, value if isinstance(value, list) else [value]) for name, value in tree.items())
        for name, word in ((name, word) for name, words in words_by_field for word in words):
            if name in WORDS or ("token" in name and not name.endswith("_file")):
                continue
            if not isinstance(word, str) or os.path.basename(word) in VOCABULARIES:  # noqa: PTH119 - any word
                continue
            if os.path.isfile(word) and is_outside(folder, Path(word)):  # noqa: PTH113
                raise CheckpointError(
                    f"{path}: {shorten(name)} names the file {shorten(word)} outside of the model's folder, which may "
                    "be private: remove the field"
                )


def check_sentence_piece(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a Unigram model from whose folder transformers built another kind of tokenizer.

    The classes of Llama, Gemma and others silently read any `tokenizer.model` as BPE and ignore its scores. Text is
    then split into other tokens than in the model's training (seen in transformers 5.24).

    Raises CheckpointError if it was read wrongly, or isn't a SentencePiece model at all.
    """
    path = folder / MODEL
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (folder / "tokenizer.json").is_file() or not path.is_file() or backend is None:
        return
    if json.loads(backend.to_str())["model"]["type"] != "Unigram" and _is_unigram(path):
        raise CheckpointError(
            f"{path} is a Unigram model of SentencePiece, which this release of transformers reads as BPE and so "
            "splits text wrongly: put a tokenizer.json beside it, saved by the release that the model was made with"
        )


def _is_unigram(path: Path) -> bool:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(read_bytes(path, TOKENIZER_BYTES))
    except (DecodeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model ({error}): fetch the model again") from error
    return int(model.trainer_spec.model_type) == UNIGRAM


def no_tokenizer(folder: Path, error: BaseException) -> ModelError:
    """The error for a model without a readable tokenizer."""
    damaged = any((folder / name).is_file() for name in (*FILES, MODEL))
    return (CheckpointError if damaged else ModelError)(
        f"{folder} holds no tokenizer that can be read ({shorten(first_line(error), 300)}): put the files of the "
        "original model's tokenizer beside the weights, such as tokenizer.json and tokenizer_config.json"
    )
