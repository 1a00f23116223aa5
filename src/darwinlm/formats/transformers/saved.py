"""Save a smaller model as a folder for transformers, and verify it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.core_model_loading import revert_weight_conversion

from darwinlm.model.families.checkpoint import FURTHER
from darwinlm.model.families.ending import AUTOS, ending_of, outputs_of
from darwinlm.model.families.family import family_of, is_custom
from darwinlm.model.families.files import CARD
from darwinlm.model.families.loading import without_bars
from darwinlm.model.families.origin import carry
from darwinlm.model.families.shard_reading import spans
from darwinlm.model.families.stored import INDEX, SINGLE
from darwinlm.model.families.whole import is_whole, put_inside
from darwinlm.model.walk import items
from darwinlm.runtime.artifact import (
    await_files,
    damaged,
    folder_digests,
    fresh_folder,
    read_json,
    read_record,
    share,
    write_json,
    write_tensors,
    write_text,
)
from darwinlm.runtime.compute import all_finite
from darwinlm.runtime.errors import CheckpointError, NumericsError, storage_error
from darwinlm.runtime.folders import make_folder, remove
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.lock import ASIDE
from darwinlm.runtime.memory import memory_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

RECORD = "darwinlm_recipe.json"
"""File next to the weights, with the recipe of the run that wrote them and hashes of the model's files."""
MODEL_FILE = "modeling_mlx.py"
ROUNDING = 0.05
"""Largest relative difference of the logits of equal models in bfloat16."""


def save_model(
    model: PreTrainedModel,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    source: Path | None = None,
) -> None:
    """Write configuration, weights, modelling file (if layers differ) and tokenizer.

    The folder appears by rename when it is complete. An older folder of the same name is replaced. From `source`, the
    folder of the original model, generation settings and licence files are copied, and parts around the language model
    are carried along.

    Raises:
        CheckpointError: The source's generation settings aren't JSON, or its other parts can't be loaded.
        NumericsError: A weight isn't finite.
        StorageError: The disk is full or the folder can't be written.
    """
    check_numbers({name: parameter.detach() for name, parameter in model.named_parameters()}, folder)
    with unchecked(folder, "partial") as temporary, without_bars():
        model.config.dtype = next(model.parameters()).dtype
        if source is not None and is_whole(source):
            put_inside(model, source).save_pretrained(temporary, save_original_format=False)
        else:
            model.save_pretrained(temporary)
        for_other_engines(temporary, model.config)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        if source is not None:
            carry(source, temporary)
        share(temporary)


def save_around(model: PreTrainedModel, outside: Mapping[str, Tensor], shard: Path) -> None:
    """Write a shard with tensors of a model, and before it everything of the model beside weights into its folder.

    `outside` are the tensors outside the blocks by name, tied ones included. Raises as `save_shard`.
    """
    check_numbers(outside, shard)
    folder = shard.parent
    try:
        make_folder(folder)
        with fresh_folder(folder / f".{shard.name}.{secrets.token_hex(8)}.tmp") as temporary, without_bars():
            model.save_pretrained(temporary, state_dict=dict(outside))
            for_other_engines(temporary, model.config)
            share(temporary)
            weights = temporary / SINGLE
            for path in (*(path for path in sorted(temporary.iterdir()) if path != weights), weights):
                path.replace(shard if path == weights else folder / path.name)
    except (OSError, SafetensorError) as error:
        raise storage_error(shard, error) from error


def save_shard(model: PreTrainedModel, tensors: Mapping[str, Tensor], shard: Path) -> None:
    """Write some tensors of a model by their names in it, such as those of a block, as transformers stores them.

    Raises:
        NumericsError: A number isn't finite.
        StorageError: The disk is full or the file can't be written.
    """
    check_numbers(tensors, shard)
    write_tensors(shard, revert_weight_conversion(model, dict(tensors)), {"format": "pt"})


def save_index(folder: Path, shards: Sequence[Path]) -> None:
    """Write the index of a model's shards, which other machines may have written. Raises StorageError."""
    await_files(shards)
    found = {shard.name: spans(shard) for shard in shards}
    n_bytes = sum(prod(span.shape) * span.dtype.itemsize for inside in found.values() for span in inside.values())
    places = {name: shard for shard, inside in found.items() for name in inside}
    write_json(folder / INDEX, {"metadata": {"total_size": n_bytes}, "weight_map": dict(sorted(places.items()))})


def check_numbers(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse to write numbers that aren't finite. Raises NumericsError."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(all_finite(tensor)):
            raise NumericsError(f"{name} holds numbers that aren't finite (NaN or infinity): {path} isn't written")


def for_other_engines(folder: Path, config: PreTrainedConfig) -> None:
    """Add what other engines read of a saved model: older names of its rotary embedding, and a file for mlx-lm.

    Blocks that predict further tokens aren't saved, so the configuration counts none.
    """
    path = folder / "config.json"
    tree: JsonObject = read_json(path)
    if "text_config" in tree:
        tree["text_config"] |= older_rope(tree["text_config"].get("rope_parameters") or {})
    names = None if "text_config" in tree else family_of(config).older_rope
    tree |= older_rope(tree.get("rope_parameters") or {}, names)
    for part in (tree, tree.get("text_config", {})):
        for name in FURTHER:
            if part.get(name):
                part[name] = 0
    of_language = ending_of(tree, folder) == "language"
    if "text_config" not in tree and is_custom(config) and of_language and "mlx" in family_of(config).engines:
        tree["model_file"] = MODEL_FILE
        write_text(folder / MODEL_FILE, mlx_code())
    write_json(path, tree)


def mlx_code() -> str:
    """The file for mlx-lm, the same for every model."""
    return (resources.files("darwinlm.formats.mlx") / MODEL_FILE).read_text(encoding="utf-8")


def older_rope(rope: JsonObject, names: Mapping[str, str] | None = None) -> JsonObject:
    """Settings of a rotary embedding under the names from before transformers 5.

    Engines that only know these would silently take their own base. Layers that differ in more than the base can't be
    expressed in them, so the result is then empty. `names` are a family's own names for the base, by type of layers.
    """
    if names:
        return {name: rope[kind]["rope_theta"] for kind, name in names.items()}
    if "rope_theta" in rope:
        scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
        plain = rope.get("rope_type", "default") == "default"
        older = {"rope_theta": rope["rope_theta"], "rope_scaling": None if plain else scaling}
        if "partial_rotary_factor" in rope:
            older["partial_rotary_factor"] = rope["partial_rotary_factor"]
        return older
    full = rope.get("full_attention") or {}
    sliding = rope.get("sliding_attention") or {}
    if "rope_theta" not in full or sliding.get("rope_type") != "default" or full.get("rope_type") == "proportional":
        return {}
    local = {"rope_local_base_freq": sliding["rope_theta"]} if sliding["rope_theta"] != full["rope_theta"] else {}
    return older_rope(full) | local


@contextmanager
def unchecked(out: Path, suffix: str = "unchecked") -> Iterator[Path]:
    """Path of a temporary folder next to `out`, which it replaces after the body succeeds; otherwise it is deleted.

    Raises:
        StorageError: The disk is full or the folder can't be written.
    """
    try:
        make_folder(out.parent)
        with fresh_folder(out.with_name(f".{out.name}.{suffix}")) as temporary:
            yield temporary
            _put(temporary, out)
    except (OSError, SafetensorError) as error:
        raise storage_error(out, error) from error


def _put(temporary: Path, folder: Path) -> None:
    """Rename a whole folder to its name; an older one is moved aside first, and removed when the new one stands."""
    old = folder.with_name(f".{folder.name}{ASIDE}")
    remove(old)
    if folder.exists():
        folder.replace(old)
    try:
        temporary.replace(folder)
    except OSError:
        if old.exists():
            old.replace(folder)
        raise
    remove(old)


def saved_bytes(folder: Path) -> int:
    """Size of the weights in a folder in bytes."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def saved_digests(folder: Path) -> dict[str, str]:
    """Hashes of the files of a saved model, except the card, which people edit."""
    return folder_digests(folder, CARD)


def recorded_digests(record: Path) -> dict[str, str]:
    """The hashes in the field `files` of a record. Raises ArtifactError."""
    files = read_record(record).get("files")
    if not isinstance(files, dict) or not files or not all(isinstance(digest, str) for digest in files.values()):
        raise damaged(record, "it holds no hashes of files")
    return files


@torch.no_grad()
def check_saved(model: PreTrainedModel, folder: Path, tokens: Tensor, device: torch.device | None = None) -> None:
    """Load the folder again as transformers does: its weights must be the model's, and its logits up to rounding.

    `tokens` is [n, t]. Both models are moved to the `device` and run there, if it is an NVIDIA GPU with room for them;
    else they run where the model is. Raises CheckpointError if they differ; the message names the first weight that
    does.
    """
    multimodal = is_whole(folder)
    ending = ending_of(read_json(folder / "config.json"), folder)
    auto = AutoModelForImageTextToText if multimodal else AUTOS[ending]
    with without_bars():
        reloaded = auto.from_pretrained(folder, dtype=next(model.parameters()).dtype, local_files_only=True)
    reloaded = reloaded.eval().to(model.device)
    stored = reloaded.state_dict()
    difference = None
    for name, tensor in model.state_dict().items():
        stored_name = name.replace("model.", "model.language_model.", 1) if multimodal else name
        if stored_name not in stored or not torch.equal(tensor, stored[stored_name].to(tensor)):
            difference = name
            break
    if difference is None:
        on_gpu = device is not None and device.type == "cuda"
        if on_gpu and 2 * model.get_memory_footprint() <= memory_of(device).room("whole models"):
            model, reloaded = model.to(device), reloaded.to(device)
        input_ids = items.ids(tokens).to(model.device)
        logits = outputs_of(model, ending, input_ids=input_ids, use_cache=False)
        error = logits - outputs_of(reloaded, ending, input_ids=input_ids, use_cache=False)
        # Rounding depends on where the weights lie in memory.
        if not error.float().norm() <= ROUNDING * logits.float().norm():
            difference = "the logits" if ending == "language" else "its outputs"
    if difference is not None:
        raise CheckpointError(
            f"the model saved in {folder} differs from the one in memory in {difference}: don't use it, and please "
            "report this"
        )
