"""Models cut by hand: rows and columns chosen freely, so that the modelling file is tested apart from the pipeline."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from darwinlm.families.family import families, family_of
from darwinlm.families.pruned import pruned_classes, pruned_config
from tests.tiny.masked import mlp_of, output_of, shut_out
from tests.tiny.models import FAMILIES

LFM2, GEMMA4 = {"block_auto_adjust_ff_dim": False}, {"use_double_wide_mlp": False}
GROUPS, PER_GROUP, WIDTH = 3, 2, 96
ALL = [(group, head) for group in range(GROUPS) for head in range(PER_GROUP)]


@dataclass
class Kept:
    """What stays of one block: query heads as (group, head in group), and MLP channels, as far as there are so many.

    With `all_groups`, all KV heads stay. Of a mixture some `experts` stay; None keeps all.
    """

    heads: list[tuple[int, int]] = field(default_factory=lambda: ALL)
    channels: list[int] = field(default_factory=lambda: list(range(WIDTH)))
    all_groups: bool = False
    experts: list[int] | None = None

    @property
    def groups(self) -> list[int]:
        return list(range(GROUPS)) if self.all_groups else sorted({group for group, _ in self.heads})

    @property
    def cached(self) -> int:
        return len(self.heads) if self.all_groups else len(self.groups)

    def within(self, width: int) -> list[int]:
        """Channels of an MLP that has so many."""
        return [channel for channel in self.channels if channel < width]

    def overrides(self, mlp: nn.Module, experts: str, count: str) -> dict[str, Any]:
        """What the configuration says of the layer; `experts` and `count` are its fields for a mixture."""
        lone = {"GraniteMoeHybridMLP": "shared_intermediate_size"}.get(type(mlp).__name__, "intermediate_size")
        skip = [name for name, kept in (("attention", self.heads), ("mlp", self.channels)) if not kept]
        sizes: dict[str, Any] = {}
        if self.heads and self.heads != ALL:
            sizes |= {"num_attention_heads": len(self.heads), "num_key_value_heads": self.cached}
        if self.heads and self.all_groups:
            sizes |= {"query_groups": [group for group, _ in self.heads], "stored_kv_heads": GROUPS}
        if self.channels:
            name = experts if hasattr(mlp, "experts") else lone
            sizes[name] = len(self.within(width_of(mlp)))
            sizes |= {"Lfm2MLP": LFM2, "Gemma4TextMLP": GEMMA4}.get(type(mlp).__name__, {})
            for shared in ("shared_experts", "shared_mlp"):
                if hasattr(mlp, shared):
                    sizes["shared_expert_width"] = getattr(mlp, shared).intermediate_size
            if self.experts is not None and hasattr(mlp, "experts"):
                sizes[count] = len(self.experts)
        elif isinstance(mlp, SimpleNamespace):  # an MLP beside experts, which go too
            sizes |= {"enable_moe_block": False} if count == "num_experts" else {"num_local_experts": 0}
        return {**sizes, **({"skip": skip} if skip else {})}


ODD, EVEN = list(range(1, WIDTH, 2)), list(range(0, WIDTH, 3))
PLANS = {
    # the first layer has no attention, a middle one is empty, the last has no MLP and one head a group
    "no attention first": [Kept([]), Kept(ALL[:2] + ALL[4:], ODD), Kept([], []), Kept([(0, 1), (1, 0), (2, 1)], [])],
    # the first layer is empty, so is the attention of the first full layer of a model with sliding ones
    "nothing first": [Kept([], []), Kept([], EVEN), Kept([(1, 0)]), Kept()],
    # query heads go one by one, keys and values stay
    "query heads": [
        Kept([(0, 1), (1, 0), (1, 1)], all_groups=True),
        Kept([(2, 0)], ODD, all_groups=True),
        Kept([]),
        Kept(),
    ],
    # of mixtures, experts go, some of them besides channels
    "experts": [
        Kept(experts=[0, 3]),
        Kept(channels=ODD, experts=[1, 2, 3]),
        Kept([], experts=[1, 3]),
        Kept(experts=[0, 1, 2]),
    ],
    # only widths differ
    "widths": [Kept(), Kept(ALL[2:4], EVEN), Kept([(0, 0), (2, 1)]), Kept(channels=ODD)],
    # only whole sub-layers go
    "skips": [Kept(), Kept([]), Kept(channels=[]), Kept([], [])],
}
ATTENTIONS = ("full_attention", "sliding_attention")
MIXED = PLANS["no attention first"]
GROUPED = ("deepseek_v3",)
"""Families whose routers choose among groups of experts, all of which stay."""
LATENT = ("deepseek_v2", "deepseek_v3", "glm4_moe_lite")
"""Families that compress keys and values, and cache a single head of them."""
SHARED = {"gemma4_text": (1, 3)}
"""Layers that share keys and values, and keep their attentions."""
WHOLE = ("olmoe", "minimax_m2", "olmo2", "olmo3", "helium", "gpt_oss", *LATENT)
"""Families whose query and key norms span all heads, whose output projection has a fixed size (Helium), whose heads
have more than rows and columns (gpt-oss), or share a latent: an attention stays whole or goes."""


def plan_for(model_type: str, name: str) -> list[Kept]:
    """A plan as a family can follow it: of a layer with another token mixer only the MLP is cut."""
    plan = PLANS[name]
    if model_type in WHOLE:
        plan = [replace(kept, heads=ALL if kept.heads else [], all_groups=False) for kept in plan]
    whole = [mixer or block in SHARED.get(model_type, ()) for block, mixer in enumerate(mixers(model_type))]
    plan = [replace(kept, heads=ALL, all_groups=False) if one else kept for kept, one in zip(plan, whole, strict=True)]
    return [replace(kept, experts=None) for kept in plan] if model_type in GROUPED else plan


def cases(*names: str) -> list[tuple[str, str]]:
    """Families, each with those of the plans that cut something in it which the other plans don't."""
    mixtures = {name for name, family in families().items() if family.mlp.experts is not None}
    pointless = {"query heads": WHOLE, "experts": (FAMILIES.keys() - mixtures) | set(GROUPED)}
    return [(family, name) for family in FAMILIES for name in names if family not in pointless.get(name, ())]


def mixers(model_type: str) -> list[bool]:
    """Which layers have another token mixer than an attention, such as linear attention."""
    kinds = FAMILIES[model_type.removeprefix("darwinlm_")].get("layer_types") or ["full_attention"] * len(MIXED)
    return [kind not in ATTENTIONS for kind in kinds]


def width_of(mlp: nn.Module) -> int:
    """Channels of an MLP, or of each of its experts."""
    if not hasattr(mlp, "experts"):
        return output_of(mlp).in_features
    return mlp.experts.down_proj.shape[1 if mlp.experts.is_transposed else 2]


def rows(weight: torch.Tensor, blocks: list[int], size: int, dim: int = 0) -> torch.Tensor:
    index = torch.tensor([block * size + i for block in blocks for i in range(size)])
    return weight.index_select(dim, index)


def of_experts(name: str, weight: torch.Tensor, experts: list[int] | None) -> torch.Tensor:
    """What stays of a tensor in which every expert has a row, or a correction in the last place."""
    if experts is None:
        return weight
    if name.endswith("e_score_correction_bias"):
        return weight[..., experts]
    counted = ".mlp.gate." in name or (".router." in name and not name.endswith(".scale")) or ".experts." in name
    return weight[experts] if counted else weight


def stays(name: str, weight: torch.Tensor, kept: Kept, size: int, *, mixer: bool = False) -> torch.Tensor:
    """The rows or columns of a block's weight that stay."""
    weight = of_experts(name, weight, kept.experts)
    heads = [group * PER_GROUP + head for group, head in kept.heads]
    keys = [len(ALL) + group for group in kept.groups]
    values = [key + GROUPS for key in keys]
    part, kind = name.split(".")[-2:]
    if (
        (mixer and part == "out_proj")
        or "shared_expert" in name
        or ".mlp.shared_mlp." in name
        or (".self_attn." in name and kept.heads == ALL)
    ):
        return weight
    match part, kind:
        case "q_proj", _:
            return rows(weight, heads, weight.shape[0] // len(ALL))  # a head's gate stands beside it
        case "k_proj" | "v_proj", _:
            return rows(weight, kept.groups, size)
        case "qkv_proj", _:
            return rows(weight, heads + keys + values, size)
        case "o_proj" | "out_proj", "weight":
            return rows(weight, heads, size, dim=1)
        case "gate_proj" | "up_proj" | "w1" | "w3", _:
            return rows(weight, kept.within(weight.shape[0]), 1)
        case ("gate_up_proj" | "input_linear", _) | ("experts", "gate_up_proj"):
            dim = weight.ndim - 2
            width = weight.shape[dim] // 2
            channels = kept.within(width)
            return rows(weight, channels + [width + channel for channel in channels], 1, dim)
        case ("down_proj" | "w2" | "output_linear", "weight") | ("experts", "down_proj"):
            return rows(weight, kept.within(weight.shape[-1]), 1, dim=weight.ndim - 1)
    return weight


def stays_of_gpt_oss(name: str, weight: torch.Tensor, kept: Kept, size: int) -> torch.Tensor:
    """The same, where experts' rows of gate and up alternate in the last place, and experts have biases."""
    part = name.rpartition(".mlp.experts.")[2]
    if part == name:
        return stays(name, weight, kept, size)
    weight = weight if kept.experts is None else weight[kept.experts]
    if part.startswith("gate_up_proj"):
        return rows(weight, kept.within(weight.shape[-1] // 2), 2, weight.ndim - 1)
    return rows(weight, kept.within(weight.shape[1]), 1, 1) if part == "down_proj" else weight


def cut(dense: Any, plan: list[Kept]) -> Any:
    """The smaller model: kept rows and columns of the dense one, loaded strictly."""
    config_class, _, model_class = pruned_classes(*family_of(dense.config).class_names)
    experts = "moe_intermediate_size" if hasattr(dense.config, "moe_intermediate_size") else "intermediate_size"
    counts = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
    count = next((name for name in counts if name in dense.config.to_dict()), "")
    blocks = dense.model.layers
    layers = {i: kept.overrides(mlp_of(blocks[i]), experts, count) for i, kept in enumerate(plan)}
    config = pruned_config(config_class, dense.config, layers)
    model = model_class(config).eval()
    wanted = model.state_dict()
    state = {name: weight for name, weight in dense.state_dict().items() if name in wanted}
    for name in state:
        if ".layers." in name:
            layer = int(name.split(".")[2])
            mixer = getattr(blocks[layer], "self_attn", None) is None
            size = config.per_layer_config[layer].head_dim
            if isinstance(mlp_of(blocks[layer]), SimpleNamespace) and (".mlp." in name or ".shared_mlp." in name):
                continue  # beside experts
            if config.model_type == "darwinlm_gpt_oss":
                state[name] = stays_of_gpt_oss(name, state[name], plan[layer], size)
            else:
                state[name] = stays(name, state[name], plan[layer], size, mixer=mixer)
    model.load_state_dict(state)
    return model


def blanked(dense: Any, plan: list[Kept]) -> Any:
    """The dense model with zeros for what was removed."""
    model = copy.deepcopy(dense)
    with torch.no_grad():
        for block, kept in zip(model.model.layers, plan, strict=True):
            if getattr(block, "self_attn", None) is not None:
                out = output_of(block.self_attn)
                columns = out.weight.view(out.weight.shape[0], GROUPS, PER_GROUP, -1)
                for group, head in set(ALL) - set(kept.heads):
                    columns[:, group, head] = 0
                if not kept.heads and out.bias is not None:
                    out.bias.zero_()
            mlp = mlp_of(block)
            width = width_of(mlp)
            gone = sorted(set(range(width)) - set(kept.channels))
            if hasattr(mlp, "experts"):
                if kept.experts is not None:
                    shut_out(mlp, set(range(mlp.experts.num_experts)) - set(kept.experts))
                down = mlp.experts.down_proj
                (down.mT if mlp.experts.is_transposed else down)[..., gone] = 0
                for name, tensor in mlp.named_parameters():
                    if not kept.channels and ("down_proj" in name or "output_linear" in name):
                        tensor.zero_()
                continue
            down = output_of(mlp)
            down.weight[:, gone] = 0
            if not kept.channels and down.bias is not None:
                down.bias.zero_()
    return model


def tokens(batch: int = 2, length: int = 24, seed: int = 0) -> torch.Tensor:
    """Token ids [b, t], none of them special."""
    return torch.randint(3, 300, (batch, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """[b, t] -> [b, t, v]."""
    return model(input_ids=ids, **kwargs).logits


def near(a: torch.Tensor, b: torch.Tensor, model: Any, atol: float = 2e-5) -> None:
    """Equal but for rounding, which random linear attentions of this model amplify."""
    if "linear_attention" in (getattr(model.config, "layer_types", None) or ()):
        atol = max(atol, 5e-4)
    torch.testing.assert_close(a, b, rtol=0, atol=atol)
