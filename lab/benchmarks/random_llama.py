"""Random Llama on disk, written shard by shard, so that it may be larger than memory."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def write_llama(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    device: torch.device | str = "cpu",
    **sizes: Any,
) -> int:
    """Write config.json, one shard for each block and one for the rest; return the bytes of all tensors.

    Args:
        folder: Output folder, created if missing.
        dtype: Element type of the tensors.
        seed: Seed of the random weights.
        device: Device that makes them; a CPU needs a minute for 7B.
        sizes: Fields of LlamaConfig.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**sizes, dtype=dtype, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    shards: dict[str, list[str]] = {}
    for name in shapes:
        shard = f"block_{name.split('.')[2]}" if ".layers." in name else "outside"
        shards.setdefault(f"model-{shard}.safetensors", []).append(name)
    generator = torch.Generator(device).manual_seed(seed)
    for shard, names in shards.items():
        tensors = {}
        for name in names:
            shape = shapes[name]
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 0.1
            noise = torch.randn(shape, generator=generator, device=device) * scale
            tensors[name] = (noise if len(shape) == 2 else noise + 1).to(dtype).cpu()
        save_file(tensors, folder / shard, metadata={"format": "pt"})
    places = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    total: int = sum(math.prod(shape) for shape in shapes.values()) * dtype.itemsize
    return total
