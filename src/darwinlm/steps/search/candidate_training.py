"""Training of candidates before their evaluation, at their small shapes (DarwinLM §3.3).

All candidates of a round learn from the same batches. The loss is KL(dense ‖ candidate) of each token. The dense
model's residual stream after its last block is computed once for the whole search, and only logits of a few tokens
exist at once. AdamW updates float32 master weights. Forward and backward passes use the element type of the evaluation.
Only attention and MLP projections are trained.

One candidate is trained and evaluated at a time. Its state waits in main memory for the next round if there is room;
else it repeats its training.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.decoder import LOGIT_TOKENS
from darwinlm.model.walk.hidden import HiddenMemory, HiddenStates
from darwinlm.runtime import parallel
from darwinlm.runtime.memory import CPU, memory_of
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.search.student import Student

LARGE, SMALL_RATE, LARGE_RATE = 1e9, 1e-4, 1e-5
"""Parameters from which a model gets the paper's learning rate, for 7B to 14B; smaller ones, and larger ones."""

STEP_TOKENS = 2048
"""Training tokens in one step. Our choice; the paper has none."""


class CandidateTrainer:
    """Trains and evaluates candidates. Several processes share them; a survivor stays in its process.

    The training text is [n, t]. The dense model's residual stream goes to `folder` if main memory is too small.
    """

    def __init__(self, placed: PlacedModules, fitness: Fitness, tokens: Tensor, folder: Path) -> None:
        self.placed = placed
        self.decoder = placed.decoder
        self.fitness = fitness
        self.tokens = tokens
        params = sum(weight.numel() for weight in self.decoder.model.parameters())
        self.rate = SMALL_RATE if params < LARGE else LARGE_RATE
        self._on_cpu = self.decoder.device.type == "cpu"
        self._memory = HiddenMemory(folder, None if self._on_cpu else "host")
        self._rounds: list[tuple[int, int]] = []
        self._dense: dict[tuple[int, int], HiddenStates] = {}
        self._owner: dict[Allocation, int] = {}
        self._students: dict[Allocation, Student] = {}

    def judge(self, candidates: Sequence[Allocation], training_tokens: int, fitness_tokens: int) -> list[float]:
        """Train all candidates on the same next tokens, then compare them with the dense model.

        Candidates trained before continue from their state; new ones are first trained on the earlier tokens. Training
        tokens are rounded up to whole sequences.

        Returns:
            Mean KL of each on fitness text; infinite where values or gradients weren't finite.

        Raises:
            TimeLimitError: The search's time is up.
        """
        for candidate in candidates:
            self._owner.setdefault(candidate, len(self._owner) % parallel.size())
        begin = self._rounds[-1][1] if self._rounds else 0
        self._rounds.append((begin, min(begin - -training_tokens // self.tokens.shape[1], len(self.tokens))))
        own = [candidate for candidate in candidates if self._owner[candidate] == parallel.rank()]
        losses: dict[Allocation, float] = {}
        with parallel.agree():
            if own:
                self._read_dense()
            for candidate in own:
                modules = (self.placed.module(index, level) for index, level in enumerate(candidate))
                student = self._students.pop(candidate, None) or Student(modules, self.rate)
                student.move(self.decoder.device)
                self.placed.place(student.modules)
                self._train(student)
                kl = self.fitness.kl_in_place(fitness_tokens)
                losses[candidate] = math.inf if student.overflowed else kl
                if student.nbytes <= memory_of(CPU).room("candidates"):
                    student.move(CPU)
                    self._students[candidate] = student
                del student
            self.placed.apply(self.placed.space.dense)
        for part in parallel.gather(losses):
            losses |= part
        return [losses[candidate] for candidate in candidates]

    def keep(self, candidates: Sequence[Allocation]) -> None:
        """Drop all other candidates; without any, the training text starts again."""
        kept = set(candidates)
        self._students = {candidate: student for candidate, student in self._students.items() if candidate in kept}
        self._owner = {candidate: owner for candidate, owner in self._owner.items() if candidate in kept}
        if not kept:
            self._rounds = []

    def _train(self, student: Student) -> None:
        """Train the placed student up to the end of the current round."""
        for begin, end in self._rounds[student.rounds :]:
            dense = iter(self._dense[begin, end])
            for batch in self._batches(begin, end):
                self.fitness.clock.check()
                for rows in self._pieces(batch):
                    self._backward(rows, next(dense), int(self.fitness.objective.counts(batch).sum()))
                student.step()
            student.rounds += 1

    def _batches(self, begin: int, end: int) -> Sequence[Tensor]:
        rows = max(1, STEP_TOKENS // self.tokens.shape[1])
        return torch.split(self.tokens[begin:end], rows) if end > begin else ()

    def _pieces(self, batch: Tensor) -> Sequence[Tensor]:
        """The micro-batches of a batch."""
        return torch.split(batch, max(1, LOGIT_TOKENS // batch.shape[1]))

    def _read_dense(self) -> None:
        """Compute the missing residual streams of the dense model after the last block."""
        for begin, end in self._rounds:
            if (begin, end) not in self._dense:
                self.placed.apply(self.placed.space.dense)
                pieces = [piece for batch in self._batches(begin, end) for piece in self._pieces(batch)]
                self._dense[begin, end] = self.decoder.through(pieces, memory=self._memory)

    def _last(self, rows: Tensor) -> Tensor:
        """The residual stream after the last block, [b, t] -> [b, t, m].

        On a GPU the way back makes the inside of each block again, as it has no room for that of all of them.
        """
        hidden = self.decoder.embed(rows)
        for block, arguments in enumerate(self.decoder.block_arguments(rows)):
            run = functools.partial(self.decoder.run_block, block, arguments=arguments)
            if not self._on_cpu and torch.is_grad_enabled():
                hidden = checkpoint(run, hidden, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = run(hidden)
        return hidden

    def _backward(self, rows: Tensor, dense: Tensor, count: int) -> None:
        """Accumulate the gradients of the placed student on some sequences of a batch with this many things compared.

        `dense` is the dense model's stream after the last block, [b, t, m].
        """
        hidden = self._last(rows)
        if not hidden.requires_grad:
            return
        loss = self.fitness.objective.loss(self.decoder, hidden, dense, rows) / count
        loss.backward()  # type: ignore[no-untyped-call]
