"""The dense model with zeros for all that is removed: what a smaller model must compute, found another way.

Rows are looked up by the names of projections, one by one, and not through the description of the family.

Letters: r rows, d columns, e experts.
"""

from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from darwinlm.model.units.space import Allocation
from darwinlm.steps.database.store import DatabaseReader
from tests.tiny.models import layers_of, mlp_of, output_of


@torch.no_grad()
def masked(reader: DatabaseReader, allocation: Allocation) -> Any:
    """The dense model with zeros for all that is removed and the database's weights scattered into place."""
    checkpoint = reader.checkpoint
    model = checkpoint.load(torch.float32)
    for module, index in zip(reader.modules, allocation, strict=True):
        level, shape = module.levels[index], reader.shapes[module.block, module.kind]
        kept = reader.kept(module.block, module.kind, level)
        if kept.weight is None:
            continue
        block = layers_of(model)[module.block]
        if module.kind == "mlp":
            _mask_mlp(mlp_of(block), kept.columns, kept.weight, kept.experts)
        else:
            names = ("attn", "self_attn", "attention")
            attention = next(getattr(block, name) for name in names if hasattr(block, name))
            _mask_attention(attention, kept.columns, kept.weight, shape.sizes.head_dim, shape.sizes.heads)
    _remove_empty(model, reader, allocation)
    return model


def _remove_empty(model: Any, reader: DatabaseReader, allocation: Allocation) -> None:
    """Take out the norms of blocks without any sub-layer, if they are applied to the stream itself."""
    present = {module.block for module, index in zip(reader.modules, allocation, strict=True) if index}
    for number, block in enumerate(layers_of(model)):
        if number not in present and hasattr(block, "intermediate"):
            block.attention.output.LayerNorm = block.output.LayerNorm = nn.Identity()


def _with_gates(attention: nn.Module, query: set[int], head_dim: int) -> set[int]:
    """Rows of queries, and in a projection of twice as many those of the gates: every other run of a head."""
    if attention.q_proj.out_features == output_of(attention).in_features:
        return query
    return {row + (row // head_dim + gate) * head_dim for row in query for gate in (0, 1)}


def _mask_attention(attention: nn.Module, columns: Tensor, weight: Tensor, head_dim: int, heads: int) -> None:
    _scatter(output_of(attention), columns, weight)
    if not len(columns):
        return
    per_group = getattr(attention, "num_key_value_groups", 1)  # encoders have none
    query = {int(column) for column in columns}
    config = getattr(attention, "config", None)
    if getattr(config, "query_groups", None):  # its keys and values are shared: without queries they are idle
        _zero_rows(attention.q_proj, _with_gates(attention, query, head_dim))
        return
    groups = {column // head_dim // per_group for column in query}
    key = {group * head_dim + i for group in groups for i in range(head_dim)}
    fused = next((getattr(attention, name) for name in ("qkv_proj", "Wqkv") if hasattr(attention, name)), None)
    if fused is not None:
        after_query = heads * head_dim
        after_key = after_query + heads // per_group * head_dim
        stay = query | {after_query + row for row in key} | {after_key + row for row in key}
        _zero_rows(fused, stay)
    elif hasattr(attention, "self"):
        for projection in (attention.self.query, attention.self.key, attention.self.value):
            _zero_rows(projection, query)
    else:
        _zero_rows(attention.q_proj, _with_gates(attention, query, head_dim))
        _zero_rows(attention.k_proj, key)
        if attention.v_proj is not None:  # else its values are its keys
            _zero_rows(attention.v_proj, key)


def _mask_mlp(mlp: nn.Module, columns: Tensor, weight: Tensor, kept: Tensor | None) -> None:
    if kept is not None and not len(kept):
        for name, tensor in mlp.named_parameters():
            if "down_proj" in name or "output_linear" in name:
                tensor.zero_()
        return
    if kept is not None:
        experts = mlp.experts
        shut_out(mlp, set(range(experts.num_experts)) - set(kept.tolist()))
        down = experts.down_proj.mT if experts.is_transposed else experts.down_proj
        for place, own in enumerate(columns):
            expert = int(kept[place])
            gone = torch.ones(down.shape[-1], dtype=torch.bool)
            gone[own] = False
            down[expert].zero_()[:, own] = weight[place]
            if experts.is_transposed:  # and its rows of gate and up alternate
                experts.gate_up_proj[expert][:, gone.repeat_interleave(2)] = 0
                experts.gate_up_proj_bias[expert][gone.repeat_interleave(2)] = 0
            else:
                experts.gate_up_proj[expert][torch.cat([gone, gone])] = 0
        return
    down = output_of(mlp)
    _scatter(down, columns, weight)
    stay = {int(column) for column in columns}
    fused = next((getattr(mlp, name) for name in ("gate_up_proj", "input_linear", "Wi") if hasattr(mlp, name)), None)
    if fused is not None:
        _zero_rows(fused, stay | {down.in_features + row for row in stay})
    else:
        for name in ("gate_proj", "up_proj", "w1", "w3", "intermediate"):
            if hasattr(mlp, name):
                _zero_rows(getattr(mlp, name), stay)


def shut_out(mlp: nn.Module, gone: set[int]) -> None:
    """No token is sent to these experts: their logits are minus infinity before the router makes anything of them."""
    index = torch.tensor(sorted(gone), dtype=torch.int64)
    router = getattr(mlp, "gate", None) or mlp.router
    choose, linear = router.forward, nn.functional.linear
    for name, tensor in (*mlp.named_parameters(), *getattr(mlp, "named_buffers", tuple)()):
        if name.endswith("e_score_correction_bias"):  # it is added to what becomes of the logits
            tensor[..., index] = -torch.inf

    def closed(*arguments: Any) -> Tensor:
        return linear(*arguments).index_fill(-1, index, -torch.inf)

    def forward(*arguments: Tensor) -> Any:
        with patch.object(nn.functional, "linear", closed):
            return choose(*arguments)

    router.forward = forward


def _scatter(output: nn.Linear, columns: Tensor, weight: Tensor) -> None:
    assert weight.shape == (output.out_features, len(columns))
    output.weight.zero_()[:, columns] = weight
    if len(columns) == 0 and output.bias is not None:
        output.bias.zero_()


def _zero_rows(projection: nn.Linear, stay: set[int]) -> None:
    gone = torch.tensor([row not in stay for row in range(projection.out_features)])
    projection.weight[gone] = 0
    if projection.bias is not None:
        projection.bias[gone] = 0


@torch.no_grad()
def logits(model: Any, tokens: Tensor) -> Tensor:
    """Logits of a language model, or the states of an encoder."""
    outputs = model(input_ids=tokens, use_cache=False)
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def assert_equal_logits(model: Any, reference: Any, tokens: Tensor) -> None:
    """Equal but for the rounding of float32, in units of the largest logit; linear attention amplifies it."""
    expected = logits(reference, tokens)
    tolerance = 1e-4 if "linear_attention" in (getattr(model.config, "layer_types", None) or ()) else 1e-5
    assert (logits(model, tokens) - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1)
