"""Walk a checkpoint block by block: one block's weights in memory at a time, one forward pass for each block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from darwinlm import parallel
from darwinlm.calibration.expert_order import ExpertOrder
from darwinlm.calibration.experts import (
    RoutedSample,
    Routing,
    expert_inputs,
    expert_module,
    order_experts,
    output_sizes,
    watch_experts,
)
from darwinlm.calibration.hidden import HiddenMemory, HiddenStates
from darwinlm.calibration.moments import ExpertMoments, SecondMoment
from darwinlm.errors import NumericsError
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.decoder import Decoder
from darwinlm.families.expert_tensors import by_rows
from darwinlm.families.family import Family
from darwinlm.families.parts import Experts, ModuleKind
from darwinlm.families.shapes import output_name

Saliency = Callable[[int], Mapping[ModuleKind, Tensor]]
"""Second moments [r, r] of the output gradients of a block's modules, for weighted removal orders."""

ORDER_TOKENS: Final = 8192
"""Tokens of all processes for the removal order of experts; each takes k + 2 vectors of the residual width."""


@dataclass
class BlockMoments:
    """Calibration results of one block.

    Attributes:
        moments: E[x xᵀ] of the output projection's input, [d, d] float32, for each module that exists and may be cut;
            [e, d, d] for the experts of a mixture.
        weights: Weights of the output projections in the checkpoint's type, by name inside the block.
        experts: Removal order of whole experts; None without a mixture.
    """

    block: int
    moments: dict[ModuleKind, Tensor]
    weights: dict[str, Tensor]
    experts: ExpertOrder | None = None


class BlockStream:
    """The residual stream of some text between two blocks, moved forward one block at a time.

    The text is [n, t]; `dtype` and `device` are those of the forward pass, which has `batch_tokens` tokens. Without a
    `memory`, all of the stream is on the device. Raises StorageError if the disk has no room for a stream that doesn't
    fit in memory.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device,
        batch_tokens: int,
        memory: HiddenMemory | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self.batch_sequences = max(1, batch_tokens // tokens.shape[1])
        model = checkpoint.skeleton()
        self.decoder = Decoder(model, checkpoint.family)
        for name, module in model.named_modules():
            if not name.startswith(checkpoint.family.layers):
                for key, buffer in module.named_buffers(recurse=False):
                    module._buffers[key] = buffer.to(device)
        with self._small_embedding(tokens) as places:
            batches = torch.split(places, self.batch_sequences) if len(places) else ()
            elements = tokens.numel() * int(checkpoint.config.hidden_size)
            self.hidden = HiddenStates((self.decoder.embed(batch) for batch in batches), elements, memory)
            self._arguments: list[list[dict[str, Any]]] = []
            self._slices = self._layer_inputs(batches, tokens.numel(), memory)

    def _layer_inputs(
        self, batches: Sequence[Tensor], n_tokens: int, memory: HiddenMemory | None
    ) -> HiddenStates | None:
        """Collect the arguments of all blocks for each batch; inputs of layers, [b, t, n, size], may go to a file."""
        tail, config = self.checkpoint.family.tail, self.checkpoint.config
        if tail is None or not getattr(config, tail.width):
            self._arguments = [self.decoder.block_arguments(batch) for batch in batches]
            return None

        def stacked() -> Iterator[Tensor]:
            for batch in batches:
                arguments = self.decoder.block_arguments(batch)
                yield torch.stack([row.pop(tail.argument) for row in arguments], dim=2)
                self._arguments.append(arguments)

        return HiddenStates(stacked(), n_tokens * len(self.decoder.blocks) * getattr(config, tail.width), memory)

    def arguments(self, index: int, block: int) -> dict[str, Any]:
        """Arguments of a block's call on a batch."""
        arguments = self._arguments[index][block]
        if self._slices is None:
            return arguments
        assert self.checkpoint.family.tail is not None
        return {**arguments, self.checkpoint.family.tail.argument: self._slices[index][:, :, block]}

    @contextmanager
    def _small_embedding(self, tokens: Tensor) -> Iterator[Tensor]:
        """Temporarily reduce embeddings to the rows of these tokens; yields their indices in them, [n, t]."""
        family, tail = self.checkpoint.family, self.checkpoint.family.tail
        used, places = torch.unique(tokens, return_inverse=True)
        names = [family.embedding]
        if tail is not None and getattr(self.checkpoint.config, tail.width):
            names.append(tail.embedding)
            large = tuple(f"{name}." for name in (*names, family.head))
            self._replace_outside(lambda name, old: old if name.startswith(large) else self._outside(name))
        embeddings: list[Any] = [self.decoder.model.get_submodule(name) for name in names]
        before = [(embedding.weight, embedding.padding_idx) for embedding in embeddings]
        for name, embedding in zip(names, embeddings, strict=True):
            rows = self.checkpoint.rows(f"{name}.weight", used, dtype=self.dtype).to(self.device)
            embedding.weight, embedding.padding_idx = nn.Parameter(rows, requires_grad=False), None
        try:
            yield places
        finally:
            for embedding, (whole, padding) in zip(embeddings, before, strict=True):
                embedding.weight, embedding.padding_idx = whole, padding

    def _outside(self, name: str) -> Tensor:
        """A tensor outside the blocks, in the type and on the device of the pass."""
        return self.checkpoint.read(name, dtype=self.dtype)[""].to(self.device)

    def load_head(self) -> None:
        """Load everything outside the blocks: embedding, last norm and head."""
        self._replace_outside(lambda name, _: self._outside(name))

    def unload_head(self) -> None:
        """Release everything outside the blocks."""
        self._replace_outside(lambda _, parameter: parameter.to("meta"))

    def _replace_outside(self, replacement: Callable[[str, Tensor], Tensor]) -> None:
        """Replace the parameters outside the blocks, by name and present value."""
        model = self.decoder.model
        for name in self.checkpoint.names_outside_blocks():
            owner, _, leaf = name.rpartition(".")
            module = model.get_submodule(owner)
            if leaf in dict(module.named_parameters(recurse=False)):
                tensor = replacement(name, getattr(module, leaf))
                setattr(module, leaf, nn.Parameter(tensor, requires_grad=False))
        model.tie_weights()

    def load(self, block: int) -> dict[str, Tensor]:
        """Read a block's weights, load them into the block, and return them in the checkpoint's type."""
        prefix = self.checkpoint.block_prefix(block)
        weights = self.checkpoint.read(prefix)
        module = self.decoder.blocks[block]
        # Older checkpoints contain buffers that current models compute.
        wanted = module.state_dict().keys()
        weights = {name: tensor for name, tensor in weights.items() if name in wanted}
        cast = {
            name: self.checkpoint.cast(prefix + name, tensor.to(self.device), self.dtype)
            for name, tensor in weights.items()
        }
        module.load_state_dict(cast, assign=True)
        return weights

    def unload(self, block: int) -> None:
        """Release a block's weights."""
        self.decoder.blocks[block].to("meta")

    @torch.no_grad()
    def run(self, block: int) -> None:
        """Move the residual stream through a loaded block. Raises NumericsError if the stream is no longer finite."""
        for index, hidden in enumerate(self.hidden):
            self.move(block, index, self.decoder.run_block(block, hidden, self.arguments(index, block)))

    def move(self, block: int, index: int, after: Tensor) -> None:
        """Replace a batch by the stream behind a block or a part of it. Raises NumericsError if that isn't finite."""
        if not bool(torch.isfinite(after).all()):
            raise NumericsError(
                f"block {block} of {self.checkpoint.folder} gives values that aren't finite on the calibration text: "
                "the checkpoint is broken, or try compute.dtype=float32"
            )
        self.hidden[index] = after


def output_projection(block: nn.Module, family: Family, kind: ModuleKind) -> nn.Linear | None:
    """The output projection of a module; None if the module is absent or a mixture of experts."""
    part = family.module(kind)
    return getattr(getattr(block, part.name, None), part.output, None) if part.name else None


def norm_divisor(checkpoint: Checkpoint, kind: ModuleKind, output: Tensor) -> Tensor | None:
    """What the norm behind a module divides each token's output [..., r] by, [..., 1] float32; None without a norm."""
    if checkpoint.family.module(kind).post_norm is None:
        return None
    mean_square = output.float().square().mean(-1, keepdim=True)
    epsilon: float = checkpoint.config.rms_norm_eps
    return (mean_square + epsilon).sqrt()


@torch.no_grad()
def norm_gain(block: nn.Module, checkpoint: Checkpoint, kind: ModuleKind) -> Tensor | None:
    """Gain of the norm behind a module of a loaded block, [r] float32; None without a norm."""
    part = checkpoint.family.module(kind)
    if part.post_norm is None:
        return None
    norm = getattr(block, part.post_norm)
    # The norm of a vector of ones is its gain, however the norm stores it.
    gain: Tensor = norm(torch.ones_like(norm.weight)).float()
    return gain


def stream_moments(
    stream: BlockStream, *, skip: int = 0, saliency: Saliency = lambda block: {}
) -> Iterator[BlockMoments]:
    """Second moments of every block in order; the first `skip` blocks are only run.

    Several processes, each with a stream over a part of the text, get the moments over all of it. In front of a norm
    the inputs are divided by what the norm divides the output by, so that errors are those behind it.
    """
    for block in range(stream.checkpoint.n_blocks):
        with parallel.agree():
            weights, moments, sample = _run_watched(stream, block, watch=block >= skip)
        order = None
        if sample is not None:
            part, config, S = stream.checkpoint.family.mlp, stream.checkpoint.config, saliency(block).get("mlp")
            order = order_experts(stream.decoder.blocks[block], part, config, sample, S, parallel.all_reduce)
        stream.unload(block)
        if block >= skip:
            totals = {kind: moment.take(parallel.all_reduce) for kind, moment in moments.items()}
            yield BlockMoments(block, totals, weights, order)


def _run_watched(
    stream: BlockStream, block: int, *, watch: bool
) -> tuple[dict[str, Tensor], dict[ModuleKind, SecondMoment | ExpertMoments], RoutedSample | None]:
    """Move the stream through a block; return the weights of its output projections and moments of their inputs.

    The block stays loaded. The third result is what its mixture did with the first tokens.
    """
    family = stream.checkpoint.family
    weights = stream.load(block)
    outputs = [(part, output_name(part, weights)) for part in (family.attention, family.mlp)]
    moments: dict[ModuleKind, SecondMoment | ExpertMoments] = {}
    sample = None
    with ExitStack() as hooks:
        mixture = expert_module(stream.decoder.blocks[block], family.mlp)
        if mixture is not None and watch:
            experts = family.mlp.experts
            assert experts is not None
            count, _, width = output_sizes(mixture, experts)
            moments["mlp"] = of_experts = ExpertMoments(count, width, stream.device)
            divisor = partial(norm_divisor, stream.checkpoint, "mlp")

            def watch_mixture(routing: Routing, output: Tensor, experts: Experts = experts) -> None:
                of_experts.count += len(routing.hidden)
                by = divisor(output)
                for expert in torch.unique(routing.chosen).tolist():
                    token, x = expert_inputs(mixture, experts, routing, expert)
                    of_experts.add(expert, x if by is None else x / by[token])

            hooks.enter_context(watch_experts(mixture, watch_mixture))
            wanted = -(-ORDER_TOKENS // parallel.size())
            sample = RoutedSample(stream.decoder.blocks[block], family.mlp, wanted, divisor)
            hooks.enter_context(sample.watch())
        for kind in family.cut_kinds(stream.checkpoint.config, block) if watch else ():
            output = output_projection(stream.decoder.blocks[block], family, kind)
            if output is not None:
                moment = moments[kind] = SecondMoment(output.weight.shape[1], device=stream.device)

                def watch_inputs(
                    _: nn.Module, inputs: Any, y: Tensor, to: SecondMoment = moment, kind: ModuleKind = kind
                ) -> None:
                    divisor = norm_divisor(stream.checkpoint, kind, y)
                    to.add(inputs[0] if divisor is None else inputs[0].float() / divisor)

                hooks.enter_context(output.register_forward_hook(watch_inputs))
        stream.run(block)
    # Copies, because a tensor keeps the whole mapped file in memory.
    weights = {
        name: by_rows(part, name.removeprefix(part.prefix), weights[name]).clone()
        for part, name in outputs
        if name is not None
    }
    return weights, moments, sample
