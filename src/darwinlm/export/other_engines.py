"""What other engines read of a saved model: the rotary embedding under its older names, and a file for mlx-lm.

Blocks that predict further tokens aren't saved, so the configuration counts none.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from darwinlm.families.checkpoint import FURTHER
from darwinlm.families.family import PREFIX, is_custom
from darwinlm.runtime.artifact import read_json, write_json, write_text

IN_MLX = (
    *("ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "helium", "hunyuan_v1_dense", "llama"),
    *("ministral3", "mistral", "nemotron", "olmo2", "olmo3", "qwen3", "seed_oss", "smollm3"),
)
"""Families whose unequal layers mlx-lm 0.32 runs."""
MODEL_FILE = "modeling_mlx.py"


def for_other_engines(folder: Path, config: Any) -> None:
    """Complete a saved model. Raises StorageError."""
    path = folder / "config.json"
    tree: dict[str, Any] = read_json(path)
    if "text_config" in tree:
        tree["text_config"] |= older_rope(tree["text_config"].get("rope_parameters") or {})
    tree |= older_rope(tree.get("rope_parameters") or {})
    for part in (tree, tree.get("text_config", {})):
        part.update(dict.fromkeys((name for name in FURTHER if part.get(name)), 0))
    if is_custom(config) and str(config.model_type).removeprefix(PREFIX) in IN_MLX and "text_config" not in tree:
        tree["model_file"] = MODEL_FILE
        write_text(folder / MODEL_FILE, mlx_code())
    write_json(path, tree)


def mlx_code() -> str:
    """The file for mlx-lm, the same for every model."""
    return (resources.files("darwinlm.export") / MODEL_FILE).read_text(encoding="utf-8")


def older_rope(rope: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a rotary embedding under the names from before transformers 5.

    Engines that only know these would silently take their own base. There are none for layers that differ in more than
    the base.
    """
    if "rope_theta" in rope:
        scaling = {name: value for name, value in rope.items() if name not in ("rope_theta", "partial_rotary_factor")}
        part = {name: rope[name] for name in ("partial_rotary_factor",) if name in rope}
        plain = rope.get("rope_type", "default") == "default"
        return {"rope_theta": rope["rope_theta"], "rope_scaling": None if plain else scaling, **part}
    full, sliding = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    if "rope_theta" not in full or sliding.get("rope_type") != "default" or full.get("rope_type") == "proportional":
        return {}
    local = {"rope_local_base_freq": sliding["rope_theta"]} if sliding["rope_theta"] != full["rope_theta"] else {}
    return older_rope(full) | local
