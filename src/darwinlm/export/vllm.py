"""Export of a model to a folder that stock vLLM serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from darwinlm.export.check import (
    REPORT,
    SAME_ARITHMETIC,
    ExportReport,
    check_masked,
    check_tokens,
    compare_streams,
    exact_decoder,
    model_streams,
)
from darwinlm.export.hf import save_model, saved_bytes, saved_digests, unchecked
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import is_custom
from darwinlm.families.pruned import pruned_classes, pruned_config
from darwinlm.families.shapes import output_name
from darwinlm.runtime.artifact import write_json
from darwinlm.runtime.errors import ExportError
from darwinlm.runtime.mapped import in_file
from darwinlm.surgery.reshape import Reshaped, Reshaper, plain_sizes
from darwinlm.surgery.sizes import BlockSizes


def export_vllm(
    checkpoint: Checkpoint,
    out: Path,
    *,
    tensor_parallel: int = 1,
    say: Callable[[str], None] = lambda message: None,
) -> ExportReport:
    """Write a model as a folder for stock vLLM, and check it.

    `out` appears by rename, after a successful check.

    Raises:
        ExportError: vLLM doesn't run the model, or the check fails.
        StorageError: The disk is full.
    """
    report = ExportReport("vllm", str(out))
    reshaper = Reshaper(checkpoint)
    say("writing")
    made, weights = _for_vllm(reshaper, tensor_parallel, report) or (checkpoint, None)
    card = checkpoint.folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else None
    with unchecked(out) as temporary:
        model = made.load(checkpoint.dtype, weights=weights, keep=partial(in_file, folder=temporary))
        save_model(model, temporary, tokenizer=checkpoint.tokenizer(), card=text, source=checkpoint.folder)
        report.bytes = saved_bytes(temporary)
        say("checking")
        tokens = check_tokens(checkpoint)
        pruned = model_streams(exact_decoder(checkpoint, tokens), tokens)
        check_masked(reshaper, pruned, tokens, report)
        written = "the folder read again", model_streams(exact_decoder(Checkpoint.open(temporary), tokens), tokens)
        report.comparisons.append(compare_streams(("pruned in memory", pruned), written, SAME_ARITHMETIC))
        report.files = saved_digests(temporary)
        write_json(temporary / REPORT, report.as_json())
    return report


def _for_vllm(reshaper: Reshaper, tensor_parallel: int, report: ExportReport) -> Reshaped | None:
    """The model with a zero head in place of each removed attention, and evenly shared KV heads; None if unchanged."""
    checkpoint = reshaper.checkpoint
    targets = [_with_attention(reshaper, plain_sizes(sizes)) for sizes in reshaper.sizes]
    check_divisible(targets, tensor_parallel)
    report.details["tensor_parallel"] = tensor_parallel
    if not is_custom(checkpoint.config):
        report.notes.append("the layers are equal: vLLM uses its class of this family")
        return None
    part = checkpoint.family.mixer or checkpoint.family.tail
    if part is not None:
        raise ExportError(
            f"--to vllm: layers of {checkpoint.family.model_type} differ in size, and vLLM runs no such model with "
            f"{part.title}: keep all layers equal"
        )
    gone = [str(sizes.block) for sizes in reshaper.sizes if not sizes.heads]
    if gone:
        zeros = "one zero head" if checkpoint.family.attention.cut == "heads" else "an attention of zeros"
        report.notes.append(f"{zeros} instead of no attention: blocks {', '.join(gone)}")
    copied = [str(sizes.block) for sizes in reshaper.sizes if sizes.owners is not None]
    if copied:
        report.notes.append(f"every query head gets a copy of its KV head: blocks {', '.join(copied)}")
    report.notes.append(
        "serve it with `vllm serve` if darwinlm is installed beside vLLM, otherwise with --trust-remote-code"
    )
    if len({sizes.experts for sizes in targets if sizes.experts}) > 1:
        raise ExportError(
            "--to vllm: blocks keep different numbers of experts, but vLLM builds all mixtures of a model with the "
            "same number: prune with units.experts=width, which narrows experts instead of dropping them"
        )
    return reshaper.model(_padded_config(checkpoint, targets), targets)


def _with_attention(reshaper: Reshaper, sizes: BlockSizes) -> BlockSizes:
    if sizes.heads or output_name(reshaper.family.attention, reshaper.template[sizes.block]) is None:
        return sizes
    if reshaper.family.attention.cut == "heads":
        return replace(sizes, heads=1, groups=1)
    full = reshaper.full(sizes.block)
    return replace(sizes, heads=full.heads, groups=full.groups)


def _padded_config(checkpoint: Checkpoint, targets: Sequence[BlockSizes]) -> Any:
    config_class, _, causal = pruned_classes(*checkpoint.family.class_names)
    layers = {int(block): dict(row) for block, row in checkpoint.config.to_dict().get("per_layer_config", {}).items()}
    for target in targets:
        row = layers.setdefault(target.block, {})
        row |= {"num_attention_heads": target.heads, "num_key_value_heads": target.groups}
        for name in ("query_groups", "stored_kv_heads"):
            row.pop(name, None)
        skip = [name for name in row.pop("skip", ()) if name != "attention"]
        if skip:
            row["skip"] = skip
    config = pruned_config(config_class, checkpoint.config, layers)
    config.architectures = [causal.__name__]
    return config


def check_divisible(targets: Sequence[BlockSizes], parts: int) -> None:
    """Refuse sizes that can't be split evenly, since vLLM doesn't check this.

    Raises:
        ExportError: A size can't be split; the message names the blocks.
    """
    if parts < 1:
        raise ExportError(f"--tensor-parallel {parts}: must be 1 or more")
    odd = [
        f"block {sizes.block} ({what} {count})"
        for sizes in targets
        for what, count in (("query heads", sizes.heads), ("KV heads", sizes.groups), ("MLP channels", sizes.width))
        if count % parts
    ]
    if odd:
        more = f" and {len(odd) - 6} more" if len(odd) > 6 else ""
        raise ExportError(
            f"--tensor-parallel {parts}: not every layer can be split into {parts} equal parts: "
            f"{', '.join(odd[:6])}{more}. "
            "Use fewer parts, or prune with units that are multiples of them"
        )
