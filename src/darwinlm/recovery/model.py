"""The trained model: its trainable weights, its losses, and its distribution over devices."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from darwinlm import parallel
from darwinlm.recipe import RecoverySettings
from darwinlm.recovery.heads import Dense, Objective, batch_loss, decoder_of, held_out_sums

LORA_ALPHA = 16.0
"""Scale of adapters times their rank, as for QLoRA (arXiv 2305.14314)."""

CORRECTION = "e_score_correction_bias"
"""Tensor of a router that only changes the choice of experts, so that it gets no gradient, for which DDP would wait."""


def prepared(model: Any, settings: RecoverySettings) -> Any:
    """The model with its trainable weights: all, all but embedding and head, or adapters on every projection."""
    if settings.gradient_checkpointing:
        options = {"use_reentrant": False}
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if not settings.lora_rank:
        for name, weight in model.named_parameters():
            weight.requires_grad = not name.endswith(CORRECTION)
        if not settings.embeddings:
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                module.requires_grad_(requires_grad=False)
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=LORA_ALPHA,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft uses names that newer releases of transformers have removed.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


class Losses(nn.Module):
    """A model whose call returns losses, because DDP and FSDP only act on a module's call."""

    def __init__(
        self, model: Any, teacher: Any, settings: RecoverySettings, dtype: torch.dtype, *, sharded: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.teacher = (teacher,)  # a tuple, so that it isn't a submodule
        self.objective = Objective(settings.distillation, again=sharded)
        self.low = torch.bfloat16 if dtype == torch.bfloat16 else None
        self.sharded = sharded

    def forward(self, tokens: Tensor, dense: Dense | None = None, *, held_out: bool = False) -> Any:
        """`batch_loss` of tokens [b, t], or `held_out_sums` of them, with the dense model's outputs."""
        causal = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        (teacher,) = self.teacher
        with torch.autocast(tokens.device.type, self.low, enabled=self.low is not None):
            if held_out:
                assert dense is None or isinstance(dense, Tensor)
                return held_out_sums(causal, teacher, tokens, dense, self.objective.chunk)
            return batch_loss(causal, teacher, tokens, dense, self.objective)


def spread(losses: Losses, device: torch.device) -> nn.Module:
    """The module to call on this process's device: alone, as one of several copies (DDP), or sharded.

    Sharding moves one block at a time, so that no device holds the whole model.
    """
    if losses.sharded:
        (teacher,) = losses.teacher
        if teacher is not None:
            _shard(decoder_of(teacher), teacher, device, None)
        _shard(losses, losses.model, device, losses.low)
        return losses
    losses.to(device)
    if parallel.size() == 1:
        return losses
    devices = None if device.type == "cpu" else [device]
    return DistributedDataParallel(losses, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def _shard(root: nn.Module, model: Any, device: torch.device, low: torch.dtype | None) -> None:
    """Shard a model's weights over all processes, one block at a time (FSDP2)."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(device.type, (parallel.size(),))
    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    named = getattr(model, "_no_split_modules", None) or ()
    for module in [module for module in root.modules() if type(module).__name__ in named]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)
