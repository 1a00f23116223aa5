"""Published configurations of the models that the recipes are for: folders with a config.json and no weights."""

import json
from pathlib import Path
from typing import Any

PUBLISHED: dict[str, dict[str, Any]] = {
    "llama2-7b-2.7b": {"model_type": "llama", "max_position_embeddings": 4096},
    "llama3.1-8b-4.6b": {
        "model_type": "llama",
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
    },
    "qwen2.5-14b-8.4b": {
        "model_type": "qwen2",
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 48,
        "num_attention_heads": 40,
        "num_key_value_heads": 8,
        "vocab_size": 152064,
    },
    "qwen3-8b-4b": {
        "model_type": "qwen3",
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "max_position_embeddings": 40960,
    },
}
"""By recipe; what they leave out is the default of their class."""

PARAMETERS = {
    "llama2-7b-2.7b": 6_738_415_616,
    "llama3.1-8b-4.6b": 8_030_261_248,
    "qwen2.5-14b-8.4b": 14_770_033_664,
    "qwen3-8b-4b": 8_190_735_360,
}
"""Parameters of the dense models as their publishers state them."""

NAMES = [*(name for name in PUBLISHED if name != "qwen3-8b-4b"), *(f"{name}-fast" for name in PUBLISHED)]
"""The bundled recipes that prune: those of the paper's models, and ours."""

PHASES = ["recover-chats", "recover-documents"]
"""The bundled recipes that train."""


def published_config(folder: Path, recipe: str) -> Path:
    """Write the config.json of a recipe's model; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**PUBLISHED[recipe], "dtype": "bfloat16"}), encoding="utf-8")
    return folder
