"""Checkpoints whose layers may differ in size and whose configuration may not describe this.

The family is detected from the tensor names, and the sizes of every layer from the shapes. Code in the checkpoint never
runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from darwinlm.families.bounds import LIMITS
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.config import read_config
from darwinlm.families.family import PREFIX, Family, families
from darwinlm.families.parts import Attention, Mlp
from darwinlm.families.stored import Stored
from darwinlm.runtime.errors import CheckpointError, FamilyError, ModelError, first_line
from darwinlm.surgery.reshape import Reshaper
from darwinlm.surgery.sizes import BlockSizes

SIZES = ("num_attention_heads", "num_key_value_heads", "intermediate_size", "num_hidden_layers")
QUERY_GROUPS = ("first", "spread")
"""Assignment of query heads to KV heads if their number isn't a multiple. `first`: the i-th query head uses the KV head
of the i-th head in the dense model. `spread`: they are distributed as evenly as possible."""


def open_foreign(
    folder: Path,
    *,
    family: str | None = None,
    head_dim: int | None = None,
    query_groups: str | None = None,
    allow_remote_code: bool = False,
) -> Reshaper:
    """Read a checkpoint's shapes.

    Options are those of `darwinlm.importing.convert.import_model`.

    Returns:
        The checkpoint with the stock configuration of the dense model, and the sizes of its blocks with the KV head of
        each query head.

    Raises:
        ModelError: The folder holds no model, or one of this package.
        FamilyError: The family isn't known.
        CheckpointError: The weights don't fit the family; the message names the option to give.
    """
    raw = _configuration(folder)
    model_type = str(raw.get("model_type", ""))
    shapes = Stored(folder).shapes()
    described = _family(model_type, family, shapes)
    if described.mlp.experts is not None:
        raise FamilyError(f"{folder} is a mixture of experts ({described.model_type}), which can't be imported yet")
    if (part := described.mixer or described.tail) is not None:
        raise FamilyError(
            f"{folder} has blocks with {part.title} ({described.model_type}), which can't be imported yet"
        )
    blocks = _count_blocks(described, shapes, raw, folder)
    columns = head_dim or raw.get("head_dim") or _columns(raw, folder)
    query, key, widths = _rows(folder, described, shapes, blocks)
    for block, count in enumerate((*query, *key)):
        if count % columns:
            raise CheckpointError(
                f"{folder}: block {block % blocks} has {count} rows of queries or keys, and heads of {columns} columns "
                "don't fit: give the right one with --head-dim"
            )
    heads, groups = (tuple(count // columns for count in counts) for counts in (query, key))
    for block, (some, of) in enumerate(zip(heads, groups, strict=True)):
        if some < 0 or of < 0 or (some > 0) != (of > 0):
            raise CheckpointError(f"{folder}: block {block} has {some} query heads and {of} KV heads: fetch it again")
    _check_shapes(folder, described, shapes, query, key, widths)
    stock = _stock_sizes(raw, heads, groups, widths)
    config = _config(raw, described, shapes, {**stock, "num_hidden_layers": blocks, "head_dim": columns}, folder)
    checkpoint = Checkpoint(folder, config, described, str(folder), allow_remote_code)
    share = stock["num_attention_heads"] // stock["num_key_value_heads"]
    sizes = []
    for block, (some, of, width) in enumerate(zip(heads, groups, widths, strict=True)):
        owners = _owners(block, some, of, share, _kept_heads(raw, block, some), query_groups)
        sizes.append(BlockSizes(block, some, of, width, owners))
    return Reshaper(checkpoint, sizes)


def _rows(
    folder: Path, family: Family, shapes: dict[str, tuple[int, ...]], blocks: int
) -> tuple[list[int], list[int], tuple[int, ...]]:
    """Columns of the output projection, rows of keys, and channels of the MLP in each block; 0 for absent ones."""

    def shape(part: Attention | Mlp, name: str, axis: int) -> list[int]:
        names = [f"{family.layers}.{i}.{part.name}.{name}.weight" for i in range(blocks)]
        for one in names:
            if len(shapes.get(one, (1, 1))) != 2:
                raise CheckpointError(f"{folder}: the tensor {one} is no matrix: fetch the model again")
        return [shapes[one][axis] if one in shapes else 0 for one in names]

    attention, mlp = family.attention, family.mlp
    query, widths = shape(attention, attention.output, 1), tuple(shape(mlp, mlp.output, 1))
    segments = attention.segments[attention.key_value[0]]
    key = [
        (rows - segments.count("query") * queries) // segments.count("key_value")
        for rows, queries in zip(shape(attention, attention.key_value[0], 0), query, strict=True)
    ]
    return query, key, widths


def _check_shapes(
    folder: Path,
    family: Family,
    shapes: dict[str, tuple[int, ...]],
    query: Sequence[int],
    key_value: Sequence[int],
    widths: Sequence[int],
) -> None:
    """Check that the shapes of all projections fit each other. Raises CheckpointError."""
    hidden = shapes[f"{family.embedding}.weight"][-1]
    for block in range(len(query)):
        rows = {"query": query[block], "key_value": key_value[block], "channel": widths[block]}
        for part, inner in ((family.attention, "query"), (family.mlp, "channel")):
            if not rows[inner]:
                continue
            wanted = {name: (sum(rows[kind] for kind in kinds), hidden) for name, kinds in part.segments.items()}
            for name, shape in {**wanted, part.output: (hidden, rows[inner])}.items():
                full = f"{family.layers}.{block}.{part.name}.{name}.weight"
                if shapes.get(full) != shape:
                    has = " x ".join(map(str, shapes.get(full, ()))) or "missing"
                    raise CheckpointError(
                        f"{folder}: the tensor {full} is {has}, but the others require {shape[0]} x {shape[1]}: fetch "
                        "the model again"
                    )


def _family(model_type: str, stated: str | None, shapes: dict[str, tuple[int, ...]]) -> Family:
    known = families()
    chosen = stated or model_type
    if chosen in known:
        return known[chosen]
    if stated is not None:
        raise FamilyError(f"--family {stated}: known are {', '.join(known)}")
    layer = [name for name in shapes if name.startswith("model.layers.") and ".self_attn." in name]
    if any(name.endswith("q_norm.weight") for name in layer):
        return known["qwen3"]
    if any(name.endswith("q_proj.bias") for name in layer) and not any(name.endswith("o_proj.bias") for name in layer):
        return known["qwen2"]
    if any(name.endswith("q_proj.weight") for name in layer):
        return known["llama"]
    raise FamilyError(
        f"the model type '{model_type}' isn't known, and its tensors fit no known family: give --family, one of "
        f"{', '.join(known)}"
    )


def _count_blocks(family: Family, shapes: dict[str, tuple[int, ...]], raw: dict[str, Any], folder: Path) -> int:
    pattern = re.compile(rf"{re.escape(family.layers)}\.(\d{{1,1000}})\.")
    numbers = {int(match[1]) for name in shapes if (match := pattern.match(name))}
    if not numbers or f"{family.embedding}.weight" not in shapes:
        raise CheckpointError(f"{folder} holds no tensors of a {family.model_type} model: give the right --family")
    blocks = max(numbers) + 1
    stated = raw.get("num_hidden_layers")
    if blocks > LIMITS["num_hidden_layers"] or (numbers != set(range(blocks)) and blocks != stated):
        gap = next((number for number in range(blocks) if number not in numbers), blocks)
        raise CheckpointError(
            f"{folder} holds tensors of block {blocks - 1:,}, but none of block {gap:,}, and its config.json doesn't "
            f"state {blocks:,} blocks: number the blocks without gaps"
        )
    return blocks


def _columns(raw: dict[str, Any], folder: Path) -> int:
    heads, hidden = raw.get("num_attention_heads"), raw.get("hidden_size")
    if isinstance(heads, int) and isinstance(hidden, int) and 0 < heads <= hidden:
        return hidden // heads
    raise CheckpointError(f"{folder / 'config.json'} doesn't give the size of a head: give it with --head-dim")


def _stock_sizes(
    raw: dict[str, Any], heads: tuple[int, ...], groups: tuple[int, ...], widths: tuple[int, ...]
) -> dict[str, int]:
    """Sizes of a stock model that every layer fits into, from the configuration and the largest layers."""
    sizes = {}
    for name, largest in zip(SIZES, (max(heads), max(groups), max(widths)), strict=False):
        stated = raw.get(name)
        sizes[name] = max(stated if isinstance(stated, int) else 1, largest, 1)
    share = -(-sizes["num_attention_heads"] // sizes["num_key_value_heads"])
    sizes["num_attention_heads"] = share * sizes["num_key_value_heads"]
    return sizes


def _configuration(folder: Path) -> dict[str, Any]:
    """The fields of config.json. Raises ModelError or CheckpointError if it isn't that of another tool's model."""
    path = folder / "config.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no model: there is no config.json in it")
    raw = read_config(path)
    if str(raw.get("model_type", "")).startswith(PREFIX):
        raise ModelError(f"{folder} is already a darwinlm model and needs no import")
    if raw.get("quantization_config") is not None:
        raise CheckpointError(f"{path}: a quantised model can't be imported: give the one that it was made from")
    return raw


def _config(
    raw: dict[str, Any], family: Family, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int], folder: Path
) -> Any:
    embedding = shapes[f"{family.embedding}.weight"]
    if len(embedding) != 2:
        raise CheckpointError(f"{folder}: the tensor {family.embedding}.weight is no matrix: fetch the model again")
    vocabulary, hidden = embedding
    plain = {
        name: value
        for name, value in raw.items()
        if name not in ("model_type", "architectures", "auto_map", "per_layer_config", "transformers_version", *SIZES)
    }
    head = f"{family.head}.weight" in shapes
    sizes |= {"vocab_size": vocabulary, "hidden_size": hidden}
    tied = bool(raw.get("tie_word_embeddings", False)) or not head
    try:
        config = AutoConfig.for_model(family.model_type, **{**plain, **sizes, "tie_word_embeddings": tied})
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        reason = first_line(error)
        raise CheckpointError(
            f"{folder / 'config.json'} describes no valid {family.model_type} model: {reason}"
        ) from error
    first = f"{family.layers}.0."
    inside = [name.removeprefix(first) for name in shapes if name.startswith(first)]
    for field, part in (("attention_bias", family.attention), ("mlp_bias", family.mlp)):
        if hasattr(config, field):
            setattr(config, field, any(name.startswith(part.name + ".") and name.endswith(".bias") for name in inside))
    return config


def _kept_heads(raw: dict[str, Any], block: int, count: int) -> list[int] | None:
    """Indices of this block's query heads in the dense model, if the configuration has such a list."""
    for value in raw.values():
        if isinstance(value, dict):
            heads = value.get(str(block))
        elif isinstance(value, list) and len(value) > block:
            heads = value[block]
        else:
            continue
        if isinstance(heads, dict):
            heads = next((inner for inner in heads.values() if isinstance(inner, list)), None)
        if not isinstance(heads, list) or not all(isinstance(head, int) and head >= 0 for head in heads):
            continue
        if len(heads) == count and sorted(set(heads)) == heads:
            return heads
    return None


def _owners(
    block: int, heads: int, groups: int, share: int, kept: list[int] | None, chosen: str | None
) -> tuple[int, ...]:
    if not heads:
        return ()
    if kept is not None and max(kept) < groups * share:
        return tuple(head // share for head in kept)
    if heads % groups == 0:
        return tuple(head // (heads // groups) for head in range(heads))
    if chosen == "first":
        return tuple(min(head // share, groups - 1) for head in range(heads))
    if chosen == "spread":
        return tuple(head * groups // heads for head in range(heads))
    raise CheckpointError(
        f"block {block}: {heads} query heads over {groups} KV heads, and their assignment isn't known: give "
        f"--query-groups {' or '.join(QUERY_GROUPS)}, depending on the model's code"
    )
