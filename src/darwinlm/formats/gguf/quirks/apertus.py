"""Apertus: the parameters of its activation are keys of the file."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.surgery.reshape import Reshaper

XIELU = "mlp.act_fn."


def key_instead(_: Tensor, __: object) -> dict[str, Tensor]:
    """No tensor."""
    return {}


def _values(name: str, reshaper: Reshaper, layout: Layout) -> list[float]:
    places = (reshaper.checkpoint.block_prefix(target.block) + XIELU + name for target in layout.targets)
    values = (reshaper.checkpoint.read(place).values() for place in places)
    return [float(tensor) for tensors in values for tensor in tensors or [0.0]]


alpha_n, alpha_p, beta, eps = (partial(_values, name) for name in ("alpha_n", "alpha_p", "beta", "eps"))
