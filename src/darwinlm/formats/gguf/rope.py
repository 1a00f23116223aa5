"""The rotary embedding in a GGUF file: keys, and tensors of divisors.

llama.cpp rotates pair j of a head's h columns by `position · base^(-2j/h) / divisor_j`. Architectures that rotate whole
heads can also represent a rotation of the first r columns. A pair's divisor compensates for the different exponent, and
pairs without rotation get a very large divisor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.formats.gguf.quirks import quirks
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.json_values import JsonObject

if TYPE_CHECKING:
    from gguf import GGUFWriter

OTHERWISE = "transformers runs it, and vLLM may"
STILL = 1e30
"""Divisor of a pair without rotation."""
KINDS = ("default", "linear", "yarn", "llama3", "longrope", "dynamic")
FAST, SLOW = 32.0, 1.0
"""Rotations that bound YaRN's ramp. llama.cpp ignores a different lower bound in the file (seen in b9190)."""


class UnsupportedError(Exception):
    """llama.cpp doesn't support the model, for a reason, a clause; `export_gguf` tells the user."""

    def __init__(self, reason: str, remedy: str = OTHERWISE) -> None:
        super().__init__(f"{reason}. {remedy}")
        self.reason = reason


@dataclass(frozen=True)
class Rope:
    """A rotary embedding.

    Attributes:
        kind: One of `KINDS`.
        base: Base of the frequencies.
        turned: Number of rotated columns of a head, from the first on.
        columns: Columns of a head.
        attention: Factor on cosines and sines.
        scores: Factor on the scores of an architecture in which llama.cpp derives their scale from yarn's too; None
            in others.
        rounded: Whether the bounds of yarn's ramp are those of the model rounded, since llama.cpp can't do otherwise.
        frequencies: Those of the model's own rotary embedding, [turned / 2]; None without one.
        divisors: Divisors of the frequencies in the file, [columns / 2] float32, if they don't follow from the kind.
        values: Fields of the configuration.
    """

    kind: str
    base: float
    turned: int
    columns: int
    attention: float = 1.0
    scores: float | None = None
    rounded: bool = False
    frequencies: Tensor | None = None
    divisors: Tensor | None = None
    values: JsonObject = field(default_factory=dict)

    @property
    def per_frequency(self) -> bool:
        """Whether every pair has its own divisor, stored in a tensor that not all architectures read."""
        return self.kind in ("llama3", "longrope") or (self.kind == "yarn" and not self.plain_yarn)

    @property
    def plain_yarn(self) -> bool:
        """Whether the bounds of its ramp are those of llama.cpp."""
        bounds = self.values.get("beta_fast") or FAST, self.values.get("beta_slow") or SLOW
        return bounds == (FAST, SLOW) and bool(self.values.get("truncate", True))

    @property
    def score_multiplier(self) -> float:
        """The w with which (attention · (1 + w · ln(factor)))² is the factor on scores of yarn; 0 if they have none."""
        factor = float(self.values.get("factor", 1.0))
        if self.kind != "yarn" or self.scores is None or factor <= 1:
            return 0.0
        return (math.sqrt(self.scores) / self.attention - 1) / math.log(factor)

    def with_rounded_bounds(self) -> Rope:
        """The same with rounded bounds of yarn's ramp, if it has others."""
        truncated = replace(self, rounded=True, values={**self.values, "truncate": True})
        return truncated if self.kind == "yarn" and not self.plain_yarn and truncated.plain_yarn else self

    @property
    def original(self) -> int:
        """Original context length of the model (yarn and longrope)."""
        return int(self.values["original_max_position_embeddings"])


def read_rope(checkpoint: Checkpoint, columns: int) -> Rope:
    """The rotary embedding of a model with heads of so many columns; that of the full layers if sliding ones differ.

    Raises UnsupportedError if llama.cpp doesn't support it.
    """
    config, of_layers = checkpoint.config, ""
    values = dict(getattr(config, "rope_parameters", None) or {})
    if "full_attention" in values:
        values, of_layers = dict(values["full_attention"]), "full_attention_"
    kind = str(values.get("rope_type", "default"))
    share = values.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if kind == "longrope":
        values.setdefault("original_max_position_embeddings", getattr(config, "original_max_position_embeddings", None))
    rotary = checkpoint.outline.base_model.rotary_emb
    rope = Rope(
        kind,
        float(values.get("rope_theta", 10000.0)),
        turned=int(columns * (1.0 if share is None else float(share))),
        columns=columns,
        attention=float(getattr(rotary, f"{of_layers}attention_scaling", 1.0)),
        frequencies=getattr(rotary, f"{of_layers}inv_freq", None),
        values=values,
    )
    stock = checkpoint.family.gguf
    for complete in quirks(None if stock is None else stock.rope):
        rope = complete(rope, config)
    if rope.kind not in KINDS:
        raise UnsupportedError(f"its rope scaling is of the type {rope.kind}")
    return rope


def magnitude(factor: float, weight: float = 1.0) -> float:
    """Factor of YaRN on cosines and sines, arXiv 2309.00071, section 3.4."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def write_rope(writer: GGUFWriter, rope: Rope, *, whole_heads: bool) -> None:
    """Add the keys to a file, of an architecture that only rotates `whole_heads` or not."""
    from gguf import RopeScalingType

    writer.add_rope_dimension_count(rope.columns if whole_heads else rope.turned)
    writer.add_rope_freq_base(rope.base)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope.values["factor"]))
    elif rope.kind == "yarn" and not rope.plain_yarn:
        writer.add_rope_scaling_attn_factors(rope.attention)  # everything else is in the divisors
    elif rope.kind == "yarn":
        factor = float(rope.values["factor"])
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(rope.original)
        # llama.cpp multiplies cosines by a factor that follows from the scaling. With a multiplier w in the file it
        # doesn't, but multiplies scores by the square of 1 + w · ln(factor).
        multiplier = rope.score_multiplier
        assumed = 1.0 if multiplier else magnitude(factor)
        writer.add_rope_scaling_attn_factors(rope.attention / assumed)
        if multiplier:
            writer.add_rope_scaling_yarn_log_mul(multiplier)
    elif rope.kind == "longrope":
        writer.add_rope_scaling_type(RopeScalingType.LONGROPE)
        writer.add_rope_scaling_orig_ctx_len(rope.original)
        writer.add_rope_scaling_attn_factors(rope.attention)


def rope_tensors(rope: Rope, *, whole_heads: bool) -> dict[str, Tensor]:
    """Divisors of the frequencies [h / 2], or [turned / 2], by the names of their tensors in the file."""
    if rope.divisors is not None:
        return {"rope_freqs.weight": rope.divisors}
    if rope.kind == "longrope":
        return {
            f"rope_factors_{name}.weight": _divisors(rope, torch.tensor(rope.values[f"{name}_factor"]), whole_heads)
            for name in ("long", "short")
        }
    if rope.per_frequency:
        assert rope.frequencies is not None, "a scaled rotary embedding has frequencies"
        plain = rope.base ** -(torch.arange(0, rope.turned, 2, dtype=torch.float64) / rope.turned)
        return {"rope_freqs.weight": _divisors(rope, plain / rope.frequencies, whole_heads)}
    if whole_heads and rope.turned < rope.columns:
        return {"rope_freqs.weight": _divisors(rope, torch.ones(rope.turned // 2), whole_heads)}
    return {}


def _divisors(rope: Rope, stretched: Tensor, whole_heads: bool) -> Tensor:
    """Convert divisors [turned / 2] of the model's frequencies to those of the file's frequencies."""
    if not whole_heads or rope.turned == rope.columns:
        return stretched.float()
    pairs = torch.arange(0, rope.turned, 2, dtype=torch.float64)
    ratio = rope.base ** (pairs / rope.turned - pairs / rope.columns)
    unrotated = torch.full((rope.columns // 2 - len(pairs),), STILL, dtype=torch.float64)
    return torch.cat([stretched.double() * ratio, unrotated]).float()
