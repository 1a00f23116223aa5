"""Settings of the units of removal: what is removed from a module at once, and at which sizes."""

from __future__ import annotations

from math import lcm
from typing import Literal

from pydantic import Field, field_validator

from darwinlm.model.quantisation import QUANTISATIONS, known_quantisation
from darwinlm.runtime.quantities import Repeats, Share
from darwinlm.runtime.section import Section

AttentionUnit = Literal["kv_group", "query_head", "lattice"]
ExpertUnit = Literal["both", "whole", "width"]


class UnitsSettings(Section):
    """Units of removal, and levels of each module."""

    attention: AttentionUnit = "lattice"
    """`kv_group`: whole KV groups. `lattice`: KV groups times query heads per group, for unmodified engines.
    `query_head`: any query head, while K and V stay (the paper's; without grouping, K and V are removed too)."""
    experts: ExpertUnit = "both"
    """What is removed from a mixture of experts. `whole`: whole experts. `width`: the same number of channels from
    every expert. `both`: experts and channels. At least as many experts as a token uses stay, or the whole mixture is
    removed."""
    mlp_multiple: Repeats = Field(32, gt=0)
    """MLP widths are multiples of this: 32 suits Q8_0 and Q4_0, 256 suits K-quants."""
    quantisation: str | None = None
    """Quantisation that will follow: q4_k_m and the other K-quants (groups of 256 columns), awq, gptq and w4a16 (128),
    fp8, int8 and q8_0 (32). MLP widths, and query heads times head size, are then multiples of the group, except in
    modules that stay dense."""
    levels: Literal["all", "paper"] | tuple[Share, ...] = "all"
    """`all` levels of the units; `paper`: 0, 10 % ... 100 % removed; or a list of shares to keep, such as
    [75%, 50%, 25%]. Removed and dense are always among the levels."""

    @field_validator("quantisation")
    @classmethod
    def _quantisation_is_known(cls, name: str | None) -> str | None:
        return None if name is None else known_quantisation(name)

    @property
    def group(self) -> int:
        """Columns of a group of the quantisation; 1 without one."""
        return 1 if self.quantisation is None else QUANTISATIONS[self.quantisation].columns

    @property
    def mlp_step(self) -> int:
        """Common multiple of all MLP widths."""
        return lcm(self.mlp_multiple, self.group)

    @field_validator("levels")
    @classmethod
    def _levels_are_shares(cls, levels: str | tuple[float, ...]) -> str | tuple[float, ...]:
        if not isinstance(levels, str) and not all(0 <= share <= 1 for share in levels):
            raise ValueError("must be all, paper, or shares from 0 to 100 %")
        return levels

    @property
    def shares(self) -> tuple[float, ...] | None:
        """Allowed shares of a module; None if every level is allowed."""
        if self.levels == "all":
            return None
        if self.levels == "paper":
            return tuple(tenth / 10 for tenth in range(11))
        return tuple(sorted({0.0, 1.0, *self.levels}))
