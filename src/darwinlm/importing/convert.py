"""Remove units without effect, save the model in this package's layout, and compare it with the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from darwinlm.artifact import write_json
from darwinlm.errors import CheckpointError, ModelError
from darwinlm.export.check import SAME_ARITHMETIC, ExportReport, check_tokens, compare_streams, model_streams
from darwinlm.export.hf import save_model, saved_bytes, tokenizer_of, unchecked
from darwinlm.export.reshape import Reshaper
from darwinlm.export.sizes import Tensors, split_rows
from darwinlm.export.source import check_target
from darwinlm.families.checkpoint import Checkpoint, is_buffer
from darwinlm.families.loading import listed
from darwinlm.families.parts import Attention, Mlp, RowUnit
from darwinlm.families.shapes import head_dim
from darwinlm.importing.foreign import Foreign, open_foreign
from darwinlm.importing.zeros import Sizes, useful_channels, useful_heads
from darwinlm.lock import hold_target
from darwinlm.surgery.shrink import split_block
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
        write_json(temporary / REPORT, asdict(report))
    return report


def _cut(foreign: Foreign, report: ExportReport) -> tuple[dict[int, dict[str, Any]], Tensors]:
    """The sizes of every layer and all tensors, without units that have no effect."""
    checkpoint, columns = foreign.checkpoint, head_dim(foreign.checkpoint.config)
    family = checkpoint.family
    tensors: Tensors = {name: checkpoint.read(name)[""] for name in checkpoint.names_outside_blocks()}
    table: dict[int, dict[str, Any]] = {}
    before, after = [0, 0], [0, 0]
    for there in foreign.sizes:
        prefix, owners = checkpoint.block_prefix(there.block), there.owners
        assert owners is not None
        row: dict[str, Any] = {}
        gone = []
        inside = checkpoint.read(prefix)
        rows: dict[RowUnit, int] = {
            "query": there.heads * columns,
            "key_value": there.groups * columns,
        }
        for part in (family.attention, family.mlp):
            part_tensors, norms = split_block(inside, part)
            if isinstance(part, Attention):
                count = there.heads
                kept = useful_heads(part_tensors, part, rows, owners, columns) if count else []
            else:
                count = there.width
                kept = useful_channels(part_tensors, part) if count else []
            before[isinstance(part, Attention)] += count
            after[isinstance(part, Attention)] += len(kept)
            if not kept:
                gone.append("attention" if isinstance(part, Attention) else "mlp")
                continue
            if isinstance(part, Attention):
                part_tensors, sizes = _cut_attention(part_tensors, part, kept, rows, owners, columns)
                row |= sizes
            else:
                part_tensors = _take(part_tensors, part, {"channel": count}, {"channel": kept}, kept)
                row |= {part.width: len(kept), **part.with_width}
            tensors |= {f"{prefix}{part.prefix}{name}": tensor for name, tensor in part_tensors.items()}
            tensors |= {prefix + name: tensor for name, tensor in norms.items()}
        table[there.block] = row | ({SKIP: gone} if gone else {})
        if gone:
            report.notes.append(f"block {there.block}: no {' and no '.join(gone)}")
    report.notes.insert(
        0, f"{after[1]} of {before[1]} query heads and {after[0]} of {before[0]} channels have an effect"
    )
    return table, tensors


def _cut_attention(
    tensors: Tensors, part: Attention, heads: list[int], have: Sizes, owners: tuple[int, ...], columns: int
) -> tuple[Tensors, dict[str, Any]]:
    """An attention with some of its query heads and the KV heads that they use, and its sizes."""
    used = sorted({owners[head] for head in heads})
    place = {group: number for number, group in enumerate(used)}
    shared = [place[owners[head]] for head in heads]
    query = [head * columns + i for head in heads for i in range(columns)]
    key_value = [group * columns + i for group in used for i in range(columns)]
    even = shared == [number * len(used) // len(heads) for number in range(len(heads))] and len(heads) % len(used) == 0
    sizes: dict[str, Any] = {"num_attention_heads": len(heads), "num_key_value_heads": len(used)}
    if not even:
        sizes |= {"num_key_value_heads": len(heads), "query_groups": shared, "stored_kv_heads": len(used)}
    return _take(tensors, part, have, {"query": query, "key_value": key_value}, query), sizes


def _take(
    tensors: Tensors, part: Attention | Mlp, have: Sizes, kept: Mapping[RowUnit, list[int]], columns: list[int]
) -> Tensors:
    """Some rows of the input projections, with the sizes `have`, and some columns of the output projection."""
    cut: Tensors = {}
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        segments = part.segments.get(owner, [])
        if segments:
            pieces = zip(segments, split_rows(tensor, segments, have), strict=True)
            cut[name] = torch.cat([piece[kept[kind]] for kind, piece in pieces])
        elif owner == part.output and leaf == "weight":
            cut[name] = tensor[:, columns].contiguous()
        else:
            cut[name] = tensor
    return cut


def _check(foreign: Foreign, folder: Path, report: ExportReport) -> None:
    """Compare the checkpoint's weights in the family's stock class with the written folder."""
    checkpoint = foreign.checkpoint
    tokens = check_tokens(checkpoint, report)
    reshaper = Reshaper(checkpoint, foreign.sizes)
    stock = model_streams(reshaper.masked(torch.float32), checkpoint.family, tokens)
    left = ("the checkpoint's weights in stock shapes", stock)
    again = Checkpoint.open(folder)
    right = ("the folder read again", model_streams(again.load(torch.float32), again.family, tokens))
    report.comparisons.append(compare_streams(left, right, SAME_ARITHMETIC))
