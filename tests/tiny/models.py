"""Tiny random models of every family: four layers, a few thousand weights, logits that depend on the whole context.

Their parts are looked up without the description of the family.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
"""What the models share. head_dim x heads is the hidden size here; families below and tests deviate from it."""

SLIDING: dict[str, Any] = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
}

LINEAR: dict[str, Any] = {"layer_types": ["linear_attention", "full_attention", "linear_attention", "full_attention"]}

DELTA: dict[str, Any] = {
    **LINEAR,
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}

EXPERTS: dict[str, Any] = {"num_experts": 5, "num_experts_per_tok": 2}

SHARED_EXPERT: dict[str, Any] = {**EXPERTS, "moe_intermediate_size": 48, "shared_expert_intermediate_size": 24}

ROUTED: dict[str, Any] = {"n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 96}

LATENT: dict[str, Any] = {
    "num_key_value_heads": 6,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}

GEMMA: dict[str, Any] = {**SLIDING, "head_dim": 16, "query_pre_attn_scalar": 16, "tie_word_embeddings": True}

GEMMA4: dict[str, Any] = {
    **SLIDING,
    "global_head_dim": 16,
    "num_global_key_value_heads": 3,
    "final_logit_softcapping": 5.0,
    "tie_word_embeddings": True,
}

HALF_TURNED: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma": {"head_dim": 16, "tie_word_embeddings": True},
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "gemma4_text": {
        **GEMMA4,
        "num_key_value_heads": 3,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 300,
        "num_kv_shared_layers": 1,
        "use_double_wide_mlp": True,
    },
    "gemma4_text_experts": {
        **GEMMA4,
        "model_type": "gemma4_text",
        "attention_k_eq_v": True,
        "hidden_size_per_layer_input": 0,
        "enable_moe_block": True,
        "num_experts": 5,
        "top_k_experts": 2,
        "moe_intermediate_size": 96,
        "intermediate_size": 64,
    },
    "smollm3": {"no_rope_layers": [1, 1, 1, 0], "tie_word_embeddings": True},
    "granite": {"residual_multiplier": 0.7, "logits_scaling": 2.0, "attention_multiplier": 0.3},
    "phi3": {**HALF_TURNED, "resid_pdrop": 0.1},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8},
    "qwen3_moe": {
        **EXPERTS,
        "head_dim": 16,
        "moe_intermediate_size": 32,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "qwen2_moe": {**SHARED_EXPERT, "mlp_only_layers": [1]},
    "ernie4_5_moe": {
        "moe_num_experts": 5,
        "moe_num_shared_experts": 2,
        "moe_k": 2,
        "moe_intermediate_size": 96,
        "use_bias": True,
        "tie_word_embeddings": True,
    },
    "minimax_m2": {**HALF_TURNED, "num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 16},
    "hunyuan_v1_moe": {"num_experts": 5, "moe_topk": [2, 2, 2, 2], "tie_word_embeddings": True},
    "olmoe": EXPERTS,
    "deepseek_v2": {
        **LATENT,
        **ROUTED,
        "q_lora_rank": None,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {
        **LATENT,
        **ROUTED,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "first_k_dense_replace": 2,
        "attention_bias": True,
    },
    "glm4_moe": {**ROUTED, "routed_scaling_factor": 1.5, "attention_bias": True, "use_qk_norm": True},
    "glm4_moe_lite": {**LATENT, **ROUTED},
    "gpt_oss": {**SLIDING, "num_local_experts": 5, "num_experts_per_tok": 2, "swiglu_limit": 2.0},
    "olmo2": {"attention_bias": True},
    "olmo3": SLIDING,
    "exaone4": SLIDING,
    "ministral3": {
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.1,
        }
    },
    "glm": {"attention_bias": True},
    "glm4": {"attention_bias": True},
    "ernie4_5": {"use_bias": True, "tie_word_embeddings": True},
    "hunyuan_v1_dense": {"tie_word_embeddings": True},
    "seed_oss": {"head_dim": 16, "residual_dropout": 0.1},
    "helium": {},
    "arcee": {"mlp_bias": True},
    "nemotron": {"attention_bias": True},
    "apertus": {},
    "vaultgemma": GEMMA,
    "qwen3_5_text": {**DELTA, "tie_word_embeddings": True},
    "qwen3_5_moe_text": {**DELTA, **SHARED_EXPERT},
    "qwen3_next": {**DELTA, **SHARED_EXPERT, "mlp_only_layers": [2]},
    "lfm2": {
        "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        "intermediate_size": 144,
        "block_multiple_of": 32,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid": {
        **LINEAR,
        "shared_intermediate_size": 96,
        "num_local_experts": 0,
        "mamba_n_heads": 6,
        "mamba_d_state": 16,
        "mamba_chunk_size": 8,
        "residual_multiplier": 0.7,
        "logits_scaling": 2.0,
        "attention_multiplier": 0.3,
        "position_embedding_type": "rope",
        "tie_word_embeddings": True,
    },
}
FAMILIES["granitemoehybrid_experts"] = {
    **FAMILIES["granitemoehybrid"],
    "model_type": "granitemoehybrid",
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "shared_intermediate_size": 64,
}
"""Where a family's tiny model differs from the sizes above: its own features are all switched on."""


ENCODERS: dict[str, dict[str, Any]] = {
    "modernbert": {"local_attention": 8, "layer_types": SLIDING["layer_types"], "norm_bias": True, "mlp_bias": True},
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
}
"""The same for families of encoders, which have no language models."""
NOT_OF_ENCODERS = ("num_key_value_heads", "head_dim")


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    sizes, own = SIZES, FAMILIES.get(model_type, {})
    if model_type in ENCODERS:
        sizes, own = {name: sizes[name] for name in sizes.keys() - set(NOT_OF_ENCODERS)}, ENCODERS[model_type]
    return AutoConfig.for_model(**{"model_type": model_type, **sizes, **own, **overrides})


def randomised(make: Callable[[], Any], seed: int = 0, vectors: float = 0.1) -> Any:
    """A model in evaluation mode; the same seed gives the same weights.

    Matrices are scaled so that every sub-layer matters to the logits, and norm weights and biases are not their
    initial ones and zeros, so that a norm or a bias that goes missing shows: `vectors` is the size of the difference.
    """
    generator = torch.Generator().manual_seed(seed)
    # Decays of linear attention keep their initial values, which are random.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if any(part in name for part in ("embed_tokens", "_embeddings", "lm_head")):
                weight.copy_(noise * 0.3)
            elif weight.ndim >= 2:
                weight.copy_(noise * 1.2 / weight.shape[-1] ** 0.5)
            else:
                weight.add_(noise * vectors)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.randn(buffer.shape, generator=generator) * 0.3)
            if name.endswith("layer_scalar"):
                buffer.copy_(1 + torch.randn(buffer.shape, generator=generator) * 0.3)
    return model.eval()


def tiny_model(model_type: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny random model of a family: a language model, or an encoder without a head."""
    auto = AutoModel if model_type in ENCODERS else AutoModelForCausalLM
    return randomised(lambda: auto.from_config(tiny_config(model_type, **overrides)), seed)


def mlp_of(block: Any) -> Any:
    """The MLP of a block, or its experts and their router together with the MLP beside them."""
    mixture = getattr(block, "block_sparse_moe", None)  # Granite 4
    if mixture is not None or hasattr(block, "experts"):
        beside, mixture = (block.mlp, block) if mixture is None else (block.shared_mlp, mixture)
        tensors = [*mixture.experts.named_parameters(), *beside.named_parameters()]
        return SimpleNamespace(experts=mixture.experts, router=mixture.router, named_parameters=lambda: tensors)
    if hasattr(block, "intermediate"):  # BERT
        return nn.ModuleDict({"intermediate": block.intermediate.dense, "output": block.output.dense})
    return next(getattr(block, name) for name in ("mlp", "feed_forward", "shared_mlp") if hasattr(block, name))


def layers_of(model: Any) -> Any:
    """The blocks of a language model or of an encoder."""
    inner = getattr(model, "model", model)
    return inner.encoder.layer if hasattr(inner, "encoder") else inner.layers


def output_of(part: nn.Module) -> Any:
    if isinstance(part, nn.ModuleDict):
        return part["output"]
    if hasattr(part, "self"):  # BERT
        return part.get_submodule("output.dense")
    names = ("o_proj", "out_proj", "down_proj", "w2", "output_linear", "Wo")
    return next(getattr(part, name) for name in names if hasattr(part, name))
