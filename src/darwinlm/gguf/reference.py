"""A reference implementation of llama.cpp's architectures on a GGUF file, in float32.

It shares no code with the writer, so a wrong permutation or a missing bias changes its residual streams. Letters: t
tokens, m residual width, h columns of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import gelu, linear, relu, rms_norm, silu

Get = Callable[[str], Tensor | None]
NEIGHBOURS = ("llama", "deci", "granite", "smollm3", "glm4", "arcee")
"""Architectures whose rotary embedding pairs neighbouring columns; the others pair halves."""
ARCHITECTURES = frozenset(
    (*NEIGHBOURS, "exaone4", "gemma", "gemma2", "gemma3", "olmo2", "openelm", "phi3", "qwen2", "qwen3", "qwen3moe")
)
"""Architectures computed here. Files of others are checked by llama.cpp alone, which must be installed then."""
SLIDING_BASE = 10000.0
PERIODS = {"gemma2": 2, "gemma3": 6}
"""Architectures with sliding windows, with the period of the layers without one."""


def computes(architecture: str, *, slides: bool) -> bool:
    """Whether an architecture is computed here, with layers that slide over a window if it `slides`."""
    return architecture in ARCHITECTURES and (not slides or architecture in PERIODS)


class GgufFile:
    """Keys and dequantised tensors of a file."""

    def __init__(self, path: Path) -> None:
        from gguf import GGUFReader

        reader = GGUFReader(path)
        self.keys: dict[str, Any] = {
            name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")
        }
        self.tensors: dict[str, Any] = {tensor.name: tensor for tensor in reader.tensors}

    def get(self, name: str) -> Tensor | None:
        """A tensor in float32; None if the file doesn't have it."""
        from gguf.quants import dequantize

        tensor = self.tensors.get(name)
        return None if tensor is None else torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()


@torch.no_grad()
def reference_streams(keys: Mapping[str, Any], get: Get, tokens: Tensor, blocks: list[int]) -> dict[str, Tensor]:
    """Run the model of a file.

    Args:
        keys: Keys of the file.
        get: Function that reads a tensor.
        tokens: [t].
        blocks: Index in the model of each block in the file, for names.

    Returns:
        The residual stream [t, m] after each existing sub-layer, and the logits [t, v].
    """
    runner = _Runner(keys, get)
    embedding = runner.need("token_embd.weight")
    x = embedding[tokens] * runner.embedding_scale
    streams: dict[str, Tensor] = {}
    for number, block in enumerate(blocks):
        heads, groups = (
            runner.per_layer("attention.head_count", number),
            runner.per_layer("attention.head_count_kv", number),
        )
        if heads:
            x = x + runner.residual_scale * runner.attention(x, number, heads, groups)
        streams[f"block {block} attention"] = x
        if runner.per_layer("feed_forward_length", number):
            x = x + runner.residual_scale * runner.mlp(x, number)
        streams[f"block {block} mlp"] = x
    head = get("output.weight")
    x = runner.norm(x, "output_norm")
    logits = x @ (embedding if head is None else head).T / runner.logit_scale
    streams["logits"] = logits if runner.logit_cap is None else runner.logit_cap * torch.tanh(logits / runner.logit_cap)
    return streams


class _Runner:
    def __init__(self, keys: Mapping[str, Any], get: Get) -> None:
        self.architecture = str(keys["general.architecture"])
        self.keys = {name.removeprefix(f"{self.architecture}."): value for name, value in keys.items()}
        self.get = get
        self.columns = int(self.keys["attention.key_length"])
        width, heads = int(self.keys["embedding_length"]), self.per_layer("attention.head_count", 0)
        gemma, granite = self.architecture.startswith("gemma"), self.architecture == "granite"
        self.embedding_scale = width**0.5 if gemma else float(self.keys["embedding_scale"]) if granite else 1.0
        self.residual_scale = float(self.keys["residual_scale"]) if granite else 1.0
        self.logit_scale = float(self.keys["logit_scale"]) if granite else 1.0
        self.attention_scale = float(self.keys["attention.scale"]) if granite else self.columns**-0.5
        if (self.architecture, self.keys["block_count"]) in (("gemma2", 46), ("gemma3", 62)):
            self.attention_scale = (width // heads) ** -0.5
        self.logit_cap = self.cap("final_logit_softcapping")
        self.score_cap = self.cap("attn_logit_softcapping")
        self.activation: Callable[[Tensor], Tensor] = (lambda x: gelu(x, approximate="tanh")) if gemma else silu
        if self.architecture == "arcee":
            self.activation = lambda x: relu(x).square()

    def cap(self, key: str) -> float | None:
        return float(self.keys[key]) if key in self.keys else None

    def per_layer(self, key: str, number: int) -> int:
        value = self.keys[key]
        return int(value[number] if isinstance(value, list) else value)

    def need(self, name: str) -> Tensor:
        tensor = self.get(name)
        if tensor is None:
            raise KeyError(name)
        return tensor

    def linear(self, x: Tensor, name: str) -> Tensor:
        return linear(x, self.need(f"{name}.weight"), self.get(f"{name}.bias"))

    def norm(self, x: Tensor, name: str) -> Tensor:
        return rms_norm(
            x, (x.shape[-1],), self.need(f"{name}.weight"), eps=float(self.keys["attention.layer_norm_rms_epsilon"])
        )

    def normed(self, x: Tensor, name: str) -> Tensor:
        """Apply the norm, if there is one."""
        return x if self.get(f"{name}.weight") is None else self.norm(x, name)

    def slides(self, number: int) -> bool:
        return self.architecture in PERIODS and (number + 1) % PERIODS[self.architecture] != 0

    def attention(self, x: Tensor, number: int, heads: int, groups: int) -> Tensor:
        prefix, h = f"blk.{number}.", self.columns
        x = self.normed(x, f"{prefix}attn_norm")
        if self.get(f"{prefix}attn_qkv.weight") is not None:
            rows = [heads * h, groups * h, groups * h]
            q, k, v = torch.split(self.linear(x, f"{prefix}attn_qkv"), rows, -1)
        else:
            q, k, v = (self.linear(x, f"{prefix}attn_{part}") for part in "qkv")
        spans = self.architecture == "olmo2"  # its norms of queries and keys span all heads
        if spans:
            q, k = self.norm(q, f"{prefix}attn_q_norm"), self.norm(k, f"{prefix}attn_k_norm")
        q, k, v = (part.reshape(len(part), -1, h) for part in (q, k, v))
        if not spans:
            q, k = self.normed(q, f"{prefix}attn_q_norm"), self.normed(k, f"{prefix}attn_k_norm")
        if not (self.architecture == "smollm3" and (number + 1) % 4 == 0):
            q, k = (rotate(part, self.keys, self.get, slides=self.slides(number)) for part in (q, k))
        share = heads // groups
        k, v = (part.repeat_interleave(share, dim=1) for part in (k, v))
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
        scores = q @ k.transpose(1, 2) * self.attention_scale
        if self.score_cap is not None:
            scores = self.score_cap * torch.tanh(scores / self.score_cap)
        place = torch.arange(len(x))
        distance = place[:, None] - place
        visible = distance >= 0
        if self.slides(number):
            visible = visible & (distance < int(self.keys["attention.sliding_window"]))
        mixed = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
        return self.normed(
            self.linear(mixed.transpose(0, 1).flatten(1), f"{prefix}attn_output"), f"{prefix}post_attention_norm"
        )

    def mlp(self, x: Tensor, number: int) -> Tensor:
        prefix = f"blk.{number}."
        x = self.normed(x, f"{prefix}ffn_norm")
        if self.get(f"{prefix}ffn_gate_inp.weight") is not None:
            return self.experts(x, prefix)
        if self.architecture == "arcee":  # has no gate
            return self.linear(self.activation(self.linear(x, f"{prefix}ffn_up")), f"{prefix}ffn_down")
        if self.get(f"{prefix}ffn_gate.weight") is None:
            gate, up = self.linear(x, f"{prefix}ffn_up").chunk(2, -1)
        else:
            gate, up = self.linear(x, f"{prefix}ffn_gate"), self.linear(x, f"{prefix}ffn_up")
        return self.normed(self.linear(self.activation(gate) * up, f"{prefix}ffn_down"), f"{prefix}post_ffw_norm")

    def experts(self, x: Tensor, prefix: str) -> Tensor:
        """Output of each token's best experts, weighted by the router."""
        chosen = self.linear(x, f"{prefix}ffn_gate_inp").softmax(-1).topk(int(self.keys["expert_used_count"]), -1)
        weights = chosen.values / chosen.values.sum(-1, keepdim=True)
        gate, up, down = (self.need(f"{prefix}ffn_{part}_exps.weight") for part in ("gate", "up", "down"))
        total = torch.zeros_like(x)
        for expert in range(len(down)):
            share = (weights * (chosen.indices == expert)).sum(-1, keepdim=True)
            inner = self.activation(linear(x, gate[expert])) * linear(x, up[expert])
            total += share * linear(inner, down[expert])
        return total


def rotate(x: Tensor, keys: Mapping[str, Any], get: Get, *, slides: bool) -> Tensor:
    """Rotate queries or keys.

    Args:
        x: [t, heads, h], from position 0 on.
        keys: Keys of the file, without its architecture's prefix.
        get: Function that reads a tensor.
        slides: Whether the layer has a sliding window (Gemma 3 rotates it differently).
    """
    architecture, count = str(keys["general.architecture"]), int(keys["rope.dimension_count"])
    turned, rest = x[..., :count], x[..., count:]
    frequencies, size = _frequencies(keys, get, count, local=slides and architecture == "gemma3")
    angles = torch.arange(len(x), dtype=torch.float32)[:, None, None] * frequencies
    cosine, sine = size * angles.cos(), size * angles.sin()
    if architecture in NEIGHBOURS:
        first, second = turned[..., 0::2], turned[..., 1::2]
    else:
        first, second = turned.chunk(2, -1)
    pair = first * cosine - second * sine, first * sine + second * cosine
    rotated = torch.stack(pair, -1).flatten(-2) if architecture in NEIGHBOURS else torch.cat(pair, -1)
    return torch.cat([rotated, rest], -1)


def _frequencies(keys: Mapping[str, Any], get: Get, count: int, *, local: bool) -> tuple[Tensor, float]:
    """Angles per position [count / 2], and the factor on cosines and sines."""
    steps = torch.arange(0, count, 2, dtype=torch.float32)
    if local:
        return SLIDING_BASE ** -(steps / count), 1.0
    base, kind = float(keys["rope.freq_base"]), keys.get("rope.scaling.type")
    plain = base ** -(steps / count)
    size = float(keys.get("rope.scaling.attn_factor", 1.0))
    divisors = get("rope_factors_short.weight" if kind == "longrope" else "rope_freqs.weight")
    if divisors is not None:
        plain = plain / divisors
    if kind == "linear":
        return plain / float(keys["rope.scaling.factor"]), size
    if kind != "yarn":
        return plain, size
    factor, original = float(keys["rope.scaling.factor"]), float(keys["rope.scaling.original_context_length"])

    def place(turns: float) -> float:
        return count * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(place(32))), min(count - 1, math.ceil(place(1)))
    kept = 1 - ((steps / 2 - low) / max(0.001, high - low)).clamp(0, 1)
    return plain * kept + plain / factor * (1 - kept), size * (1 + 0.1 * math.log(factor))
