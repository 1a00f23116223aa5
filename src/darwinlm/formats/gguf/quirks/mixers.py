"""Token mixers: state space (Granite 4), linear attention (Qwen3-Next, Qwen3.5), short convolutions (LFM2).

In Qwen3.5, llama.cpp numbers value heads across key heads. In transformers, the r value heads of a key head follow one
another; in llama.cpp, those of key head k have the numbers k, k + n, k + 2n and so on, with n key heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.formats.gguf.quirks import FromFile
from darwinlm.formats.gguf.stock_layout import Layout
from darwinlm.model.surgery.reshape import Reshaper

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def decay(tensor: Tensor, _: object) -> Tensor:
    """Logarithms as negative decays."""
    return -tensor.exp()


def undo_decay(tensor: Tensor, _: object) -> Tensor:
    """Logarithms of negative decays."""
    return torch.log(-tensor)


def convolution(tensor: Tensor, _: object) -> Tensor:
    """Filters [channels, 1, width] without the middle dimension."""
    return tensor.squeeze(1)


def undo_convolution(tensor: Tensor, _: object) -> Tensor:
    """Filters [channels, width] with a dimension in the middle."""
    return tensor.unsqueeze(1)


def tiled(tensor: Tensor, config: PreTrainedConfig, columns: int | None = None) -> Tensor:
    """Rows of value heads in llama.cpp's order; a head has `columns` of them, by default those of a value."""
    n, share = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    columns, rest = columns or config.linear_value_head_dim, tensor.shape[1:]
    return tensor.reshape(n, share, columns, *rest).transpose(0, 1).reshape(n * share * columns, *rest)


def undo_tiled(tensor: Tensor, origin: FromFile, columns: int | None = None) -> Tensor:
    """Rows of value heads in the order of transformers."""
    config = origin.config
    n, share = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    columns, rest = columns or config.linear_value_head_dim, tensor.shape[1:]
    return tensor.reshape(share, n, columns, *rest).transpose(0, 1).reshape(n * share * columns, *rest)


def tiled_single(tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """One row for each value head."""
    return tiled(tensor, config, 1)


def undo_tiled_single(tensor: Tensor, origin: FromFile) -> Tensor:
    """One row for each value head, in the order of transformers."""
    return undo_tiled(tensor, origin, 1)


def tiled_columns(tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """Columns of value heads."""
    return tiled(tensor.T, config).T


def undo_tiled_columns(tensor: Tensor, origin: FromFile) -> Tensor:
    """Columns of value heads in the order of transformers."""
    return undo_tiled(tensor.T, origin).T


def tiled_values(tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """Rows of queries, keys and values, of which the values move."""
    before = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    return torch.cat([tensor[:before], tiled(tensor[before:], config)])


def undo_tiled_values(tensor: Tensor, origin: FromFile) -> Tensor:
    """Rows of queries, keys and values in the order of transformers."""
    before = 2 * origin.config.linear_num_key_heads * origin.config.linear_key_head_dim
    return torch.cat([tensor[:before], undo_tiled(tensor[before:], origin)])


def sections(reshaper: Reshaper, layout: Layout) -> list[int]:
    """Pairs of the rotary embedding that turn with time, height and width."""
    section = reshaper.checkpoint.config.rope_parameters.get("mrope_section")
    return [*(section or [layout.rope.turned // 2] * 3), 0][:4]


def distance(reshaper: Reshaper, _: Layout) -> int:
    """Distance of attentions among other mixers."""
    return int(reshaper.checkpoint.config.layer_types.index("full_attention") + 1)


def column(tensor: Tensor, _: object) -> Tensor:
    """A vector [n] as [n, 1]."""
    return tensor[:, None]


def undo_column(tensor: Tensor, _: object) -> Tensor:
    """A vector [n] from [n, 1]."""
    return tensor[:, 0]


def by_group(tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """The norm's weights by group."""
    return tensor.view(config.mamba_n_groups, -1)


def undo_by_group(tensor: Tensor, _: object) -> Tensor:
    """The norm's weights in one row."""
    return tensor.flatten()


def has_rope(reshaper: Reshaper, _: Layout) -> bool:
    """Whether there is a rotary embedding, which llama.cpp calls finetuned scaling."""
    return bool(reshaper.checkpoint.config.position_embedding_type == "rope")
