"""Remove units without effect, save the model in this package's layout, and compare it with the original."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.database.levels import Kept, Level, kept_groups
from darwinlm.export.check import (
    SAME_ARITHMETIC,
    ExportReport,
    check_tokens,
    compare_streams,
    exact_decoder,
    model_streams,
)
from darwinlm.export.hf import save_model, saved_bytes, saved_digests, tokenizer_of, unchecked
from darwinlm.export.source import check_target
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.loading import listed
from darwinlm.families.parts import Attention, Mlp, ModuleKind, Part, RowUnit
from darwinlm.families.shapes import ModuleShape, head_dim
from darwinlm.families.stored import is_buffer
from darwinlm.importing.foreign import open_foreign
from darwinlm.runtime.artifact import write_json
from darwinlm.runtime.errors import CheckpointError, ModelError
from darwinlm.runtime.lock import hold_target
from darwinlm.surgery.reshape import Reshaper
from darwinlm.surgery.shrink import layer_overrides, shrink_tensors, split_block
from darwinlm.surgery.sizes import BlockSizes, Tensors, head_owners, split_rows
from darwinlm.surgery.stitch import SKIP, empty_model, fill, smaller_config

REPORT = "import.json"


def import_model(
    folder: Path,
    out: Path,
    *,
    family: str | None = None,
    head_size: int | None = None,
    query_groups: str | None = None,
    overwrite: bool = False,
    allow_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> ExportReport:
    """Convert a pruned checkpoint: zeros are removed, and layers of other shapes are described in the configuration.

    `out` appears by rename, after a successful check. `family` is the model type of the dense model; None detects it.
    `head_size` is the number of columns of a head; None uses the configuration. `query_groups` is one of
    `darwinlm.importing.foreign.QUERY_GROUPS`.

    Raises:
        ModelError, FamilyError, CheckpointError: The checkpoint isn't supported.
        ExportError: The result differs from the original; the message names the layer.
        StorageError: The disk is full.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no model at '{folder}': give the folder of a pruned model")
    foreign = open_foreign(
        folder, family=family, head_dim=head_size, query_groups=query_groups, allow_remote_code=allow_remote_code
    )
    check_target(out, folder, folder=True, overwrite=overwrite)
    checkpoint = foreign.checkpoint
    report = ExportReport("import", str(out), details={"family": checkpoint.family.model_type})
    say("reading")
    table, tensors = _cut(foreign, report)
    dtype = next(iter(tensors.values())).dtype
    config = smaller_config(checkpoint, table)
    model = empty_model(config, checkpoint)
    left, more = fill(model, tensors)
    tied = getattr(model, "_tied_weights_keys", None) or {}
    more = [name for name in more if name not in tied and not is_buffer(name)]
    if more:
        raise CheckpointError(
            f"{folder} holds {listed(more)}, which a {checkpoint.family.model_type} model does not have: give the "
            "right --family"
        )
    if left:
        raise ModelError(f"{folder} lacks {', '.join(left[:3])}: it isn't a whole model")
    with hold_target(out), unchecked(out) as temporary:
        save_model(model, temporary, tokenizer=tokenizer_of(checkpoint))
        del model, tensors
        report.bytes = saved_bytes(temporary)
        report.details["dtype"] = str(dtype).removeprefix("torch.")
        say("checking")
        _check(foreign, temporary, report)
        report.files = saved_digests(temporary)
        write_json(temporary / REPORT, report.as_json())
    return report


def _cut(foreign: Reshaper, report: ExportReport) -> tuple[dict[int, dict[str, Any]], Tensors]:
    """The sizes of every layer and all tensors, without units that have no effect."""
    checkpoint, columns = foreign.checkpoint, head_dim(foreign.checkpoint.config)
    family = checkpoint.family
    tensors: Tensors = {name: checkpoint.read(name)[""] for name in checkpoint.names_outside_blocks()}
    table: dict[int, dict[str, Any]] = {}
    before, after = Counter[str](), Counter[str]()
    for there in foreign.sizes:
        prefix, row = checkpoint.block_prefix(there.block), table.setdefault(there.block, {})
        gone = []
        inside = checkpoint.read(prefix)
        counts: dict[ModuleKind, int] = {"attention": there.heads, "mlp": there.width}
        for kind, count in counts.items():
            part = family.module(kind)
            found, norms = split_block(inside, part)
            useful = useful_units(found, part, there, columns) if count else []
            before[kind] += count
            after[kind] += len(useful)
            if not useful:
                gone.append(kind)
                continue
            shape = _shape(there, part, found, columns)
            level, kept, owners = _kept(shape, useful, found[f"{part.output}.weight"])
            row |= layer_overrides(family, shape, level, owners)
            cut = shrink_tensors(family, shape, found, kept)
            tensors |= {f"{prefix}{part.prefix}{name}": tensor for name, tensor in cut.items()}
            tensors |= {prefix + name: tensor for name, tensor in norms.items()}
        if gone:
            row[SKIP] = gone
            report.notes.append(f"block {there.block}: no {' and no '.join(gone)}")
    heads, channels = (f"{after[kind]} of {before[kind]}" for kind in ("attention", "mlp"))
    report.notes.insert(0, f"{heads} query heads and {channels} channels have an effect")
    return table, tensors


def useful_units(tensors: Tensors, part: Part, sizes: BlockSizes, columns: int) -> list[int]:
    """Query heads or channels with an effect; one is kept if the output has a bias.

    The output columns of a useful head and its values aren't zero; nor is a projection of a useful channel (silu and
    gelu map zero to zero).
    """
    output, rows = tensors[f"{part.output}.weight"].ne(0).any(0), sizes.rows(columns)
    if isinstance(part, Attention):
        values = _rows(tensors, part, part.key_value[1], rows)[-1].reshape(-1, columns).any(-1)
        useful = output.reshape(-1, columns).any(-1) & values[list(head_owners(sizes))]
    else:
        inputs = dict.fromkeys(part.inputs) if isinstance(part, Mlp) else ()
        useful = torch.stack([output, *(each for name in inputs for each in _rows(tensors, part, name, rows))]).all(0)
    bias = tensors.get(f"{part.output}.bias")
    return useful.nonzero()[:, 0].tolist() or ([0] if bias is not None and bool(bias.ne(0).any()) else [])


def _rows(tensors: Tensors, part: Part, name: str, sizes: Mapping[RowUnit, int]) -> list[Tensor]:
    """Masks of the nonzero rows of a projection, including its bias; one mask for each fused part."""
    nonzero = tensors[f"{name}.weight"].ne(0).any(1)
    bias = tensors.get(f"{name}.bias")
    return split_rows(nonzero if bias is None else nonzero | bias.ne(0), part.segments[name], sizes)


def _shape(there: BlockSizes, part: Part, tensors: Tensors, columns: int) -> ModuleShape:
    output = f"{part.output}.weight"
    width, named = tensors[output].shape[1], f"{part.prefix}{output}"
    if isinstance(part, Attention):
        owners = there.owners
        return ModuleShape(there.block, "attention", {}, there.groups, 0, columns, width, named, query_groups=owners)
    return ModuleShape(there.block, "mlp", {}, 1, 1, 1, width, named)


def _kept(shape: ModuleShape, units: list[int], output: Tensor) -> tuple[Level, Kept, tuple[int, ...] | None]:
    """Units of a sub-layer as a level and the kept part, with the KV heads if they serve different numbers of heads."""
    columns = (torch.tensor(units)[:, None] * shape.head_dim + torch.arange(shape.head_dim)).flatten()
    if shape.query_groups is None:
        return Level(1, 1, len(units), 0), Kept(columns, output[:, columns]), None
    level = Level(len({shape.query_groups[head] for head in units}), 0, len(columns), 0, len(units))
    groups, owners = kept_groups(shape, level, columns)
    return level, Kept(columns, output[:, columns], groups), owners


def _check(foreign: Reshaper, folder: Path, report: ExportReport) -> None:
    checkpoint = foreign.checkpoint
    tokens = check_tokens(checkpoint, report)
    masked, weights = foreign.masked()
    stock = model_streams(exact_decoder(masked, tokens, weights), tokens)
    left = ("the checkpoint's weights in stock shapes", stock)
    right = ("the folder read again", model_streams(exact_decoder(Checkpoint.open(folder), tokens), tokens))
    report.comparisons.append(compare_streams(left, right, SAME_ARITHMETIC))
