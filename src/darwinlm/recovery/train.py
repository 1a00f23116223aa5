"""The training loop of recovery: from a smaller model and text to the trained weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from darwinlm import parallel
from darwinlm.malloc import kept_memory
from darwinlm.recipe import RecoverySettings
from darwinlm.recovery.batches import Batches
from darwinlm.recovery.cache import STORED
from darwinlm.recovery.checkpoints import FIRST, SECOND, WEIGHTS, Checkpoints, TrainingState, gathered
from darwinlm.recovery.guard import LossGuard
from darwinlm.recovery.heads import Dense, run_dense
from darwinlm.recovery.losses import TopK
from darwinlm.recovery.model import Losses, prepared, spread
from darwinlm.recovery.schedule import Steps, rate_share
from darwinlm.recovery.trackers import start_trackers

BETAS, MAX_GRAD_NORM = (0.9, 0.95), 1.0
"""AdamW's betas, and the maximum norm of gradients, as for Llama 2 (arXiv 2307.09288)."""

LOG_EVERY = 10
"""Steps between two lines of the log."""


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Attributes:
        model: The better of the trained and the original model, float32, adapters merged; only in the first process.
        record: Steps, tokens, seconds, which model was kept, and the log: losses and held-out figures by step.
    """

    model: Any
    record: dict[str, Any]


def train(
    student: Callable[[], Any],
    teacher: Any,
    text: Dataset[dict[str, Tensor]],
    held_out: Tensor,
    steps: Steps,
    settings: RecoverySettings,
    folder: Path,
    run: dict[str, Any],
    *,
    device: torch.device,
    dtype: torch.dtype,
    logs: Path | None = None,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    each_step: Callable[[int, Any], None] = lambda tokens, model: None,
) -> Trained:
    """Train, or resume from the last checkpoint in `folder`.

    `student` builds the smaller model, float32 in main memory, the same one each time. `teacher` is the dense model in
    the type of the forward pass; None if the objective doesn't need it. `text` is one epoch, with the dense model's
    log-probabilities if they were stored (`darwinlm.recovery.cache`); `held_out` is [n, t]. `run` is the identity of
    the training, as JSON. `dtype` is that of forward and backward passes; trained weights are always float32. Without
    `logs`, TensorBoard's files lie beside the checkpoints. `each_step` gets the number of tokens so far and the model,
    after each step and before its checkpoint.

    Raises:
        NumericsError: The loss isn't finite or diverges; the last good checkpoint is kept.
        StorageError: The disk is full; the last checkpoint is kept.
        ArtifactError: A checkpoint belongs to another training, or is damaged.
    """
    checkpoints = Checkpoints(folder, run)
    newest = checkpoints.newest()
    model = prepared(student(), settings)
    with parallel.agree():
        checkpoints.check_room(model)
    teacher = None if teacher is None else teacher.to(device)
    arguments = (model, teacher, text, held_out, steps, settings, checkpoints, device, dtype)
    training = _Training(*arguments, say, progress, each_step)
    if newest is not None:
        say(f"recovery: resuming from {newest.name}")
        training.load(newest)
    training.trackers = start_trackers(settings.log_to, logs or folder, run, training.state.step)
    with kept_memory(device):
        training.run()
    for tracker in training.trackers:
        tracker.finish()
    return Trained(training.result(student), training.record())


@dataclass(eq=False)
class _Training:
    """One training in this process: weights, optimizer and state. The fields are arguments of `train`."""

    model: Any
    teacher: Any
    text: Dataset[dict[str, Tensor]]
    held_out: Tensor
    steps: Steps
    settings: RecoverySettings
    checkpoints: Checkpoints
    device: torch.device
    dtype: torch.dtype
    say: Callable[[str], None]
    progress: Callable[[int, int], None]
    each_step: Callable[[int, Any], None]

    def __post_init__(self) -> None:
        settings = self.settings
        self.batches = Batches(self.text, self.steps, settings.seed)
        self.sharded = settings.sharding == "fsdp" and parallel.size() > 1
        self.losses = Losses(self.model, self.teacher, settings, self.dtype, sharded=self.sharded)
        self.call = spread(self.losses, self.device).train()
        self.trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        # The fused optimizer doesn't copy the tensors that it updates.
        self.optimizer = torch.optim.AdamW(
            self.trained.values(), settings.learning_rate, BETAS, weight_decay=0.0, fused=True
        )
        self.state = TrainingState(guard=LossGuard())
        self.trackers: list[Any] = []
        self.last = self.steps.count
        self.dense_on_held_out: dict[int, Tensor] = {}

    # ------------------------------------------------------------------------------------------------- a step

    def run(self) -> None:
        """Run all remaining steps with their evaluations and checkpoints, or as many as the time limit allows."""
        self.begun, self.first = time.monotonic(), self.state.step
        self.before = self.state.seconds
        if not self.state.step:
            self.evaluate()
        self.stepping = time.monotonic()
        every = max(1, self.settings.save_every // self.steps.tokens)
        while self.state.step < self.last:
            self.update(self.state.step)
            done = self.state.step = self.state.step + 1
            self.last = self._last_step(done)
            self.progress(done, self.last)
            self.each_step(done * self.steps.tokens, self.model)
            if done % every == 0 or done == self.last:
                self.evaluate()
                if self.state.guard.good:
                    self.save()

    def _last_step(self, done: int) -> int:
        """The last step that ends before the time limit, with an evaluation as long as the first one."""
        if self.settings.minutes is None:
            return self.steps.count
        now = time.monotonic()
        left = 60 * self.settings.minutes - self.before - (now - self.begun) - (self.stepping - self.begun)
        more = int(left * (done - self.first) / max(now - self.stepping, 1e-9))
        return parallel.broadcast(min(done + max(more, 0), self.steps.count))

    def update(self, step: int) -> None:
        """One step: gradients of all its batches, the check of the loss, and the update. Raises NumericsError."""
        torch.manual_seed((self.settings.seed * self.steps.count + step) * parallel.size() + parallel.rank())
        rate = self.settings.learning_rate * rate_share(self.last, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=self.device)
        for number in range(self.steps.accumulation):
            with self._unsynchronized(number):
                loss = self.loss_of(self._batch(step, number)) / self.steps.accumulation
                torch.autograd.backward(loss)
            total += loss.detach()
        mean = float(parallel.all_reduce(total)) / parallel.size()
        self.state.guard.see(mean, step)
        norm: Any = nn.utils.clip_grad_norm_(self.trained.values(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.unlogged.append(mean)
        if step == 0 or (step + 1) % LOG_EVERY == 0 or step + 1 == self.last:
            norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            losses, self.state.unlogged = self.state.unlogged, []
            logged = sum(losses) / len(losses)
            where = self._log(step + 1, {"loss": logged, "grad_norm": norm, "learning_rate": rate})
            speed = (step + 1 - self.first) * self.steps.tokens / (time.monotonic() - self.begun)
            self.say(f"{where}: loss {logged:.4f}, rate {rate:.2e}, {speed:.0f} tokens/s")

    def _unsynchronized(self, number: int) -> AbstractContextManager[None]:
        """Let DDP accumulate gradients in each process and sum over processes only once per step."""
        waits = hasattr(self.call, "no_sync") and number + 1 < self.steps.accumulation
        held: AbstractContextManager[None] = cast(Any, self.call).no_sync() if waits else nullcontext()
        return held

    def _batch(self, step: int, number: int) -> dict[str, Tensor]:
        """Micro-batch `number` of this process in a step."""
        pinned = self.device.type == "cuda"
        return {
            name: (tensor.pin_memory() if pinned else tensor).to(self.device, non_blocking=pinned)
            for name, tensor in self.batches.get(step, number).items()
        }

    def loss_of(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean loss per token of a batch; the dense model runs unless the batch holds its outputs."""
        tokens = batch["input_ids"]
        dense: Dense | None = None
        if STORED[0] in batch:
            dense = TopK(*(batch[name] for name in STORED))
        elif self.losses.objective.needs_teacher:
            dense = run_dense(self.teacher, tokens)
        loss: Tensor = self.call(tokens, dense)
        return loss

    # ------------------------------------------------------------------------------------- evaluation and the log

    @torch.no_grad()
    def evaluate(self) -> None:
        """Log perplexity, and KL to the dense model in nats per token, on validation text."""
        self.call.eval()
        rows, sums = self.steps.rows, torch.zeros(3, dtype=torch.float64)
        # All processes run equally many passes, because FSDP gathers weights collectively.
        most = -(-len(self.held_out) // parallel.size())
        share = self.held_out[parallel.place() :: parallel.size()]
        for start in range(0, most, rows):
            batch = share[start : start + rows]
            tokens = (batch if len(batch) else self.held_out[:1]).to(self.device)
            loss, divergence = self.call(tokens, self._dense_on_held_out(start, tokens), held_out=True)
            sums += torch.tensor([loss, divergence, 1.0 * len(tokens)], dtype=torch.float64) * bool(len(batch))
        self.call.train()
        loss, divergence, counted = parallel.all_reduce(sums).tolist()
        length = self.held_out.shape[1]
        figures = {"eval_perplexity": math.exp(min(loss / (counted * (length - 1)), 700.0))}
        if self.teacher is not None:
            figures["eval_kl"] = max(divergence / (counted * length), 0.0)
        where = self._log(self.state.step, figures)
        kl = f", KL {figures['eval_kl']:.4f}" if "eval_kl" in figures else ""
        self.say(f"{where}: held out: perplexity {figures['eval_perplexity']:.2f}{kl}")

    def _dense_on_held_out(self, start: int, tokens: Tensor) -> Tensor | None:
        """The dense model's streams on a batch of the held-out text; it runs once, and they wait in main memory."""
        if self.teacher is None:
            return None
        if start not in self.dense_on_held_out:
            self.dense_on_held_out[start] = run_dense(self.teacher, tokens).cpu()
        return self.dense_on_held_out[start].to(self.device)

    def _log(self, step: int, figures: dict[str, int | float]) -> str:
        tokens = step * self.steps.tokens
        self.state.log.append({"step": step, "tokens": tokens, **figures})
        for tracker in self.trackers:
            tracker.log(figures, step=step)
        return f"recovery: step {step}/{self.steps.count}, {tokens:,} tokens"

    # ------------------------------------------------------------------------------------- checkpoints and the end

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights and moments by name; moments of weights without a gradient so far are zeros."""
        for weight in self.trained.values():
            if not self.optimizer.state[weight]:
                step = torch.zeros((), device=weight.device)
                moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[weight].update(step=step, **moments)
        kept = {name: self.optimizer.state[weight] for name, weight in self.trained.items()}
        first, second = ({name: state[kind] for name, state in kept.items()} for kind in ("exp_avg", "exp_avg_sq"))
        return {WEIGHTS: dict(self.trained), FIRST: first, SECOND: second}

    def save(self) -> None:
        """Write a checkpoint. Raises StorageError."""
        self.state.seconds = round(self.before + time.monotonic() - self.begun, 1)
        tensors = self._tensors()
        self.state.updates = [int(self.optimizer.state[weight]["step"]) for weight in self.trained.values()]
        self.checkpoints.save(self.state, tensors)

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint."""
        self.state = self.checkpoints.load(checkpoint, self._tensors())
        for weight, updates in zip(self.trained.values(), self.state.updates, strict=True):
            self.optimizer.state[weight]["step"].fill_(updates)

    def _better(self) -> bool:
        """Whether training lowered the objective on held-out text."""
        held_out = [entry for entry in self.state.log if "eval_perplexity" in entry]
        share = self.settings.distillation
        goals = [
            share * entry.get("eval_kl", 0.0) + (1 - share) * math.log(entry["eval_perplexity"])
            for entry in (held_out[0], held_out[-1])
        ]
        return goals[1] <= goals[0]

    def record(self) -> dict[str, Any]:
        """Record of the training for the report."""
        return {
            "steps": self.state.step,
            "tokens": self.state.step * self.steps.tokens,
            "seconds": round(self.before + time.monotonic() - self.begun, 1),
            "processes": parallel.size(),
            "sharded": self.sharded,
            "kept": "trained" if self._better() else "before",
            "log": self.state.log,
        }

    def result(self, student: Callable[[], Any]) -> Any:
        """The better model with plain weights, in the first process; sharded weights are gathered."""
        model = self.model
        if not self._better():
            self.say("recovery: no improvement on held-out text, so the weights before training are kept")
            model = student() if parallel.is_main() else None
        elif self.sharded:
            weights = gathered(self.trained)
            model = student() if parallel.is_main() else None
            for name, weight in dict(model.named_parameters()).items() if model is not None else ():
                if name in weights:
                    weight.data.copy_(weights[name])
        elif self.settings.lora_rank:
            model = model.merge_and_unload()
        return model if model is None else model.cpu().eval().requires_grad_(requires_grad=False)
