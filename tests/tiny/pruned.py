"""Tiny checkpoints of any sizes, layer by layer, with a byte-level tokenizer that engines accept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from darwinlm.families.family import families
from darwinlm.families.pruned import pruned_classes, pruned_config
from tests.tiny.checkpoint import WORDS
from tests.tiny.models import tiny_config
from tests.tiny.vocabulary import trained_bytes

ENGINE_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
"""Sizes that every quantisation in blocks of 32 fits."""

Row = tuple[int, ...]
"""Query heads, KV heads and MLP channels of one layer, 0 where a sub-layer is gone; then the experts, if some are."""


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges, as GPT-2's."""
    return PreTrainedTokenizerFast(
        tokenizer_object=trained_bytes(WORDS, 310),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    )


def layer_row(
    row: Row,
    query_groups: Sequence[int] | None = None,
    width_field: str = "intermediate_size",
    count_field: str = "num_experts",
) -> dict[str, Any]:
    heads, groups, width, *experts = row
    made: dict[str, Any] = {}
    if heads:
        made |= {"num_attention_heads": heads, "num_key_value_heads": groups}
    if query_groups is not None:
        made |= {"num_key_value_heads": heads, "query_groups": list(query_groups), "stored_kv_heads": groups}
    if width:
        made[width_field] = width
    if experts:
        made[count_field] = experts[0]
    gone = [name for name, size in (("attention", heads), ("mlp", width)) if not size]
    return made | ({"skip": gone} if gone else {})


def randomised(model: Any, seed: int = 0) -> Any:
    """Weights of a size that makes every sub-layer matter; norms and biases aren't ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if "embed_tokens" in name or "lm_head" in name:
                weight.copy_(noise * 0.3)
            elif weight.ndim >= 2:
                weight.copy_(noise * 1.2 / weight.shape[-1] ** 0.5)
            else:
                weight.copy_((0 if name.endswith("bias") or "gemma" in model.config.model_type else 1) + noise * 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.1)
    return model.eval()


def pruned_checkpoint(
    folder: Path,
    model_type: str,
    rows: Mapping[int, Row],
    *,
    query_groups: Mapping[int, Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer: Any = None,
    **overrides: Any,
) -> Path:
    """Save a random model of unequal layers; layers that `rows` leaves out have all of the sizes."""
    family = families()[model_type]
    config_class, _, causal = pruned_classes(*family.class_names)
    dense = tiny_config(model_type, **{**ENGINE_SIZES, **overrides})
    field = family.mlp.experts.width if family.mlp.experts else family.mlp.width
    fields = field, family.mlp.experts.count if family.mlp.experts else ""
    table = {block: layer_row(row, (query_groups or {}).get(block), *fields) for block, row in rows.items()}
    multiple = family.mlp.experts.multiple(dense) if family.mlp.experts else None
    shared = {"shared_expert_width": multiple * getattr(dense, field)} if multiple else {}
    off = {family.switch: type(getattr(dense, family.switch))()} if family.switch else {}
    for row in table.values():
        row.update({**family.mlp.with_width, **shared} if field in row else {})
        row.update(off if "mlp" in row.get("skip", ()) else {})
    config = pruned_config(config_class, dense, table)
    config.architectures = [causal.__name__]
    return _save(randomised(causal(config)), folder, dtype, tokenizer)


def plain_checkpoint(
    folder: Path, model_type: str, *, dtype: torch.dtype = torch.float32, tokenizer: Any = None, **overrides: Any
) -> Path:
    """Save a random model of equal layers, of the family's own class."""
    config = tiny_config(model_type, **{**ENGINE_SIZES, **overrides})
    return _save(randomised(AutoModelForCausalLM.from_config(config)), folder, dtype, tokenizer)


def any_checkpoint(folder: Path, model_type: str, rows: Mapping[int, Row] | None, **overrides: Any) -> Path:
    if rows is None:
        return plain_checkpoint(folder, model_type, **overrides)
    return pruned_checkpoint(folder, model_type, rows, **overrides)


def _save(model: Any, folder: Path, dtype: torch.dtype, tokenizer: Any) -> Path:
    model.to(dtype).save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return folder


@torch.no_grad()
def logits_of(folder: Path) -> torch.Tensor:
    """Logits [1, 9, v] of a saved model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(torch.tensor([[5, 17, 101, 33, 250, 8, 99, 4, 61]])).logits
