"""Apertus: the parameters of its activation are keys of the file."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from darwinlm.formats.gguf.quirks import FromFile
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.surgery.reshape import Reshaper

XIELU = "mlp.act_fn."


def key_instead(_: Tensor, __: object) -> dict[str, Tensor]:
    """No tensor."""
    return {}


def undo_key_instead(_: object, origin: FromFile) -> Tensor:
    """The tensor of a parameter from its key."""
    leaf = origin.name.rpartition(".")[2]
    return torch.tensor(float(origin.keys[f"xielu.{leaf}"][origin.block])).reshape(origin.shape)


def _values(name: str, reshaper: Reshaper, layout: Layout) -> list[float]:
    places = (reshaper.checkpoint.block_prefix(target.block) + XIELU + name for target in layout.targets)
    values = (reshaper.checkpoint.read(place).values() for place in places)
    return [float(tensor) for tensors in values for tensor in tensors or [0.0]]


alpha_n, alpha_p, beta, eps = (partial(_values, name) for name in ("alpha_n", "alpha_p", "beta", "eps"))
