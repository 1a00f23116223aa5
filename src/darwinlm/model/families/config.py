"""Configurations of checkpoints: config.json, checked and opened."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from darwinlm.model.families.family import family_of
from darwinlm.model.families.loading import UNUSABLE
from darwinlm.model.families.pruned import register
from darwinlm.runtime.errors import CheckpointError, first_line
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import load_json, shorten

if TYPE_CHECKING:
    from pydantic import JsonValue

LAYERS = re.compile(r"(layers?|block_count)$")
MOST_LABELS = 1 << 17
"""Largest number of labels; transformers makes a name for each."""
SIZES = re.compile(r"(_size|_dim|n_embd|d_model|heads?|_kv|experts?|(embedding|key|value|feed_forward)_length|_count)$")
"""Ends of names of numbers by which a configuration makes lists and buffers."""
POSITIVE = frozenset(
    {"num_hidden_layers", "block_count", "hidden_size", "intermediate_size", "embedding_length", "context_length"}
)
PROBLEMS = ("regression", "single_label_classification", "multi_label_classification")
"""What the scores of a model may mean."""
DTYPES = frozenset({"float32", "float16", "bfloat16", "float64", "auto"})
IMPLEMENTATIONS = frozenset({"eager", "sdpa", "grouped_mm", "batched_mm"})
"""What a configuration may choose for attention and experts; other words can name code on the hub that would run."""
OURS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False, "is_encoder_decoder": False}
"""Fields that say how a model is called, not what it is: they have our values, whatever a checkpoint says."""


def open_config(folder: Path, model_type: str) -> PreTrainedConfig:
    """The configuration of transformers for a folder, from the model type in its config.json. Its own code isn't used.

    Raises:
        FamilyError: The architecture isn't known.
        CheckpointError: The file is damaged.
    """
    register(model_type)
    if model_type not in CONFIG_MAPPING:
        family_of(type("Unknown", (), {"model_type": model_type}))
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **OURS)
    except UNUSABLE as error:
        raise CheckpointError(f"can't read {folder / 'config.json'}: {first_line(error)}") from error


def read_config(path: Path) -> JsonObject:
    """Read and check a config.json. Raises CheckpointError if it is damaged, or has unrealistic numbers."""
    try:
        plain: JsonValue = load_json(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} isn't JSON ({shorten(error)}): fetch the model again") from error
    if not isinstance(plain, dict):
        raise CheckpointError(f"{path} names no model_type: it holds a {type(plain).__name__}, not a mapping")
    check_config(plain, path)
    reserved = next((name for name in plain if _is_method(name)), None)
    if reserved is not None:
        raise CheckpointError(f"{path}: {shorten(reserved)} is a name that transformers uses itself: remove the field")
    return plain


def _is_method(name: str) -> bool:
    """Whether a configuration's class would lose a method or a computed value to a field of this name."""
    attribute = inspect.getattr_static(PreTrainedConfig, name, None)
    computed = isinstance(attribute, property) and attribute.fset is None
    return computed or callable(attribute) or isinstance(attribute, classmethod | staticmethod)


def check_config(plain: Mapping[str, object], path: Path | str) -> None:
    """Refuse a configuration, the contents of config.json or of a GGUF header without prefix, with unrealistic numbers.

    Raises CheckpointError, which names the path and the field.
    """
    for name, value in _leaves(plain):
        if "_implementation" in name and isinstance(value, str) and value not in IMPLEMENTATIONS:
            raise CheckpointError(
                f"{path}: {shorten(name)} is {shorten(value)}, which may be code from elsewhere: set it to sdpa, or "
                "remove the field"
            )
        if name.startswith("per_layer_config.") and name.endswith(("vocab_size", "hidden_size")):
            raise CheckpointError(f"{path}: {shorten(name)} can't differ between layers: fetch the model again")
        most = _largest(name)
        least = 1 if name.rpartition(".")[2] in POSITIVE else -most
        if (isinstance(value, int) and not least <= value <= most) or value != value:  # noqa: PLR0124 - NaN
            raise CheckpointError(f"{path}: {shorten(name)} is {shorten(value)}, which no model has: fetch it again")
    _check_labels(plain, path)
    dtype = plain.get("dtype", plain.get("torch_dtype"))
    if dtype is not None and (not isinstance(dtype, str) or dtype not in DTYPES):
        raise CheckpointError(
            f"{path}: dtype is {shorten(dtype)}, but weights must be float32, float16 or bfloat16: use the model as it "
            "was before it was quantised"
        )


def _check_labels(plain: Mapping[str, object], path: Path | str) -> None:
    """Refuse labels that transformers can't read, and a meaning of scores that nobody knows. Raises CheckpointError."""
    names, problem = plain.get("id2label"), plain.get("problem_type")
    if names is not None and not (isinstance(names, Mapping) and all(str(number).isdecimal() for number in names)):
        raise CheckpointError(f"{path}: id2label must be the names of labels by their numbers: fetch the model again")
    if problem is not None and problem not in PROBLEMS:
        raise CheckpointError(
            f"{path}: problem_type is {shorten(problem)}, but must be one of {', '.join(PROBLEMS)}: correct it, or "
            "remove the field"
        )


def _largest(name: str) -> int:
    """Largest realistic number in a field."""
    if name == "num_labels":
        return MOST_LABELS
    if LAYERS.search(name):
        return 2048
    return 1 << 24 if SIZES.search(name) else 1 << 53


def _leaves(tree: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The plain values in a tree, each with its path: the names that lead to it, joined by dots."""
    unvisited: list[tuple[str, object]] = [("", tree)]
    while unvisited:
        path, value = unvisited.pop()
        if isinstance(value, Mapping):
            unvisited += [(f"{path}.{name}" if path else str(name), inner) for name, inner in value.items()]
        elif isinstance(value, list):
            unvisited += [(path, inner) for inner in value]
        else:
            yield path, value
