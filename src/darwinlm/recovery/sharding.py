"""Models over several processes: whole copies (DDP), or weights that the processes share (FSDP2)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.family import family_of
from darwinlm.recovery.model import Losses, decoder_of
from darwinlm.runtime import parallel
from darwinlm.runtime.memory import free_bytes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


STATE_BYTES = 16
"""Bytes of a trained parameter: its float32 weight and gradient, and AdamW's two moments."""

NODE_SHARE = 0.5
"""Largest share of a device's free memory for the state of a training within a node; activations, gathered blocks and
whole gradients need the rest. Our choice."""


def state_bytes(student: Checkpoint, teacher: Checkpoint | None, dtype: torch.dtype) -> int:
    """Bytes of a whole training with all weights trained, and of its dense model in the type of the passes."""
    dense = 0 if teacher is None else dtype.itemsize * _parameters(teacher)
    return STATE_BYTES * _parameters(student) + dense


def _parameters(checkpoint: Checkpoint) -> int:
    return sum(parameter.numel() for parameter in checkpoint.outline.parameters())


def sharding_mesh(sharding: str, device: torch.device, state: int) -> DeviceMesh | None:
    """The processes that share the weights of a training of `state` bytes; None if every process has all of them.

    Where a node has room, its processes share one copy and the nodes replicate it (HSDP), so that only sums of
    gradients cross the network. Otherwise all processes share one copy.
    """
    if sharding != "fsdp" or parallel.size() == 1:
        return None
    from torch.distributed.device_mesh import init_device_mesh

    shape = mesh_shape(state, parallel.gather((parallel.local_size(), free_bytes(device))))
    return init_device_mesh(device.type, shape, mesh_dim_names=("node", "process")[-len(shape) :])


def mesh_shape(state: float, processes: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Nodes and processes of each, or only the number of all processes.

    `processes` are, by rank, the number of processes on the same node and the free bytes of the device.
    """
    count, on_a_node = len(processes), processes[0][0]
    equal = 1 < on_a_node < count and count % on_a_node == 0 and all(size == on_a_node for size, _ in processes)
    if equal and state / on_a_node <= NODE_SHARE * min(free for _, free in processes):
        return count // on_a_node, on_a_node
    return (count,)


def load_teacher(teacher: Checkpoint, dtype: torch.dtype, device: torch.device, mesh: DeviceMesh | None) -> Any:
    """The dense model on this process's device, or its share of it: no device holds more than one whole block.

    Raises CheckpointError.
    """
    if mesh is None:
        return teacher.load(dtype, device)
    from torch.distributed.fsdp import fully_shard

    model = teacher.load(dtype, device, each=partial(fully_shard, mesh=mesh))
    fully_shard(decoder_of(model), mesh=mesh)
    return model


def spread(losses: Losses, device: torch.device, mesh: DeviceMesh | None) -> nn.Module:
    """The module to call on this process's device: alone, as one of several copies, or sharded one block at a time."""
    if mesh is not None:
        _shard(losses, device, mesh)
        return losses
    losses.to(device)
    if parallel.size() == 1:
        return losses
    devices = None if device.type == "cpu" else [device]
    return DistributedDataParallel(losses, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)


def _shard(losses: Losses, device: torch.device, mesh: DeviceMesh) -> None:
    """Shard the trained weights. Each block moves to the device alone."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    policy = MixedPrecisionPolicy(param_dtype=losses.low, reduce_dtype=torch.float32 if losses.low else None)
    for block in losses.model.get_submodule(family_of(losses.model.config).layers).children():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(losses, mesh=mesh, mp_policy=policy)
