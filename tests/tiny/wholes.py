"""Tiny models with a vision tower around a family's tiny model, as a user would have them on disk."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.tiny.models import tiny_config, tiny_model
from tests.tiny.tokenizer import tiny_tokenizer

VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
QWEN_VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_heads": 2,
    "patch_size": 4,
    "out_hidden_size": 48,
    "num_position_embeddings": 16,
}
QWEN_TOKENS = {"image_token_id": 299, "video_token_id": 298, "vision_start_token_id": 297, "vision_end_token_id": 296}
GEMMA4_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "patch_size": 4,
    "pooling_kernel_size": 2,
    "position_embedding_size": 16,
}
WHOLES: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3": ("gemma3_text", {"vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 299}),
    "mistral3": ("ministral3", {"vision_config": {**VISION, "head_dim": 8}, "image_token_index": 299}),
    "qwen3_5": ("qwen3_5_text", {"vision_config": QWEN_VISION, **QWEN_TOKENS}),
    "qwen3_5_moe": ("qwen3_5_moe_text", {"vision_config": QWEN_VISION, **QWEN_TOKENS}),
    "gemma4": ("gemma4_text", {"vision_config": GEMMA4_VISION, "audio_config": None, "image_token_id": 299}),
}
"""Text part and further settings of every tiny model with a vision tower."""


def tiny_whole(folder: Path, model_type: str, tokenizer: Any = None, **overrides: Any) -> Path:
    """Save a tiny random model with a vision tower and a tokenizer; returns the folder.

    Args:
        folder: Target folder.
        model_type: One of `WHOLES`.
        tokenizer: Its tokenizer; None is one without merges.
        overrides: Settings of the text part that differ.
    """
    text, settings = WHOLES[model_type]
    config = tiny_config(text, **overrides)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(
        AutoConfig.for_model(
            model_type, text_config=config, tie_word_embeddings=bool(config.tie_word_embeddings), **settings
        )
    )
    with torch.no_grad():
        for weight in whole.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
    alone = tiny_model(text, **overrides)
    whole.model.language_model.load_state_dict(alone.model.state_dict())
    whole.lm_head.load_state_dict(alone.lm_head.state_dict())
    whole.save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text('{"size": 16}', encoding="utf-8")
    return folder
