"""A tiny GGUF file made byte by byte, so that any of its numbers may be wrong."""

import struct
from typing import Any

CODES = {"u32": (4, "I"), "f32": (6, "f"), "u64": (10, "Q"), "i32": (5, "i"), "bool": (7, "?")}
WIDTH, CHANNELS, TOKENS, BLOCKS = 32, 64, 40, 2


def string(text: bytes | str, size: int | None = None) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw) if size is None else size) + raw


def key(name: str, kind: str, value: Any) -> bytes:
    if kind == "string":
        return string(name) + struct.pack("<I", 8) + string(value)
    number, code = CODES[kind]
    return string(name) + struct.pack("<I", number) + struct.pack(f"<{code}", value)


def array(name: str, kind: int, count: int, body: bytes) -> bytes:
    return string(name) + struct.pack("<IIQ", 9, kind, count) + body


def plain_keys(**changes: Any) -> dict[str, tuple[str, Any]]:
    keys: dict[str, tuple[str, Any]] = {
        "general.architecture": ("string", "llama"),
        "general.alignment": ("u32", 32),
        "llama.block_count": ("u32", BLOCKS),
        "llama.context_length": ("u32", 128),
        "llama.embedding_length": ("u32", WIDTH),
        "llama.feed_forward_length": ("u32", CHANNELS),
        "llama.attention.head_count": ("u32", 4),
        "llama.attention.head_count_kv": ("u32", 2),
        "llama.attention.key_length": ("u32", 8),
        "llama.attention.layer_norm_rms_epsilon": ("f32", 1e-5),
        "llama.rope.dimension_count": ("u32", 8),
    }
    return keys | changes


def plain_tensors() -> dict[str, tuple[int, ...]]:
    """Shape of every tensor, columns first."""
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (WIDTH, TOKENS), "output_norm.weight": (WIDTH,)}
    for block in range(BLOCKS):
        shapes = {
            "attn_norm": (WIDTH,),
            "attn_q": (WIDTH, 32),
            "attn_k": (WIDTH, 16),
            "attn_v": (WIDTH, 16),
            "attn_output": (32, WIDTH),
            "ffn_norm": (WIDTH,),
            "ffn_gate": (WIDTH, CHANNELS),
            "ffn_up": (WIDTH, CHANNELS),
            "ffn_down": (CHANNELS, WIDTH),
        }
        found |= {f"blk.{block}.{name}.weight": shape for name, shape in shapes.items()}
    return found


def gguf_file(
    *,
    keys: dict[str, tuple[str, Any]] | None = None,
    tensors: dict[str, tuple[int, ...]] | None = None,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    more_keys: tuple[bytes, ...] = (),
    types: dict[str, int] | None = None,
    offsets: dict[str, int] | None = None,
    dimensions: dict[str, int] | None = None,
    cut: int = 0,
) -> bytes:
    """The bytes of a file; what isn't given is as it should be."""
    keys, tensors = plain_keys() if keys is None else keys, plain_tensors() if tensors is None else tensors
    body = [key(name, *value) for name, value in keys.items()] + list(more_keys)
    infos, place = [], 0
    for name, shape in tensors.items():
        count = 1
        for size in shape:
            count *= size
        offset = (offsets or {}).get(name, place)
        number = (dimensions or {}).get(name, len(shape))
        infos.append(
            string(name)
            + struct.pack("<I", number)
            + struct.pack(f"<{len(shape)}Q", *shape)
            + struct.pack("<IQ", (types or {}).get(name, 0), offset)
        )
        place += -(-count * 4 // 32) * 32 if count < 1 << 20 else 0
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if tensor_count is None else tensor_count,
        len(body) if key_count is None else key_count,
    )
    header = head + b"".join(body) + b"".join(infos)
    whole = header + b"\0" * (-len(header) % 32) + b"\0" * place
    return whole[: len(whole) - cut]
