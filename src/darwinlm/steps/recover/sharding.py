"""Models over several processes: whole copies (DDP), or weights that the processes share (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ParallelError
from darwinlm.steps.recover.reading_model import ReadingLosses
from darwinlm.steps.recover.trained_model import Losses, decoder_of

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedModel


def sharding_mesh(sharding: str, device: torch.device) -> DeviceMesh | None:
    """The processes that share the weights of a training; None if every process has all of them.

    With `hsdp` those of a node share one copy and nodes replicate it, so that only sums of gradients cross the network.
    Raises ParallelError if nodes differ.
    """
    if sharding == "none" or parallel.size() == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    count, on_a_node = parallel.size(), parallel.local_size()
    if sharding == "fsdp" or on_a_node == count:
        return init_device_mesh(device.type, (count,))
    if on_a_node == 1 or set(parallel.gather(on_a_node)) != {on_a_node}:
        raise ParallelError(
            "recovery.sharding=hsdp shares the weights within a node, and needs the same number of processes, two or "
            "more, on each: start torchrun so, or set recovery.sharding=fsdp"
        )
    return init_device_mesh(device.type, (count // on_a_node, on_a_node), mesh_dim_names=("node", "process"))


def load_teacher(
    teacher: Checkpoint, dtype: torch.dtype, device: torch.device, mesh: DeviceMesh | None
) -> PreTrainedModel:
    """The dense model on this process's device, or its share of it: no device holds more than one whole block.

    Raises CheckpointError.
    """
    if mesh is None:
        return teacher.load(dtype, device)
    from torch.distributed.fsdp import fully_shard

    model = teacher.load(dtype, device, on_block=partial(fully_shard, mesh=mesh))
    fully_shard(decoder_of(model), mesh=mesh)
    return model


def spread(losses: Losses | ReadingLosses, device: torch.device, mesh: DeviceMesh | None) -> nn.Module:
    """The module to call on this process's device: alone, as one of several copies, or sharded.

    Blocks of a sharded one were sharded when they were loaded (`sharder`).
    """
    if mesh is not None:
        sharder(losses.low, mesh)(losses)
        return losses
    losses.to(device)
    if parallel.size() == 1:
        return losses
    devices = None if device.type == "cpu" else [device]
    return DistributedDataParallel(losses, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def sharder(low: torch.dtype | None, mesh: DeviceMesh | None) -> Callable[[nn.Module], object]:
    """What shards a block of the trained model as soon as it is loaded; nothing without a `mesh`.

    `low` is the type of forward and backward passes, if it isn't float32.
    """
    if mesh is None:
        return lambda block: None
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None)
    return partial(fully_shard, mesh=mesh, mp_policy=policy)
