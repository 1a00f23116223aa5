"""Keys of a GGUF file that only some architectures have, as the family's description lists them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from darwinlm.gguf.layout import Layout
from darwinlm.surgery.reshape import Reshaper

XIELU = "mlp.act_fn."
"""Parameters of Apertus' activation, which are keys of the file."""


def write_further(writer: Any, reshaper: Reshaper, layout: Layout) -> None:
    """Add the keys of `Architecture.keys`."""
    for name, source in layout.architecture.keys.items():
        value: Any = source
        if source == "computed":
            value = COMPUTED[name](reshaper, layout)
        elif isinstance(source, str):
            value = getattr(reshaper.checkpoint.config, source)
        elif isinstance(source, tuple):
            value = prod(getattr(reshaper.checkpoint.config, field) for field in source)
        if value is not None:
            getattr(writer, f"add_{name}")(value)


def _config(find: Callable[[Any], Any]) -> Callable[[Reshaper, Layout], Any]:
    return lambda reshaper, _: find(reshaper.checkpoint.config)


def _smallest_head(reshaper: Reshaper, _: Layout) -> int:
    return min(map(reshaper.columns_of, range(reshaper.checkpoint.n_blocks)))


def _sections(reshaper: Reshaper, layout: Layout) -> list[int]:
    stated = reshaper.checkpoint.config.rope_parameters.get("mrope_section")
    return [*(stated or [layout.rope.turned // 2] * 3), 0][:4]


def _router(reshaper: Reshaper, _: Layout) -> Any:
    from gguf import ExpertGatingFuncType

    return ExpertGatingFuncType[reshaper.family.mlp.experts.scores.upper()]  # type: ignore[union-attr]


def _xielu(name: str) -> Callable[[Reshaper, Layout], list[float]]:
    def find(reshaper: Reshaper, layout: Layout) -> list[float]:
        places = (reshaper.checkpoint.block_prefix(target.block) + XIELU + name for target in layout.targets)
        values = [reshaper.checkpoint.read(place).values() for place in places]  # none where the MLP was removed
        return [float(tensor) for tensors in values for tensor in tensors or [0.0]]

    return find


COMPUTED: dict[str, Callable[[Reshaper, Layout], Any]] = {
    "sliding_window_pattern": _config(lambda c: [kind == "sliding_attention" for kind in c.layer_types]),
    **dict.fromkeys(("key_length_swa", "value_length_swa", "rope_dimension_count_swa"), _smallest_head),
    "rope_freq_base_swa": _config(lambda c: c.rope_parameters["sliding_attention"]["rope_theta"]),
    "embedding_length_per_layer_input": _config(lambda c: c.hidden_size_per_layer_input or 0),
    "full_attention_interval": _config(lambda c: c.layer_types.index("full_attention") + 1),
    "rope_dimension_sections": _sections,
    "rope_scaling_finetuned": _config(lambda c: c.position_embedding_type == "rope"),  # whether there is one
    "leading_dense_block_count": lambda _, layout: [bool(each.experts) for each in layout.targets].index(True),
    "expert_shared_count": lambda _, layout: layout.shared,
    "expert_shared_feed_forward_length": lambda _, layout: layout.shared * layout.targets[-1].width,
    "expert_weights_scale": lambda r, _: r.family.mlp.experts.weight_scale(r.checkpoint.config),  # type: ignore[union-attr]
    "expert_weights_norm": lambda r, _: r.family.mlp.experts.sums_to_one(r.checkpoint.config),  # type: ignore[union-attr]
    "expert_gating_func": _router,
    "expert_group_count": _config(lambda c: c.n_group if (c.n_group or 1) > 1 else None),
    "expert_group_used_count": _config(lambda c: c.topk_group if (c.n_group or 1) > 1 else None),
    "q_lora_rank": _config(lambda c: c.q_lora_rank or 0),
    "key_length_mla": _config(lambda c: c.qk_nope_head_dim + c.qk_rope_head_dim),
    **{f"xielu_{name}": _xielu(name) for name in ("alpha_n", "alpha_p", "beta", "eps")},
}
"""Values of keys that aren't fields of the configuration or products of them."""
