"""vLLM's adapter of transformers' models, for models in which some layers have no attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from vllm.model_executor.models.transformers import TransformersForCausalLM, TransformersMoEForCausalLM, base


def present_runs(present: Sequence[bool], start: int, end: int) -> Iterator[tuple[int, int]]:
    """Maximal ranges [first, last + 1) of layers with attention among those of this process."""
    for attends, layers in groupby(range(start, end), key=present.__getitem__):
        if attends:
            run = list(layers)
            yield run[0], run[-1] + 1


class _SkipsAttention:
    """Mixin that creates attention, and so a KV cache, only for layers that have one. It comes before vLLM's class."""

    def _create_attention_instances(self, prefix: str = "") -> None:
        config = self.text_config  # type: ignore[attr-defined]
        present = ["attention" not in getattr(layer, "skip", ()) for layer in config.per_layer_config]
        get_pp_indices = base.get_pp_indices
        group = self.pp_group  # type: ignore[attr-defined]
        start, end = get_pp_indices(len(present), group.rank_in_group, group.world_size)
        try:
            for run in present_runs(present, start, end):
                # vLLM iterates over a range of layers and refuses those without attention: pass ranges with attention.
                base.get_pp_indices = lambda *_, run=run: run
                super()._create_attention_instances(prefix)  # type: ignore[misc]
        finally:
            base.get_pp_indices = get_pp_indices


class PrunedForCausalLM(_SkipsAttention, TransformersForCausalLM):  # type: ignore[misc]
    """A pruned language model in vLLM."""


class PrunedMoEForCausalLM(_SkipsAttention, TransformersMoEForCausalLM):  # type: ignore[misc]
    """A pruned mixture of experts in vLLM."""
