"""Keys of a GGUF file that only some architectures have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from darwinlm.export.gguf.layout import Layout
from darwinlm.export.gguf.places import XIELU
from darwinlm.export.reshape import Reshaper


def write_further(writer: Any, reshaper: Reshaper, layout: Layout) -> None:
    """Add the keys of an architecture with other token mixers, shared experts, per-layer inputs or shared KV heads.

    Args:
        writer: Writer of the package `gguf`.
        reshaper: The model.
        layout: Its layout.
    """
    write = WRITERS.get(layout.architecture.name)
    if write is not None:
        write(writer, reshaper, layout)


def _gemma4(writer: Any, reshaper: Reshaper, _: Layout) -> None:
    config = reshaper.checkpoint.config
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    columns = min(reshaper.columns_of(block) for block in range(len(sliding)))
    writer.add_sliding_window_pattern(sliding)
    writer.add_key_length_swa(columns)
    writer.add_value_length_swa(columns)
    writer.add_rope_dimension_count_swa(columns)
    writer.add_rope_freq_base_swa(float(config.rope_parameters["sliding_attention"]["rope_theta"]))
    writer.add_shared_kv_layers(int(config.num_kv_shared_layers))
    writer.add_embedding_length_per_layer_input(int(config.hidden_size_per_layer_input or 0))
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(float(config.final_logit_softcapping))


def _delta(writer: Any, reshaper: Reshaper, layout: Layout) -> None:
    config, name = reshaper.checkpoint.config, layout.architecture.name
    writer.add_ssm_conv_kernel(int(config.linear_conv_kernel_dim))
    writer.add_ssm_inner_size(int(config.linear_value_head_dim * config.linear_num_value_heads))
    writer.add_ssm_state_size(int(config.linear_key_head_dim))
    writer.add_ssm_time_step_rank(int(config.linear_num_value_heads))
    writer.add_ssm_group_count(int(config.linear_num_key_heads))
    writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
    if name != "qwen35":
        writer.add_expert_shared_feed_forward_length(int(config.shared_expert_intermediate_size))
    if name != "qwen3next":
        sections = list(config.rope_parameters.get("mrope_section") or [layout.features.rope.turned // 2] * 3)
        writer.add_rope_dimension_sections([*sections, 0][:4])


def _granite_hybrid(writer: Any, reshaper: Reshaper, _: Layout) -> None:
    config = reshaper.checkpoint.config
    writer.add_ssm_conv_kernel(int(config.mamba_d_conv))
    writer.add_ssm_inner_size(int(config.mamba_n_heads * config.mamba_d_head))
    writer.add_ssm_state_size(int(config.mamba_d_state))
    writer.add_ssm_time_step_rank(int(config.mamba_n_heads))
    writer.add_ssm_group_count(int(config.mamba_n_groups))
    if reshaper.family.mlp.experts is not None:
        writer.add_expert_shared_feed_forward_length(int(config.shared_intermediate_size))
    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")  # llama.cpp: whether there is one


def _shared_experts(writer: Any, reshaper: Reshaper, layout: Layout) -> None:
    from gguf import ExpertGatingFuncType

    config, experts = reshaper.checkpoint.config, reshaper.family.mlp.experts
    assert experts is not None
    writer.add_leading_dense_block_count([bool(target.experts) for target in layout.targets].index(True))
    writer.add_expert_shared_count(layout.shared)
    writer.add_expert_weights_scale(experts.weight_scale(config))
    writer.add_expert_weights_norm(experts.sums_to_one(config))
    writer.add_expert_gating_func(ExpertGatingFuncType[experts.scores.upper()])
    if (config.n_group or 1) > 1:
        writer.add_expert_group_count(int(config.n_group))
        writer.add_expert_group_used_count(int(config.topk_group))
    if layout.architecture.name == "deepseek2":
        writer.add_kv_lora_rank(int(config.kv_lora_rank))
        writer.add_q_lora_rank(int(config.q_lora_rank or 0))
        writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
        writer.add_value_length_mla(config.v_head_dim)


def _xielu(writer: Any, reshaper: Reshaper, layout: Layout) -> None:
    writers = writer.add_xielu_alpha_n, writer.add_xielu_alpha_p, writer.add_xielu_beta, writer.add_xielu_eps
    for write, name in zip(writers, XIELU, strict=True):
        places = (reshaper.checkpoint.block_prefix(target.block) + name for target in layout.targets)
        values = [reshaper.checkpoint.read(place).values() for place in places]  # none where the MLP was removed
        write([float(tensor) for tensors in values for tensor in tensors or [0.0]])


def _ernie(writer: Any, _: Reshaper, layout: Layout) -> None:
    writer.add_leading_dense_block_count([bool(target.experts) for target in layout.targets].index(True))
    writer.add_interleave_moe_layer_step(1)
    writer.add_expert_shared_count(layout.shared)
    writer.add_expert_shared_feed_forward_length(layout.shared * layout.targets[-1].width)


def _hunyuan_moe(writer: Any, _: Reshaper, layout: Layout) -> None:
    writer.add_expert_shared_feed_forward_length(layout.shared * layout.targets[-1].width)


def _minimax(writer: Any, _: Reshaper, __: Layout) -> None:
    from gguf import ExpertGatingFuncType

    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)


def _qwen2_moe(writer: Any, reshaper: Reshaper, _: Layout) -> None:
    writer.add_expert_shared_feed_forward_length(int(reshaper.checkpoint.config.shared_expert_intermediate_size))


def _lfm2(writer: Any, reshaper: Reshaper, _: Layout) -> None:
    writer.add_shortconv_l_cache(int(reshaper.checkpoint.config.conv_L_cache))


WRITERS: dict[str, Callable[[Any, Reshaper, Layout], None]] = {
    "gemma4": _gemma4,
    **dict.fromkeys(("qwen35", "qwen35moe", "qwen3next"), _delta),
    "granitehybrid": _granite_hybrid,
    **dict.fromkeys(("glm4moe", "deepseek2"), _shared_experts),
    "lfm2": _lfm2,
    "ernie4_5-moe": _ernie,
    "hunyuan-moe": _hunyuan_moe,
    "minimax-m2": _minimax,
    "qwen2moe": _qwen2_moe,
    "apertus": _xielu,
}
