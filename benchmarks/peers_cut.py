"""Cut a model with one of the packages of `peers.py`; runs in their environment, without darwinlm.

python peers_cut.py PEER DENSE CALIBRATION.json KEEP OUT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = 4


def block_parameters(model: Any) -> int:
    """Parameters of the blocks."""
    return sum(parameter.numel() for parameter in model.model.layers.parameters())


def mlp_percentage(model: Any, keep: float) -> float:
    """Percentage of MLP neurons to remove, with unchanged attention."""
    mlps = sum(parameter.numel() for layer in model.model.layers for parameter in layer.mlp.parameters())
    return 100 * (1 - keep) * block_parameters(model) / mlps


def batches(tokens: Tensor) -> list[dict[str, Tensor]]:
    """Batches in the format of both packages."""
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in torch.split(tokens, ROWS)]


def by_optipfair(model: Any, peer: str, keep: float, tokens: Tensor) -> Any:
    """OptiPFair with its defaults."""
    from optipfair import prune_model

    if peer.endswith("depth"):
        return prune_model(model, pruning_type="DEPTH", depth_pruning_percentage=100 * (1 - keep), show_progress=False)
    data = batches(tokens) if peer.endswith("data") else None
    percentage = mlp_percentage(model, keep)
    return prune_model(model, pruning_percentage=percentage, dataloader=data, show_progress=False)


def by_torch_pruning(model: Any, peer: str, keep: float, tokens: Tensor) -> Any:
    """Torch-Pruning on the MLPs; Taylor importance takes gradients of the next-token loss."""
    import torch_pruning as tp

    taylor = peer.endswith("taylor")
    importance = tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance(p=2)
    share = mlp_percentage(model, keep) / 100
    pruner = tp.pruner.BasePruner(
        model,
        {"input_ids": tokens[:1, :32]},
        importance=importance,
        pruning_ratio=0.0,
        pruning_ratio_dict={layer.mlp.gate_proj: share for layer in model.model.layers},
        ignored_layers=[model.lm_head],
        root_module_types=[nn.Linear],
        output_transform=lambda output: output.logits.sum(),
    )
    if taylor:
        for batch in batches(tokens[:32]):
            model(**batch, labels=batch["input_ids"]).loss.backward()
    pruner.step()
    model.zero_grad()
    width = model.model.layers[0].mlp.gate_proj.out_features
    model.config.intermediate_size = width
    return model


def main() -> None:
    peer, dense, text, keep, out = sys.argv[1:]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    model.config.use_cache = False
    before = block_parameters(model)
    tokens = torch.tensor(json.loads(Path(text).read_text()))
    cut = by_optipfair if peer.startswith("optipfair") else by_torch_pruning
    model = cut(model, peer, float(keep), tokens)
    print(json.dumps({"peer": peer, "kept": block_parameters(model) / before}), flush=True)
    model.config.use_cache = True
    model.to(torch.bfloat16).save_pretrained(out)
    AutoTokenizer.from_pretrained(dense).save_pretrained(out)


if __name__ == "__main__":
    main()
