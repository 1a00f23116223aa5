"""The rate of a device: operations per second of passes through a block, measured in seconds."""

from __future__ import annotations

import time
from dataclasses import fields
from functools import cached_property

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shard_reading import Empty, in_memory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.compute import await_device
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.text.text_settings import TextSettings

ENOUGH = 2.0
"""Seconds after which no larger batch is timed."""


class _ConstantWeights(Checkpoint):
    """A checkpoint whose weights are all equal, from its configuration alone."""

    @cached_property
    def tensors(self) -> dict[str, torch.Size]:  # type: ignore[override]
        return {name: tensor.shape for name, tensor in self.outline.state_dict().items()}

    def read(
        self, prefix: str = "", *, dtype: torch.dtype | None = None, mapped: bool = True, empty: Empty = in_memory
    ) -> dict[str, Tensor]:
        del mapped, empty  # nothing is read
        tensors = {name: torch.full(shape, 0.01) for name, shape in self.tensors.items() if name.startswith(prefix)}
        kind = dtype or torch.float32
        return {name.removeprefix(prefix): self.cast(name, tensor, kind) for name, tensor in tensors.items()}

    def rows(self, name: str, index: Tensor, *, dtype: torch.dtype) -> Tensor:
        return torch.rand(len(index), *self.tensors[name][1:]).to(dtype)


@torch.no_grad()
def measure_rate(sizes: RunSizes, device: torch.device) -> float:
    """Operations per second of passes through a block, in batches that grow up to the run's own within seconds.

    On a CPU it is the rate of an idle machine: a batch that had to wait counts with its processor time.
    """
    checkpoint, length = sizes.checkpoint, sizes.recipe.section(TextSettings).sequence_length
    weights = _ConstantWeights(**{field.name: getattr(checkpoint, field.name) for field in fields(checkpoint)})
    text = torch.randint(int(checkpoint.config.vocab_size), (max(sizes.pass_tokens // length, 1), length))
    decoder = StreamedDecoder(weights, text, dtype=sizes.dtype, device=device)
    block = max(range(sizes.depth), key=sizes.params_of)
    source = checkpoint.family.attention.sources(checkpoint.config).get(block)  # whose keys and values it reuses
    through = sum(sizes.through_module(shape) for shape in sizes.shapes if shape.block == block)
    for count in [1, *(min(1 << power, len(text)) for power in range(len(text).bit_length() + 1))]:  # once to warm up
        tokens = text[:count]
        hidden, arguments = decoder.embed(tokens), decoder.block_arguments(tokens)
        for number in (block,) if source is None else (source, block):
            decoder.load(number)
            await_device(device)
            wall, processor = time.perf_counter(), time.process_time()
            decoder.run_block(number, hidden, arguments[number])
        await_device(device)
        seconds, used = time.perf_counter() - wall, time.process_time() - processor
        seconds = min(seconds, used / torch.get_num_threads()) if device.type == "cpu" else seconds
        if seconds > ENOUGH:
            break
    return tokens.numel() * through / max(seconds, 1e-9)
