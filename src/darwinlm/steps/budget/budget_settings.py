"""The budget: the kinds of bounds, and what they are relative to."""

from __future__ import annotations

from typing import Any, TypedDict

from pydantic import Field, field_validator, model_validator

from darwinlm.runtime.quantities import ByteCount, Count, Duration, Factor, Share, Whole
from darwinlm.runtime.section import Section


class Bound(TypedDict, total=False):
    """The bound of a budget as an argument of Python; `BudgetSettings` describes each kind."""

    keep: float | str | None
    params: int | str | None
    bytes: int | str | None
    file: int | str | None
    speedup: float | str | None
    latency: str | None


BUDGETS = tuple(Bound.__annotations__)
"""Kinds of budget; a recipe names exactly one."""


class BudgetSettings(Section):
    """The bound on the smaller model: exactly one of keep, params, bytes, file, speedup and latency."""

    keep: Share | None = 0.5
    """Largest share of the block parameters to keep: 0.5 or 50%. The default if no other bound is given."""
    params: Count | None = Field(None, gt=0)
    """Parameters of the whole saved model; a tied embedding counts once: 2.7B, 350M."""
    bytes: ByteCount | None = Field(None, gt=0)
    """Weights, and the KV cache of `context` tokens, both in the saved type: 4GiB, 900MB."""
    file: ByteCount | None = Field(None, gt=0)
    """The GGUF file, tokenizer included, to 1 %: 95MB. Its type is `units.quantisation`; without one q3_k_m, if no
    larger type makes the whole model that small."""
    speedup: Factor | None = Field(None, ge=1)
    """Speed relative to the dense model on this machine, for `prefill_tokens` and `decode_tokens`: 2x."""
    latency: Duration | None = Field(None, gt=0)
    """Time for `prefill_tokens` and `decode_tokens` on this machine: 30ms, 1.5s."""
    tolerance: Share = Field(0.005, gt=0, le=0.1)
    """Largest unused share of the budget: 0.005 or 0.5%. If units are coarser, one level."""
    context: Whole = Field(4096, ge=0)
    """Tokens in the KV cache, of all parallel sequences together, for `bytes`; 0 counts only the weights."""
    prefill_tokens: Whole = Field(512, ge=0)
    """Tokens of the timed prompt; 0 skips it."""
    decode_tokens: Whole = Field(128, ge=0)
    """Number of generated tokens whose time is added; 0 skips them."""

    @field_validator("keep")
    @classmethod
    def _keep_is_a_share(cls, keep: float | None) -> float | None:
        if keep is not None and not 0.01 <= keep <= 1:
            raise ValueError("must be from 1 to 100 %" + (f"; did you mean {keep:g}%?" if 2 <= keep <= 100 else ""))
        return keep

    @model_validator(mode="before")
    @classmethod
    def _keep_gives_way(cls, data: Any) -> Any:
        if isinstance(data, dict) and "keep" not in data and any(data.get(kind) is not None for kind in BUDGETS):
            return {**data, "keep": None}
        return data

    @model_validator(mode="after")
    def _one_bound(self) -> BudgetSettings:
        given = [kind for kind in BUDGETS if getattr(self, kind) is not None]
        if not given:
            raise ValueError("no bound is given: give one of " + ", ".join(BUDGETS))
        if len(given) > 1:
            raise ValueError(f"give one bound only, not {' and '.join(given)} at once")
        if self.timed and not self.prefill_tokens and not self.decode_tokens:
            raise ValueError("prefill_tokens and decode_tokens are both 0: there is nothing to time")
        return self

    @property
    def kind(self) -> str:
        """Kind of the given bound."""
        return next(kind for kind in BUDGETS if getattr(self, kind) is not None)

    @property
    def timed(self) -> bool:
        """Whether the cost is measured time."""
        return self.kind in ("speedup", "latency")
