"""Training of candidates at their reduced size, before they are evaluated (DarwinLM §3.3).

All candidates of a round learn from the same batches. The loss is KL(dense ‖ candidate); the dense logits of a batch
are computed once. AdamW updates float32 master weights. Forward and backward passes use the element type of the
evaluation. Only attention and MLP projections are trained.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from darwinlm import parallel
from darwinlm.malloc import kept_memory
from darwinlm.recipe import TrainingSettings
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.problem.space import Allocation

WARMUP = 4
"""Warm-up steps, because the first steps of AdamW all have full size."""

CLIP = 1.0
"""Largest norm of a gradient."""


class LowRank(nn.Module):
    """A frozen linear layer with a trainable low-rank correction (LoRA, arXiv 2106.09685).

    Args:
        linear: The layer.
        rank: Rank of the correction.
        generator: Generator of the first factor; the second factor starts at zero.
    """

    def __init__(self, linear: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.linear = linear
        rank = min(rank, linear.in_features, linear.out_features)
        A = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
        self.A = nn.Parameter(A.to(linear.weight.device))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        low = functional.linear(x, self.A.to(x.dtype))
        result: Tensor = self.linear(x) + functional.linear(low, self.B.to(x.dtype))
        return result


class Student:
    """A copy of one candidate's modules, with master weights and an optimiser.

    Args:
        modules: Modules of the candidate in the order of the allocation; they are not changed.
        settings: Training settings.
    """

    def __init__(self, modules: Sequence[nn.Module], settings: TrainingSettings) -> None:
        self.settings = settings
        self.steps = 0
        self.modules = [self._own(module) for module in modules]
        self.working = [p for module in self.modules for p in module.parameters() if p.requires_grad]
        self.master = [p.detach().float().clone() if p.dtype != torch.float32 else p for p in self.working]
        self.optimiser = (
            torch.optim.AdamW(self.master, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
            if self.master
            else None
        )

    def _own(self, module: nn.Module) -> nn.Module:
        if not self.settings.lora_rank:
            return copy.deepcopy(module).requires_grad_(requires_grad=True)
        shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
        copied: nn.Module = copy.deepcopy(module, shared)
        generator = torch.Generator().manual_seed(0)
        for name, child in list(copied.named_modules()):
            if isinstance(child, nn.Linear):
                owner = copied.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], LowRank(child, self.settings.lora_rank, generator))
        return copied

    def step(self) -> None:
        """Update the master weights with the accumulated gradients, and copy them to the working weights."""
        if self.optimiser is None:
            return
        for master, working in zip(self.master, self.working, strict=True):
            if master is not working:
                master.grad = None if working.grad is None else working.grad.float()
        norm = torch.nn.utils.clip_grad_norm_(self.master, CLIP)
        self.steps += 1
        if torch.isfinite(norm):  # a batch that overflows is skipped
            for group in self.optimiser.param_groups:
                group["lr"] = self.settings.learning_rate * min(1.0, self.steps / WARMUP)
            self.optimiser.step()
        with torch.no_grad():
            for master, working in zip(self.master, self.working, strict=True):
                working.grad = None
                if master is not working:
                    master.grad = None
                    working.copy_(master)


class CandidateTrainer:
    """Trains candidates side by side. Several processes share them; a survivor stays in its process.

    Args:
        placed: Source of the candidates' modules.
        fitness: Evaluation of the candidates.
        tokens: [n, t] training text.
        settings: Training settings.
    """

    def __init__(self, placed: PlacedModules, fitness: Fitness, tokens: Tensor, settings: TrainingSettings) -> None:
        self.placed = placed
        self.fitness = fitness
        self.tokens = tokens
        self.settings = settings
        self._batch_sequences = max(1, settings.batch_tokens // tokens.shape[1])
        self._owner: dict[Allocation, int] = {}
        self._students: dict[Allocation, Student] = {}
        self._position = 0

    def train(self, candidates: Sequence[Allocation], n_tokens: int) -> None:
        """Train all of them on the same next tokens, rounded up to whole sequences. Raises TimeLimitError."""
        for candidate in candidates:
            self._owner.setdefault(candidate, len(self._owner) % parallel.size())
        sequences = -(-n_tokens // self.tokens.shape[1])
        text = self.tokens[self._position : self._position + sequences]
        self._position += sequences
        students = [self._student(each) for each in candidates if self._owner[each] == parallel.rank()]
        with parallel.agree(), kept_memory(self.placed.decoder.device):
            for batch in torch.split(text, self._batch_sequences) if students else ():
                if self.fitness.clock is not None:
                    self.fitness.clock.check()
                self._learn(batch, students)

    def _student(self, allocation: Allocation) -> Student:
        if allocation not in self._students:
            modules = [self.placed.module(index, level) for index, level in enumerate(allocation)]
            self._students[allocation] = Student(modules, self.settings)
        return self._students[allocation]

    def _learn(self, batch: Tensor, students: Sequence[Student]) -> None:
        """One step of every student on a batch [b, t], in micro-batches of a few sequences."""
        decoder = self.placed.decoder
        for part in torch.split(batch, max(1, LOGIT_TOKENS // batch.shape[1])):
            self.placed.apply(self.placed.space.dense)
            with torch.no_grad():
                log_p = functional.log_softmax(decoder.logits(part).flatten(0, 1).float(), dim=-1)
            for student in students:
                self.placed.place(student.modules)
                log_q = functional.log_softmax(decoder.logits(part).flatten(0, 1).float(), dim=-1)
                if log_q.requires_grad:
                    loss = functional.kl_div(log_q, log_p, log_target=True, reduction="sum") / batch.numel()
                    loss.backward()  # type: ignore[no-untyped-call]
        for student in students:
            student.step()

    def kls(self, candidates: Sequence[Allocation], n_tokens: int) -> list[float]:
        """Mean KL of each on fitness text after the training so far; infinite where values aren't finite."""
        losses: dict[Allocation, float] = {}
        for candidate in candidates:
            if self._owner.get(candidate) == parallel.rank():
                self.placed.place(self._student(candidate).modules)
                losses[candidate] = self.fitness.kl_in_place(n_tokens)
        self.placed.apply(self.placed.space.dense)
        for part in parallel.gather(losses):
            losses |= part
        return [losses[candidate] for candidate in candidates]

    def keep(self, candidates: Sequence[Allocation]) -> None:
        """Drop all other candidates; if none is kept, the training text restarts."""
        kept = set(candidates)
        self._students = {each: student for each, student in self._students.items() if each in kept}
        self._owner = {each: owner for each, owner in self._owner.items() if each in kept}
        if not kept:
            self._position = 0
