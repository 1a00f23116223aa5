"""What rounding a single weight matrix costs, in nats per token, estimated from gradients without running the model.

For a projection with input x and the gradient g of the summed cross-entropy at its output, replacing W by Q loses

    ½ E[(gᵀ (Q - W) x)²]

to second order: the Fisher information is the second derivative of KL(dense ‖ rounded). Errors at different tokens, and
of different matrices, count as independent, so losses add up. The matrix of an embedding gives its rows as outputs.

Letters: b sequences, t tokens, m residual width, r outputs, d inputs. Source: ours; the Fisher information as in OBS
(Hassibi and Stork 1993).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from darwinlm.calibration.expert_rounding import WatchedExperts, expert_loss
from darwinlm.calibration.gradients import walk_back
from darwinlm.streaming.experts import expert_module
from darwinlm.streaming.hidden import HiddenMemory, HiddenStates
from darwinlm.streaming.stream import BlockStream
from darwinlm.streaming.streamed import HEAD

SEED = 0
"""Of the next tokens that are drawn."""
Losses = dict[str, dict[str, float]]
"""Estimated loss of a weight by its name, and by the type that it is rounded to."""
Rounded = Callable[[Mapping[str, Tensor]], Iterable[tuple[str, str, Tensor]]]
"""From weights by name, [..., r, c] float32, to names, types, and values after rounding."""


def rounding_losses(
    stream: BlockStream,
    tokens: Tensor,
    rounded: Rounded,
    memory: HiddenMemory | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Losses:
    """Losses of rounding every matrix of linear layers, experts, the embedding and the head.

    A tied embedding has one loss, as embedding and as head; experts have the names of `WatchedExperts`. See
    `output_gradients` for the other arguments.

    Raises:
        NumericsError, StorageError: See `walk_back`.
    """
    sums: dict[str, dict[str, Tensor]] = defaultdict(dict)
    total = stream.checkpoint.n_blocks
    for block, gradients in walk_back(
        stream, tokens, lambda block: _watched(stream, block, rounded, sums), memory, seed=SEED
    ):
        progress(total - block, total)
        if block == 0:
            _add_embedding(stream, tokens, gradients, rounded, sums)
    return {
        name: {kind: float(loss) / (2 * tokens.numel()) for kind, loss in row.items()} for name, row in sums.items()
    }


@contextmanager
def _watched(stream: BlockStream, block: int, rounded: Rounded, sums: dict[str, dict[str, Tensor]]) -> Iterator[None]:
    """Add the losses of a block's linear layers, or of the head, while gradients pass them."""
    layers = _layers(stream, block)
    changes = _changes({name: layer.weight for name, layer in layers.items()}, rounded)
    part = stream.checkpoint.family.mlp
    mixture = None if block == HEAD else expert_module(stream.decoder.blocks[block], part)
    experts = None if mixture is None else WatchedExperts(mixture, part)
    with ExitStack() as hooks:
        for name, change in changes.items():
            row = sums[name]

            def watch(
                layer: nn.Module,
                given: tuple[Tensor],
                output: Tensor,
                change: Mapping[str, Tensor] = change,
                row: dict[str, Tensor] = row,
            ) -> None:
                x = given[0].detach()
                output.register_hook(lambda g: _add(row, g, {kind: x @ each.T for kind, each in change.items()}))  # type: ignore[no-untyped-call]

            hooks.enter_context(layers[name].register_forward_hook(watch))
        if experts is not None:
            hooks.enter_context(experts.watch())
        yield
    if experts is not None:
        _add_experts(f"{stream.checkpoint.block_prefix(block)}{part.prefix}", experts, rounded, sums)


def _add_experts(prefix: str, experts: WatchedExperts, rounded: Rounded, sums: dict[str, dict[str, Tensor]]) -> None:
    """Add the losses of the experts' tensors, of which one in one type is in memory."""
    traffic = experts.traffic()
    for name, weight in experts.weights().items():
        for _, kind, values in rounded({f"{prefix}{name}": weight.float().cpu()}):
            sums[f"{prefix}{name}"][kind] = expert_loss(traffic[name], weight, values)


def _layers(stream: BlockStream, block: int) -> dict[str, nn.Linear]:
    """Linear layers of a block, or the head, by the names of their weights in the checkpoint."""
    model, family = stream.decoder.model, stream.checkpoint.family
    if block == HEAD:
        tied = bool(getattr(stream.checkpoint.config, "tie_word_embeddings", False))
        return {f"{family.embedding if tied else family.head}.weight": model.get_output_embeddings()}
    prefix = stream.checkpoint.block_prefix(block)
    found = stream.decoder.blocks[block].named_modules()
    return {f"{prefix}{name}.weight": each for name, each in found if isinstance(each, nn.Linear)}


def _changes(weights: Mapping[str, Tensor], rounded: Rounded) -> dict[str, dict[str, Tensor]]:
    """Rounded minus original weights by name and type, on the weights' device and in their type."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, kind, values in rounded({name: weight.detach().float().cpu() for name, weight in weights.items()}):
        weight = weights[name]
        found.setdefault(name, {})[kind] = (values.to(weight.device) - weight.float()).to(weight.dtype)
    return found


def _add(row: dict[str, Tensor], gradient: Tensor, errors: Mapping[str, Tensor]) -> None:
    """Add (gᵀe)² over tokens to the sums, for gradients g and errors e, both [..., r]."""
    for kind, error in errors.items():
        loss = (gradient.float() * error.float()).sum(-1).square().sum()
        row[kind] = row[kind] + loss if kind in row else loss


@torch.no_grad()
def _add_embedding(
    stream: BlockStream, tokens: Tensor, gradients: HiddenStates, rounded: Rounded, sums: dict[str, dict[str, Tensor]]
) -> None:
    """Add the losses of the embedding, whose rows for this text are in memory, as the input of the first block."""
    name = f"{stream.checkpoint.family.embedding}.weight"
    module = stream.decoder.model.get_submodule(stream.checkpoint.family.embedding)
    exact = module.weight
    for kind, change in _changes({name: exact}, rounded).get(name, {}).items():
        for index, batch in enumerate(torch.split(tokens, stream.batch_sequences)):
            before = stream.decoder.embed(batch)
            module.weight = nn.Parameter(exact + change, requires_grad=False)
            _add(sums[name], gradients[index], {kind: stream.decoder.embed(batch) - before})
            module.weight = exact
