"""Embedding, head and settings of a model with fewer tokens. Weights are copied, so logits of kept tokens are the same.

Letters: v tokens, m residual width.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.files import GENERATION
from darwinlm.model.families.generation import renumber_words
from darwinlm.model.families.origin import RECORD, carry, origin_of
from darwinlm.model.families.sentence_transformers import LOGIT_SCORE, modules_of
from darwinlm.model.families.stored import INDEX
from darwinlm.runtime.artifact import write_json, write_tensors
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import load_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""Files that a tokenizer keeps beside tokenizer.json; all others hold the whole vocabulary."""
NUMBER = ("_token_id", "_token_index")
"""Ends of the names of settings that are a token's number, such as that of images."""
PARTS = ("text_config", "vision_config", "audio_config")


def cut_weights(checkpoint: Checkpoint, rows: Sequence[int], folder: Path) -> None:
    """Write a model with fewer tokens, without a tokenizer; one shard is in memory at a time.

    `rows` are the old numbers of the new tokens, [v]. An older target folder is replaced.

    Raises:
        CheckpointError: Its files are damaged, or name words by numbers of tokens that can't be kept.
        StorageError: The disk is full.
    """
    family, index = checkpoint.family, torch.tensor(rows)
    names = [f"{family.embedding}.weight"]
    if family.ending == "language":
        names += [f"{family.head}.weight", f"{family.head}.bias"]
    sizes = {"vocab_size": len(rows)}
    if family.tail is not None:
        names.append(f"{family.tail.embedding}.weight")
        sizes[family.tail.vocabulary] = len(rows)
    cut = {part for name in names if name in checkpoint.tensors for part in checkpoint.tensors[name].flat()}
    if quantised := sorted(cut & checkpoint.stored.packed.keys()):
        raise CheckpointError(
            f"{checkpoint.folder}: {quantised[0]} is quantised, so it can't be cut: leave out --vocab"
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    new_numbers = {old: number for number, old in enumerate(rows)}
    path = checkpoint.folder / "config.json"
    config = _renumbered(load_json(path), new_numbers)
    if checkpoint.whole_config is not None:
        config["text_config"] |= sizes
    else:
        config |= sizes
    write_json(folder / "config.json", config)
    carry(checkpoint.folder, folder)
    if (folder / GENERATION).is_file():
        settings = _renumbered(load_json(folder / GENERATION), new_numbers)
        renumber_words(settings, new_numbers)
        write_json(folder / GENERATION, settings)
    _renumber_answers(folder, new_numbers)
    write_json(folder / RECORD, vars(origin_of(checkpoint.folder, checkpoint.source)))
    for shard in sorted(set(checkpoint.stored.shards.values())):
        try:
            tensors = load_file(checkpoint.folder / shard)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{checkpoint.folder / shard} is damaged ({error}): fetch the model again") from error
        tensors |= {name: tensors[name].index_select(0, index) for name in cut & tensors.keys()}
        write_tensors(folder / shard, tensors, {"format": "pt"})
    if (checkpoint.folder / INDEX).is_file():
        write_json(folder / INDEX, {"metadata": {}, "weight_map": checkpoint.stored.shards})


def _renumber_answers(folder: Path, new_numbers: Mapping[int, int]) -> None:
    """Give the answers of a reranker, which a module of its folder names, their new numbers."""
    for module in modules_of(folder):
        path = module.folder / "config.json"
        if module.kind == LOGIT_SCORE and path.is_file():
            write_json(path, _renumbered(load_json(path), new_numbers))


def write_tokenizer(
    tokenizer: PreTrainedTokenizerBase, tree: Mapping[str, object], rows: Sequence[int], folder: Path
) -> None:
    """Write a tokenizer into an existing folder, with the tokenizer.json `tree` and the new numbers in its settings.

    `rows` are the old numbers of the new tokens, [v]. Raises StorageError if the disk is full.
    """
    before = set(folder.iterdir())
    tokenizer.save_pretrained(folder)
    for path in set(folder.iterdir()) - before:
        if path.is_file() and path.name not in TOKENIZER_FILES:
            path.unlink()
    write_json(folder / "tokenizer.json", tree)
    path = folder / TOKENIZER_FILES[0]
    new_numbers = {old: number for number, old in enumerate(rows)}
    settings = _renumbered(load_json(path), new_numbers)
    decoder = settings.get("added_tokens_decoder")
    if decoder:
        settings["added_tokens_decoder"] = {str(new_numbers[int(old)]): token for old, token in decoder.items()}
    write_json(path, settings)


def _renumbered(settings: JsonObject, new_numbers: Mapping[int, int]) -> JsonObject:
    """The settings of a file with the new numbers of its tokens; numbers without a token are removed."""
    for name, value in settings.items():
        if name in PARTS and isinstance(value, dict):
            _renumbered(value, new_numbers)
        if isinstance(value, list) and name.endswith(("_token_id", "_token_ids")):
            kept = [old for old in value if isinstance(old, int) and old in new_numbers]
            settings[name] = [new_numbers[old] for old in kept]
        elif name.endswith(NUMBER):
            settings[name] = new_numbers.get(value) if isinstance(value, int) else None
    return settings


def special_numbers(checkpoint: Checkpoint) -> set[int]:
    """Numbers of the tokens that the model's settings name, or that it answers with, which must be kept."""
    numbers: set[int] = {*checkpoint.answers}
    for name in ("config.json", GENERATION):
        path = checkpoint.folder / name
        settings: JsonObject = load_json(path) if path.is_file() else {}
        parts = [settings, *(settings[part] for part in PARTS if isinstance(settings.get(part), dict))]
        for field, value in (pair for part in parts for pair in part.items()):
            if field.endswith((*NUMBER, "_token_ids")):
                values = value if isinstance(value, list) else [value]
                numbers |= {number for number in values if isinstance(number, int)}
    return numbers


def rows_in(
    small: PreTrainedTokenizerBase, dense: PreTrainedTokenizerBase, small_size: int, dense_size: int
) -> list[int] | None:
    """Rows, in the original's embedding, of the tokens of a model with a cut vocabulary.

    Both models are given by their tokenizers and by the numbers of rows of their embeddings.

    Returns:
        Number in `dense` of every token of `small`, [v]; None if `small` isn't cut, or has tokens that `dense` lacks.
    """
    small_vocabulary, dense_vocabulary = small.get_vocab(), dense.get_vocab()
    if small_size >= dense_size or sorted(small_vocabulary.values()) != list(range(small_size)):
        return None
    if not small_vocabulary.keys() <= dense_vocabulary.keys():
        return None
    return [dense_vocabulary[token] for token in sorted(small_vocabulary, key=small_vocabulary.__getitem__)]
