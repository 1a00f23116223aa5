"""Plugin of vLLM (entry point `vllm.general_plugins`): pruned models are served without a flag and without padding.

vLLM calls `register` in each of its processes before it reads a model.
"""

from __future__ import annotations


def register() -> None:
    """Register every family's pruned classes with transformers and vLLM."""
    from vllm import ModelRegistry

    from darwinlm.model.families.family import families
    from darwinlm.model.families.pruned import pruned_classes

    for family in families().values():
        if family.mixer is not None or family.tail is not None:
            continue
        _, _, causal = pruned_classes(family)
        adapter = "PrunedForCausalLM" if family.mlp.experts is None else "PrunedMoEForCausalLM"
        if causal.__name__ not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(causal.__name__, f"darwinlm.formats.vllm.vllm_model:{adapter}")
