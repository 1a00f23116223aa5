"""The model in dense shapes with zeros for pruned units, for tools that need stock shapes and as a test oracle."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from darwinlm.errors import ExportError
from darwinlm.export.check import SAME_ARITHMETIC, ExportReport, Streams, compare_streams, model_streams
from darwinlm.export.hf import is_custom
from darwinlm.export.reshape import Reshaper


def masked_dense(reshaper: Reshaper, dtype: torch.dtype) -> Any:
    """The stock class at the sizes before pruning, with zeros for pruned units, so that results are the same.

    Raises:
        ExportError: Whole experts were removed, or tensors are missing.
    """
    if reshaper.lacking_experts:
        raise ExportError(
            f"--to dense: block {reshaper.lacking_experts[0]} lost whole experts, and the stock model would "
            "still send tokens to them, even to zeros. Use --to hf"
        )
    return reshaper.model(reshaper.stock, [reshaper.full(sizes.block) for sizes in reshaper.sizes], dtype)


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
    masked = model_streams(masked_dense(reshaper, torch.float32), reshaper.family, tokens)
    report.comparisons.append(compare_streams(("masked dense", masked), ("pruned in memory", pruned), SAME_ARITHMETIC))
