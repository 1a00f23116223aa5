"""Second moments of the output gradients of every module, which weight output errors by their effect on the loss.

A forward pass stores the inputs of the blocks. The gradient of the dense model's loss is then propagated back block by
block: its forward pass is repeated with gradients. Blocks stay in memory where there is room; the weights of the others
are read again, one block at a time. Residual streams are on the device, in main memory or in files. Where later blocks
reuse a block's keys and values (Gemma 4), the gradient through these isn't included.

Letters: b sequences, t tokens, m residual width, r outputs. Source: the Fisher option of the DarwinLM code; S of
`database/order.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from darwinlm.model.families.parts import ModuleKind
from darwinlm.model.objective.objective import Objective
from darwinlm.model.walk.expert_inputs import expert_module, output_sizes
from darwinlm.model.walk.hidden import HiddenMemory, HiddenStates
from darwinlm.model.walk.moments import SecondMoment
from darwinlm.model.walk.outputs import norm_divisor, norm_gain, output_projection
from darwinlm.model.walk.stream import BlockStream
from darwinlm.runtime import parallel
from darwinlm.runtime.errors import NumericsError


def output_gradients(
    stream: BlockStream,
    objective: Objective,
    memory: HiddenMemory | None = None,
    owner: Callable[[int], int] = lambda block: 0,
) -> Iterator[tuple[int, dict[ModuleKind, Tensor]]]:
    """Second moments of the gradients of an objective, from the last block to the first.

    Args:
        stream: Stream over the text, before the first block; it is used up.
        objective: What of the dense model is kept: for a language model, gradients are of the summed cross-entropy.
        memory: Allowed places for residual streams; None keeps all of them on the device.
        owner: Of several processes, each with a part of the text, the one that reads a block and gets its moments, over
            all of it. The others get none.

    Yields:
        A block and, for each of its modules, E[g gᵀ], [r, r] float32, with the gradient g at the module's output for
        one token. A norm behind the module divides the output by its length s, and the inputs are divided by it too
        (`stream_moments`); g is then the gradient at the divided output, with s as a constant. The derivative of s
        would make changes along the output free, and the module's removal is such a change.

    Raises:
        NumericsError: A gradient isn't finite.
        StorageError: The disk has no room for the residual streams.
    """
    moments: dict[ModuleKind, SecondMoment] = {}
    inputs: list[HiddenStates] = []
    stream.decoder.share(owner)
    with parallel.agree():
        for block in stream.walk():
            inputs.append(stream.hidden.copied(memory))
            stream.run(block)
        with stream.decoder.with_head():
            gradients = _behind_last_block(stream, objective, memory)
    watching = partial(_output_moments, stream, moments)
    blocks = stream.decoder.back(inputs, gradients, stream.arguments, watching)
    for _ in range(stream.checkpoint.n_blocks):
        with parallel.agree():
            block = next(blocks)
        total = partial(parallel.reduce, to=owner(block))
        means = {kind: moment.take(total) for kind, moment in moments.items()}
        if owner(block) != parallel.place():
            means = {}
        with parallel.agree():
            if not all(bool(torch.isfinite(moment.diagonal()).all()) for moment in means.values()):
                raise NumericsError(
                    f"the gradient in block {block} of {stream.checkpoint.folder} isn't finite: try "
                    "compute.dtype=float32, or database.metric=output"
                )
        yield block, means


def _behind_last_block(stream: BlockStream, objective: Objective, memory: HiddenMemory | None) -> HiddenStates:
    """Gradients of the objective at the residual stream after the last block."""
    pairs = zip(stream.hidden, stream.batches, strict=True)
    gradients = (objective.sensitivity(stream.decoder, hidden, batch) for hidden, batch in pairs)
    return HiddenStates(gradients, stream.hidden.elements, memory)


@contextmanager
def _output_moments(stream: BlockStream, moments: dict[ModuleKind, SecondMoment], block: int) -> Iterator[None]:
    """Collect second moments at the outputs of a block's modules."""
    moments.clear()
    layer, mlp = stream.decoder.blocks[block], stream.checkpoint.family.mlp
    with ExitStack() as hooks:
        for kind, module, width in _outputs(stream, block):
            moment = moments[kind] = SecondMoment(width, device=stream.device)
            gain = norm_gain(layer, stream.checkpoint, kind)

            def watch(
                module: nn.Module, _: object, output: Tensor, to: SecondMoment = moment, gain: Tensor | None = gain
            ) -> None:
                # Experts have a norm of their own, before the one that they share with the parallel MLP.
                mixture = gain is not None and module is expert_module(layer, mlp)
                factor = norm_divisor(stream.checkpoint, "mlp", output.detach()) if mixture else gain

                def add(g: Tensor) -> None:
                    to.add(g if factor is None else g.float() * factor)

                output.register_hook(add)  # type: ignore[no-untyped-call]

            hooks.enter_context(module.register_forward_hook(watch))
        yield


def _outputs(stream: BlockStream, block: int) -> Iterator[tuple[ModuleKind, nn.Module, int]]:
    """Outputs of the modules of a block with their widths: the output projection, a norm behind it, or all experts."""
    family, layer = stream.checkpoint.family, stream.decoder.blocks[block]
    for kind in family.cut_kinds(stream.checkpoint.config, block):
        output = output_projection(layer, family, kind)
        if output is not None:
            norm = family.module(kind).post_norm
            yield kind, output if norm is None else getattr(layer, norm), output.out_features
    mixture = expert_module(layer, family.mlp)
    if mixture is not None and family.mlp.experts is not None:
        yield "mlp", mixture, output_sizes(mixture, family.mlp.experts)[1]
