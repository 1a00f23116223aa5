"""The check of every export: the written model is compared with the original on real text, layer by layer.

A chain of comparisons leads from the dense-shaped model with zeros to the exported file as its engine reads it. Each
compares the residual stream after every attention and every MLP, and the logits. Errors name the first difference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import is_custom
from darwinlm.runtime.errors import ExportError
from darwinlm.streaming.decoder import Decoder
from darwinlm.streaming.streamed import StreamedDecoder
from darwinlm.surgery.reshape import Reshaper

Streams = dict[str, Tensor]
"""Residual stream [t, m] after each sub-layer by `block N attention` and `block N mlp`, and `logits` [t, v]."""

LOGITS = "logits"
REPORT = "export.json"
"""File with the report in an exported folder."""
TOKENS = 128
SAME_ARITHMETIC = 1e-4
"""Tolerance for reordered float32 sums, as a relative difference."""
TEXT = (
    "The ferry leaves the old harbour at seven in the morning and needs a little over two hours to reach the island. "
    "Most of its passengers are people who work there: three teachers, a doctor, the woman who repairs the radio mast. "
    "In winter, when the wind comes from the north, the captain waits behind the breakwater until the sea is calmer, "
    "and nobody complains. A ticket costs 4.50 for adults and half of that for those under 12; bicycles travel free. "
    "Why does the boat carry so much flour in spring? Because the bakery on the island supplies every village on the "
    'coast during the festival, which has been held each May since 1893. "We never planned it," says the baker, "it '
    'just grew." Her recipe needs only flour, water, salt, and time. In 2021 the town council bought a second oven, '
    "and since then the queue in front of the shop has become shorter, though not by much."
)
"""Text for the check, with figures and quotation marks."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same tokens.

    Attributes:
        relative: Relative norm of the difference of their logits, after subtracting the mean of each token.
        largest: Largest difference of two logits.
        same_top: Share of tokens with the same most likely next token.
        tolerance: Largest allowed `relative`, here and after every sub-layer.
    """

    left: str
    right: str
    tokens: int
    relative: float
    largest: float
    same_top: float
    tolerance: float


@dataclass
class ExportReport:
    """Result of an export and its comparisons.

    Attributes:
        format: Format: gguf or vllm; import.
        bytes: Size of its weights.
        files: Hash of each file by its path in the folder; for gguf by the file's own name.
        notes: Differences in shape from the model, for the user.
    """

    format: str
    path: str
    bytes: int = 0
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain values for the file beside the weights, which may be published: without folders of this machine."""
        return asdict(self) | {"path": Path(self.path).name}


def check_tokens(checkpoint: Checkpoint) -> Tensor:
    """Tokens [t] of the text for the check. Raises ModelError without a tokenizer, ExportError if it doesn't fit."""
    length = min(TOKENS, int(checkpoint.config.max_position_embeddings))
    ids = checkpoint.tokenizer()(TEXT)["input_ids"][:length]
    if max(ids) >= int(checkpoint.config.vocab_size):
        raise ExportError(
            f"{checkpoint.folder}: its tokenizer gives the token {max(ids)}, but the embedding has "
            f"{checkpoint.config.vocab_size} rows"
        )
    return torch.tensor(ids)


@torch.no_grad()
def model_streams(decoder: Decoder, tokens: Tensor) -> Streams:
    """Run a model block by block on tokens [t]; the residual stream after each sub-layer and the logits, in float32."""
    streams: Streams = {}

    def before(name: str, _: Any, arguments: tuple[Tensor, ...]) -> None:
        streams[name] = arguments[0][0].float().cpu()

    mlp, arguments = decoder.family.mlp, decoder.block_arguments(tokens[None])
    hidden = decoder.embed(tokens[None])
    for number in decoder.walk(range(len(decoder.blocks))):
        reads = getattr(decoder.blocks[number], mlp.input_norm or mlp.name)  # its input is the stream after attention
        with reads.register_forward_pre_hook(partial(before, f"block {number} attention")):
            hidden = decoder.run_block(number, hidden, arguments[number])
        streams[f"block {number} mlp"] = hidden[0].float().cpu()
    with decoder.with_head():
        streams[LOGITS] = decoder.head(hidden[0]).float().cpu()
    return streams


def exact_decoder(
    checkpoint: Checkpoint, tokens: Tensor, weights: Callable[[int], dict[str, Tensor]] | None = None
) -> StreamedDecoder:
    """A model in float32 on the CPU; `weights` are those of its blocks if they aren't the checkpoint's."""
    return StreamedDecoder(checkpoint, tokens, dtype=torch.float32, device=torch.device("cpu"), weights=weights)


def compare_streams(left: tuple[str, Streams], right: tuple[str, Streams], tolerance: float) -> Comparison:
    """Compare two runs sub-layer by sub-layer.

    Raises:
        ExportError: A difference exceeds `tolerance`; the message names the first sub-layer.
    """
    ours, theirs = left[1], right[1]
    for name in ours:
        if name in theirs and name != LOGITS:
            difference = _relative(ours[name], theirs[name])
            if not difference <= tolerance:
                raise _differs(left[0], right[0], name, difference, tolerance)
    return compare_logits((left[0], ours[LOGITS]), (right[0], theirs[LOGITS]), tolerance)


def compare_logits(left: tuple[str, Tensor], right: tuple[str, Tensor], tolerance: float) -> Comparison:
    """Compare only logits [t, v]. Raises ExportError if they differ by more than `tolerance`."""
    ours, theirs = (logits - logits.mean(-1, keepdim=True) for logits in (left[1], right[1]))
    relative = _relative(ours, theirs)
    if not relative <= tolerance:
        raise _differs(left[0], right[0], "the logits", relative, tolerance)
    return Comparison(
        left=left[0],
        right=right[0],
        tokens=len(ours),
        relative=relative,
        largest=float((left[1] - right[1]).abs().max()),
        same_top=float((ours.argmax(-1) == theirs.argmax(-1)).float().mean()),
        tolerance=tolerance,
    )


def _relative(left: Tensor, right: Tensor) -> float:
    if left.shape != right.shape:
        return float("inf")
    # The median over tokens ignores a few outliers, which dominate the whole norm, so both must be small.
    difference, size = (left - right).norm(dim=-1), right.norm(dim=-1).clamp_min(1e-12)
    return float(torch.maximum(difference.norm() / size.norm(), (difference / size).median()))


def _differs(left: str, right: str, place: str, difference: float, tolerance: float) -> ExportError:
    where = place if place == "the logits" else f"the residual stream after {place}"
    return ExportError(
        f"the export fails its check: {right} and {left} differ by {difference:.2g} in {where} (allowed: "
        f"{tolerance:.2g}); nothing was written. Please report this with the model's config.json"
    )


def check_masked(reshaper: Reshaper, pruned: Streams, tokens: Tensor, report: ExportReport) -> None:
    """Compare the pruned model with its masked dense form, if its shapes differ from the stock ones.

    Raises:
        ExportError: They differ; the message names the layer.
    """
    if not is_custom(reshaper.checkpoint.config):
        return
    if reshaper.lacking_experts:
        report.notes.append("not compared with a masked dense model: there is none for removed experts")
        return
    stock, weights = reshaper.masked()
    masked = model_streams(exact_decoder(stock, tokens, weights), tokens)
    report.comparisons.append(compare_streams(("masked dense", masked), ("pruned in memory", pruned), SAME_ARITHMETIC))
