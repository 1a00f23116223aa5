"""Bits per byte of the whole smaller model at several sizes of its vocabulary, at one budget.

A smaller vocabulary costs bits where text is spelt in more tokens, and leaves more of the budget for the blocks. Both
are measured together: the blocks are those of the uniform model with the lowest estimated loss at what remains, and
tokens outside the vocabulary have no probability.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.context import Context
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.fitted_vocabulary.vocabulary_sizes import Sizes
from darwinlm.steps.search.propose import uniform_allocations
from darwinlm.steps.stitch.stitch import stitched_blocks
from darwinlm.steps.vocabulary.spelling import measure_bits
from darwinlm.steps.vocabulary.token_choice import TokenChoice
from darwinlm.steps.vocabulary.vocabulary_figures import SizeFigures

IMPOSSIBLE = -1e4
"""Logit of a removed token: its probability is 0 in float32, and the logit is finite."""


class FewerTokens(StreamedDecoder):
    """A decoder that never predicts the tokens `removed`, [n], which its text doesn't contain."""

    removed: Tensor

    def head(self, hidden: Tensor) -> Tensor:
        """Logits [n, v] of residual streams [n, m]; those of removed tokens are `IMPOSSIBLE`."""
        return super().head(hidden).index_fill(1, self.removed, IMPOSSIBLE)


@dataclass(frozen=True)
class Scan:
    """What measures a size of the vocabulary.

    Attributes:
        choice: The tokens that the text uses.
        passages: Held-out text.
        folder: Where streams of text may go.
    """

    context: Context
    sizes: Sizes
    database: DatabaseReader
    choice: TokenChoice
    passages: Sequence[str]
    folder: Path

    def run(self, progress: Callable[[int, int], None]) -> tuple[SizeFigures, ...]:
        """Figures of all sizes that are tried, ascending; `progress` gets the number of those that are measured."""
        measured: dict[int, SizeFigures] = {}
        pending = self.sizes.first()
        total = len(pending) + 2
        for _ in range(2):
            for tokens in pending:
                measured[tokens] = self.measure(tokens)
                progress(len(measured), total)
            pending = self.sizes.between(sorted(measured), best_of([*measured.values()]).tokens)
        return tuple(measured[tokens] for tokens in sorted(measured))

    def measure(self, tokens: int) -> SizeFigures:
        """The smaller model with so many tokens."""
        problem = self.sizes.problem(tokens)
        allocation = _uniform(problem, self.database)
        checkpoint, weights = stitched_blocks(self.database, allocation)
        bits = self._bits(checkpoint, self.choice.rows(tokens), weights)
        self.database.release()
        kept = problem.space.params(allocation) / problem.space.params(problem.space.dense)
        return SizeFigures(tokens=tokens, kept_blocks=kept, bits_per_byte=bits, growth=self.sizes.growth(tokens))

    def dense_bits(self) -> float:
        """Bits per byte of the dense model."""
        return self._bits(self.sizes.dense, self.choice.rows(self.sizes.most), None)

    def _bits(
        self, checkpoint: Checkpoint, rows: Sequence[int], weights: Callable[[int], dict[str, Tensor]] | None
    ) -> float:
        context, spelt = self.context, spelling(self.choice, self.passages, rows)
        kept = torch.zeros(int(checkpoint.config.vocab_size), dtype=torch.bool)
        kept[torch.tensor(rows)] = True

        def read(read_tokens: Tensor) -> FewerTokens:
            decoder = FewerTokens(checkpoint, read_tokens, dtype=context.dtype, device=context.device, weights=weights)
            decoder.removed = (~kept).nonzero().flatten().to(context.device)
            return decoder

        return measure_bits(
            read,
            self.passages,
            self.choice.vocabulary.tokenizer,
            batch_tokens=context.batch_tokens,
            spelt=[[rows[token] for token in text] for text in spelt],
            memory=HiddenMemory(self.folder),
        )


@dataclass(frozen=True)
class Growth:
    """The factor by which passages have more tokens if only some tokens are kept."""

    choice: TokenChoice
    passages: Sequence[str]
    _known: dict[int, float] = field(default_factory=dict)

    def __call__(self, tokens: int) -> float:
        """The factor for so many tokens."""
        if tokens not in self._known:
            dense, small = (
                sum(map(len, spelling(self.choice, self.passages, self.choice.rows(size))))
                for size in (len(self.choice.vocabulary.tree.tokens), tokens)
            )
            self._known[tokens] = small / dense
        return self._known[tokens]


def spelling(choice: TokenChoice, passages: Sequence[str], rows: Sequence[int]) -> list[list[int]]:
    """New numbers of the tokens of each passage, if the tokens with the old numbers `rows` are kept."""
    small = Tokenizer.from_str(json.dumps(choice.vocabulary.tree.cut(rows)))
    small.no_padding()
    small.no_truncation()
    return [text.ids for text in small.encode_batch(list(passages), add_special_tokens=False)]


def best_of(measured: Sequence[SizeFigures]) -> SizeFigures:
    """The size with the fewest bits per byte; of equal ones, the largest."""
    return min(measured, key=lambda size: (size.bits_per_byte, -size.tokens))


def _uniform(problem: Problem, database: DatabaseReader) -> Allocation:
    """The uniform allocation within the budget whose estimated loss is lowest; all blocks if they fit."""
    if problem.whole:
        return problem.space.dense
    estimates = database.estimated_losses(problem.space)
    losses = database.local_errors(problem.space) if estimates is None else estimates
    if problem.equal is not None:
        return problem.equal.best(losses)[0]
    return min(
        uniform_allocations(problem),
        key=lambda choice: sum(row[level] for row, level in zip(losses, choice, strict=True)),
    )
