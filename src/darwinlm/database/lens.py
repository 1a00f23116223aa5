"""The loss of a model without some experts of one block, if the error were added to its stream after the last block.

Later blocks aren't run. The rest of the experts' own block is: its shared expert, norms and factors are the family's
code. Experts are fitted on some tokens of the calibration text, and the loss is measured on others.

Letters: n tokens of the second text, b sequences, t tokens of a sequence, m residual width, c trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, logsigmoid

from darwinlm.database.expert_order import ExpertOrder, Remaining, RoutedTokens, expert_order, usage
from darwinlm.runtime import parallel
from darwinlm.runtime.compute import exact, exact_device
from darwinlm.runtime.errors import NumericsError
from darwinlm.streaming.experts import (
    RoutedSample,
    expert_channels,
    expert_module,
    mixture_module,
    projected_channels,
)
from darwinlm.streaming.outputs import norm_divisor
from darwinlm.streaming.stream import BlockStream

FITTED, JUDGED = 8192, 4096
"""Tokens for fits and for losses, with which the order was measured (docs/notebook/experts.md). KL of 4,096 tokens
can't tell the best sets of experts apart."""

HEAD_TOKENS = 256
"""Tokens whose logits are in memory at once."""


class Lens:
    """Orders of the experts of a model, block by block.

    Every process holds all of these tokens; processes divide the trials.

    Args:
        stream_over: The dense stream on tokens, before the first block.
        tokens: [n, t], the calibration text, of which evenly spaced rows are used.

    Raises:
        NumericsError: The stream isn't finite.
    """

    def __init__(self, stream_over: Callable[[Tensor], BlockStream], tokens: Tensor) -> None:
        tokens = tokens[:, :JUDGED]  # the beginning of longer sequences
        wanted = -(-(FITTED + JUDGED) // tokens.shape[1])
        rows = tokens[:: max(1, len(tokens) // wanted)][:wanted]
        judged = max(1, round(len(rows) * JUDGED / (FITTED + JUDGED)))
        self.fitted, self.judged = stream_over(rows[: max(1, len(rows) - judged)]), stream_over(rows[-judged:])
        self.checkpoint = self.judged.checkpoint
        first = self.judged.hidden.copied(None)
        self.judged.run_through()
        self.last, self.judged.hidden = _joined(self.judged), first
        self.judged.load_head()

    def order(self, block: int, module: nn.Module, wanted: bool = True) -> ExpertOrder | None:
        """Move on to a loaded block; the order of its experts if it is a mixture."""
        part = self.checkpoint.family.mlp
        for stream in (self.fitted, self.judged):
            stream.decoder.blocks[block] = module
        if not wanted or expert_module(module, part) is None:
            self.fitted.run(block)
            self.judged.run(block)
            return None
        before = list(self.judged.hidden)
        sample = RoutedSample(module, part, partial(norm_divisor, self.checkpoint, "mlp"))
        with sample.watch():
            self.fitted.run(block)
            self.judged.run(block)
        return _Mixture(self, block, module, before, sample).order()

    @torch.no_grad()
    def losses(self, errors: Sequence[Tensor]) -> Tensor:
        """KL in nats per token for errors [n, m] of the stream after the last block, [c] float64."""
        total = torch.zeros(len(errors), dtype=torch.float64, device=exact_device(self.last.device))
        for start in range(0, len(self.last), HEAD_TOKENS):
            piece = slice(start, start + HEAD_TOKENS)
            dense = self._log_probabilities(self.last[piece])
            for place, error in enumerate(errors):
                other = self._log_probabilities(self.last[piece] + error[piece])
                kl = exact(kl_div(other, dense, reduction="none", log_target=True))
                total[place] += kl.sum(dtype=torch.float64)
        return (total / len(self.last)).clamp_min(0)

    def _log_probabilities(self, stream: Tensor) -> Tensor:
        return self.judged.decoder.head(stream).float().log_softmax(-1)


class _Mixture:
    def __init__(self, lens: Lens, block: int, module: nn.Module, before: list[Tensor], sample: RoutedSample) -> None:
        self.lens, self.block, self.module, self.before, self.sample = lens, block, module, before, sample
        self.part, self.config = lens.checkpoint.family.mlp, lens.checkpoint.config
        self.after = _joined(lens.judged)
        assert self.part.experts is not None
        self.names = self.part.experts
        self.experts = expert_module(module, self.part)
        logits, names = sample.logits, self.names
        sigmoid = names.scores == "sigmoid"
        correction = None if names.correction is None else self._tensor(names.correction).flatten()

        def choice(alive: Tensor) -> Tensor:
            scores = logits.masked_fill(~alive, -torch.inf)
            if correction is None:
                return scores
            return ((scores.sigmoid() if sigmoid else scores.softmax(-1)) + correction).where(alive, -torch.inf)

        factors = torch.full((logits.shape[1],), names.weight_scale(self.config), device=logits.device)
        if names.factors is not None:
            factors = factors * self._tensor(names.factors)
        self.routed = RoutedTokens(
            logits=logsigmoid(logits) if sigmoid else logits,
            choice=choice,
            y=sample.output.float(),
            scale=torch.ones_like(logits[:, :1]) if sample.divisor is None else 1 / sample.divisor,
            fitted=len(sample.output) - len(lens.last),
            k=names.chosen_of(self.config),
            normalised=names.sums_to_one(self.config),
            factors=factors,
        )

    def _tensor(self, name: str) -> Tensor:
        """A tensor of the mixture by its name there."""
        owner, _, leaf = f"{self.part.prefix}{name}".rpartition(".")
        tensor: Tensor = getattr(self.module.get_submodule(owner), leaf)
        return tensor

    @torch.no_grad()
    def order(self) -> ExpertOrder:
        """Removal order; all experts stay where the router can't do without some of them."""
        count, k, y = self.routed.logits.shape[1], self.routed.k, self._judged(self.routed.y)
        least = k if self.names.droppable(self.config) else count
        order = expert_order(count, least, self._usage, self._judge, device=y.device)
        order.errors[:least] = float(self._judged(self.routed.scale * self.routed.y).square().sum()) / len(y)
        with ExitStack() as removed:
            for name in (self.names.name, self.names.shared):
                module = mixture_module(self.module, self.part, name)
                if module is not None:
                    removed.enter_context(_replaced(module, _nothing))
            order.losses[:least] = self.lens.losses([self._moved()])[0].cpu()
        return order

    def _judged(self, values: Tensor) -> Tensor:
        return values[self.routed.fitted :]

    def _usage(self, alive: Tensor) -> Tensor:
        return parallel.all_reduce(usage(self.routed, alive))

    def _judge(self, alive: Tensor, trials: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Errors and losses of all trials; each process does its share."""
        results = torch.zeros(2, len(trials), dtype=torch.float64, device=exact_device(alive.device))
        with parallel.agree():
            remaining = Remaining(self.routed, alive, self._outputs)
            moved: list[Tensor] = []
            for place in range(parallel.place(), len(trials), parallel.size()):
                missing = self._judged(remaining.missing(trials[place]))
                squares = exact((self._judged(self.routed.scale) * missing).square())
                results[0, place] = squares.sum(dtype=torch.float64)
                parts = iter(torch.split((self._judged(self.routed.y) - missing).to(self.after.dtype), self._lengths()))
                with _replaced(self.experts, lambda *_, parts=parts, **__: next(parts)):
                    moved.append(self._moved())
            results[0] /= len(self.after)
            results[1, parallel.place() :: parallel.size()] = self.lens.losses(moved)
            if not bool(torch.isfinite(results).all()):
                raise NumericsError(
                    f"block {self.block} of {self.lens.checkpoint.folder}: the loss without some experts isn't "
                    "finite; try compute.dtype=float32"
                )
        errors, losses = parallel.all_reduce(results).cpu()
        return errors, losses

    def _lengths(self) -> list[int]:
        return [hidden.shape[0] * hidden.shape[1] for hidden in self.before]

    def _moved(self) -> Tensor:
        """Change of the stream after the block, [n, m], as its modules are now."""
        stream = self.lens.judged
        batches = (
            stream.decoder.run_block(self.block, hidden, stream.arguments(index, self.block)).flatten(0, 1)
            for index, hidden in enumerate(self.before)
        )
        return torch.cat(list(batches)) - self.after

    def _outputs(self, expert: int, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Channels and unweighted outputs of an expert on some tokens."""
        channels = expert_channels(self.experts, self.names, self.sample.hidden[tokens], expert)
        return channels.float(), projected_channels(self.experts, self.names, channels, expert).float()


def _joined(stream: BlockStream) -> Tensor:
    """The residual stream of all batches, [n, m]."""
    return torch.cat([hidden.flatten(0, 1) for hidden in stream.hidden])


def _nothing(*given: Tensor, **named: Tensor) -> Tensor:
    return torch.zeros_like(next(iter([*given, *named.values()])))


@contextmanager
def _replaced(module: Any, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let a module compute something else."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
