"""Settings of the refit."""

from __future__ import annotations

from pydantic import Field

from darwinlm.runtime.quantities import Whole
from darwinlm.runtime.section import Section


class RefitSettings(Section):
    """Least-squares correction of the stitched model's output projections towards the dense residual stream."""

    tokens: Whole = Field(32768, ge=0)
    """Calibration tokens for the fit; at most `text.calibration_tokens`. 0 skips the refit."""
