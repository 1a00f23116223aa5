"""What the CPU computes in place of the kernels of a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.gpu.rules import Call

PRODUCTS = {
    getattr(torch.ops.aten, name).dtype: getattr(torch.ops.aten, name).default
    for name in ("mm", "bmm", "addmm", "baddbmm")
    if hasattr(getattr(torch.ops.aten, name), "dtype")
}


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The CPU's result. It has no products with a type of their own; cuBLAS sums those of halves in float32."""
    if func in PRODUCTS:
        *factors, dtype = (*args, *kwargs.values())
        return PRODUCTS[func](*(one.to(dtype) if isinstance(one, Tensor) else one for one in factors))
    return func(*args, **kwargs)


def with_cpu_types(call: Call, args: Any) -> Any:
    if call.name == "aten::histc" and not args[0].is_floating_point():  # CUDA alone counts integers
        return (args[0].float(), *args[1:])
    return args


def on_cpu(kwargs: dict[str, Any]) -> dict[str, Any]:
    kwargs = {name: value for name, value in kwargs.items() if name not in ("pin_memory", "non_blocking")}
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    return kwargs


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Scaled dot-product attention in single operations; arguments are those of PyTorch's."""
    assert dropout_p == 0.0
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~mask, -torch.inf)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    return scores.softmax(-1) @ value
