"""Names in GGUF files of tensors that only some architectures have, by their names inside a block."""

from __future__ import annotations

from collections.abc import Mapping

OUTSIDE: Mapping[str, str] = {
    "model.embed_tokens_per_layer.weight": "per_layer_token_embd.weight",
    "model.per_layer_model_projection.weight": "per_layer_model_proj.weight",
    "model.per_layer_projection_norm.weight": "per_layer_proj_norm.weight",
}
"""The same outside the blocks, by names in the model."""

GEMMA4: Mapping[str, str] = {
    "layer_scalar": "layer_output_scale.weight",
    "per_layer_input_gate.weight": "inp_gate.weight",
    "per_layer_projection.weight": "proj.weight",
    "post_per_layer_input_norm.weight": "post_norm.weight",
}
GEMMA4_EXPERTS: Mapping[str, str] = {
    **GEMMA4,
    **{f"mlp.{part}_proj.weight": f"ffn_{part}.weight" for part in ("gate", "up", "down")},
    "experts.gate_up_proj": "ffn_gate_up_exps.weight",
    "experts.down_proj": "ffn_down_exps.weight",
    "router.proj.weight": "ffn_gate_inp.weight",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "post_feedforward_layernorm_1.weight": "post_ffw_norm_1.weight",
    "pre_feedforward_layernorm_2.weight": "pre_ffw_norm_2.weight",
    "post_feedforward_layernorm_2.weight": "post_ffw_norm_2.weight",
}
QWEN3_5: Mapping[str, str] = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
QWEN3_5_MOE: Mapping[str, str] = {
    **QWEN3_5,
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    **{f"mlp.shared_expert.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")},
}
QWEN3_NEXT: Mapping[str, str] = {
    **{name: place for name, place in QWEN3_5_MOE.items() if ".in_proj_" not in name},
    "linear_attn.in_proj_qkvz.weight": "ssm_in.weight",
    "linear_attn.in_proj_ba.weight": "ssm_ba.weight",
}
GRANITE_HYBRID: Mapping[str, str] = {
    "mamba.in_proj.weight": "ssm_in.weight",
    "mamba.conv1d.weight": "ssm_conv1d.weight",
    "mamba.conv1d.bias": "ssm_conv1d.bias",
    "mamba.dt_bias": "ssm_dt.bias",
    "mamba.A_log": "ssm_a",
    "mamba.D": "ssm_d",
    "mamba.norm.weight": "ssm_norm.weight",
    "mamba.out_proj.weight": "ssm_out.weight",
}
GRANITE_HYBRID_EXPERTS: Mapping[str, str] = {
    **GRANITE_HYBRID,
    "block_sparse_moe.router.weight": "ffn_gate_inp.weight",
    "shared_mlp.ffn_gate.weight": "ffn_gate_shexp.weight",
    "shared_mlp.ffn_up.weight": "ffn_up_shexp.weight",
    "shared_mlp.output_linear.weight": "ffn_down_shexp.weight",
}
GLM4_MOE: Mapping[str, str] = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    **{f"mlp.shared_experts.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")},
}
ERNIE_MOE: Mapping[str, str] = {
    "mlp.gate.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
    **{name: place for name, place in GLM4_MOE.items() if ".shared_experts." in name},
}
HUNYUAN_MOE: Mapping[str, str] = {
    "mlp.gate.wg.weight": "ffn_gate_inp.weight",
    **{f"mlp.shared_mlp.{part}_proj.weight": f"ffn_{part}_shexp.weight" for part in ("gate", "up", "down")},
}
MINIMAX: Mapping[str, str] = {"mlp.e_score_correction_bias": "exp_probs_b.bias"}
QWEN2_MOE: Mapping[str, str] = {name: place for name, place in QWEN3_5_MOE.items() if name.startswith("mlp.")}
DEEPSEEK2: Mapping[str, str] = {
    **{name: place for name, place in GLM4_MOE.items() if name.startswith("mlp.")},
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.q_a_proj.weight": "attn_q_a.weight",
    "self_attn.q_a_layernorm.weight": "attn_q_a_norm.weight",
    "self_attn.q_b_proj.weight": "attn_q_b.weight",
    "self_attn.kv_a_proj_with_mqa.weight": "attn_kv_a_mqa.weight",
    "self_attn.kv_a_layernorm.weight": "attn_kv_a_norm.weight",
    "self_attn.k_b_proj.weight": "attn_k_b.weight",
    "self_attn.v_b_proj.weight": "attn_v_b.weight",
}
GPT_OSS: Mapping[str, str] = {
    "self_attn.sinks": "attn_sinks.weight",
    "post_attention_layernorm.weight": "post_attention_norm.weight",
}
XIELU = tuple(f"mlp.act_fn.{name}" for name in ("alpha_n", "alpha_p", "beta", "eps"))
"""Parameters of Apertus' activation, which are keys of the file."""
LFM2: Mapping[str, str] = {
    "self_attn.q_layernorm.weight": "attn_q_norm.weight",
    "self_attn.k_layernorm.weight": "attn_k_norm.weight",
    "conv.conv.weight": "shortconv.conv.weight",
    "conv.in_proj.weight": "shortconv.in_proj.weight",
    "conv.out_proj.weight": "shortconv.out_proj.weight",
}
