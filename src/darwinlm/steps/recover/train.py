"""The training loop of recovery: from a smaller model and text to the trained weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from darwinlm.model.objective.item_objective import ItemObjective
from darwinlm.model.objective.next_token import LANGUAGE
from darwinlm.model.objective.objective import Objective
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import NATS
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.compute import to_device
from darwinlm.runtime.errors import NumericsError, RecipeError
from darwinlm.steps.recover.checkpoints import Checkpoints, TrainingState
from darwinlm.steps.recover.reading_model import ReadingLosses
from darwinlm.steps.recover.recovery_figures import TrainingRecord
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.recover.schedule import Steps, rate_share
from darwinlm.steps.recover.sharding import sharder, spread
from darwinlm.steps.recover.trained_model import HeldOutSums, Losses, measured_apart, prepared, run_dense

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule
    from transformers import PreTrainedModel

BETAS, MAX_GRAD_NORM = (0.9, 0.95), 1.0
"""AdamW's betas, and the maximum norm of gradients, as for Llama 2 (arXiv 2307.09288)."""

RATE, RATE_KL = 0.0015, 0.9
"""Learning rate of a model that lost `RATE_KL` nats or more, and the highest one of a model that reads, as a share of
the root mean square of its weights (notebook, "A learning rate by the weights")."""

SAME_KL = 0.001
"""KL in nats per token below which two models give the same predictions, but for rounding."""

LOG_EVERY = 10
"""Steps between two lines of the log."""


def _whole(norm: Tensor) -> float:
    """A norm of weights or gradients, also of sharded ones."""
    gather: Callable[[], Tensor] = getattr(norm, "full_tensor", lambda: norm)
    return float(gather())


class StudentBuilder(Protocol):
    """Builds the smaller model, float32 in main memory, the same one each time."""

    def __call__(self, *, on_block: Callable[[nn.Module], object] = lambda block: None) -> PreTrainedModel:
        """The model; `on_block` is called with every block once it has its weights."""


@dataclass(eq=False)
class Training:
    """One training in this process, which resumes from the last checkpoint in `folder`.

    Attributes:
        student: Builds the model to train.
        teacher: Dense model on the device, in the type of the forward pass, or this process's share of it; None if the
            objective doesn't need it.
        text: One epoch.
        held_out: Validation text, [n, t].
        key: Identity of the training, as JSON.
        objective: What of the dense model is kept.
        dtype: Element type of forward and backward passes; trained weights are always float32.
        mesh: The processes that share the weights (`sharding_mesh`); None if each has all of them.
        ends: When it must end, on the monotonic clock.
        progress: Gets the finished steps and all of them, after each step and before its checkpoint.
        measured: Gets a step and what the log says of it.
    """

    student: StudentBuilder
    teacher: PreTrainedModel | None
    text: Dataset[dict[str, Tensor]]
    held_out: Tensor
    steps: Steps
    settings: RecoverySettings
    folder: Path
    key: dict[str, object]
    objective: Objective = LANGUAGE
    _: KW_ONLY
    device: torch.device
    dtype: torch.dtype
    mesh: DeviceMesh | None = None
    ends: float = math.inf
    say: Callable[[str], None] = lambda message: None
    progress: Callable[[int, int], None] = lambda done, total: None
    measured: Callable[[int, Mapping[str, int | float]], None] = lambda step, figures: None

    def train(self) -> tuple[PreTrainedModel | None, TrainingRecord]:
        """Train, or resume.

        Returns:
            The better of the trained and the original model, float32, only in the first process; and the record: steps,
            tokens, seconds, which model was kept, and the log of losses and held-out figures by step.

        Raises:
            NumericsError: The loss isn't finite; the last checkpoint is kept.
            StorageError: The disk is full; the last checkpoint is kept.
            ArtifactError: A checkpoint belongs to another training, or is damaged.
        """
        loop = TrainingLoop(self)
        loop.run()
        return loop.result(), loop.record()


@dataclass
class Pace:
    """How long the steps of a training take.

    Attributes:
        first: Step with which this process began.
        before: Seconds of the steps before, in processes that were interrupted.
        begun: When it began, on the monotonic clock.
        stepping: When it began its first step, after the evaluation before it.
    """

    first: int
    before: float
    begun: float
    stepping: float


class TrainingLoop:
    """The steps of a training, with its model, optimizer and state.

    Attributes:
        model: The model in training.
        call: What returns its losses, in one process or several.
        trained: Its trained weights by name.
        magnitude: Root mean square of the matrices among them, before the training.
        state: What a checkpoint holds besides tensors.
        last: The last step that the time limit allows.
        order: The order of the text in an epoch, and the epoch; None before the first batch.
    """

    def __init__(self, given: Training) -> None:
        self.given, self.settings, self.steps = given, given.settings, given.steps
        self.checkpoints = Checkpoints(given.folder, given.key)
        newest = self.checkpoints.newest()
        low = torch.bfloat16 if given.dtype == torch.bfloat16 else None
        self.model = prepared(given.student(on_block=sharder(low, given.mesh)), given.settings)
        with parallel.agree():
            self.checkpoints.check_room(self.model)
        self.order: tuple[int, Tensor] | None = None
        self.sharded = given.mesh is not None
        losses: Losses | ReadingLosses
        if isinstance(given.objective, ItemObjective):
            assert given.teacher is not None, "a model that reads learns from the dense one"
            losses = ReadingLosses(self.model, given.teacher, given.objective, low)
        else:
            losses = Losses(self.model, given.teacher, given.settings, low, sharded=self.sharded)
        self.call = spread(losses, given.device, given.mesh).train()
        self.trained = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        # The fused optimizer doesn't copy the tensors that it updates.
        self.optimizer = torch.optim.AdamW(self.trained.values(), betas=BETAS, weight_decay=0.0, fused=True)
        # Before a checkpoint is loaded, so that a resumed training has the same rate.
        matrices = [weight for weight in self.trained.values() if weight.ndim > 1]
        elements = sum(weight.numel() for weight in matrices)
        self.magnitude = _whole(nn.utils.get_total_norm(matrices)) / math.sqrt(elements)
        self.state = TrainingState()
        self.last = given.steps.count
        if newest is not None:
            given.say(f"recovery: resuming from {newest.name}")
            self.load(newest)
        now = working_time()
        self.pace = Pace(self.state.step, self.state.seconds, now, now)

    # ------------------------------------------------------------------------------------------------- a step

    def run(self) -> None:
        """Run all remaining steps with their evaluations and checkpoints, or as many as the time limit allows."""
        first = self.pace.first
        if not first:
            self.evaluate()
        self.pace.stepping = working_time()
        if first:
            self.last = self._last_step(first)
            if self.last == first < self.steps.count:
                self.given.say("recovery: the time limit leaves no time for another step")
        every = max(1, self.settings.save_every // self.steps.tokens)
        while self.state.step < self.last:
            self.update(self.state.step)
            done = self.state.step = self.state.step + 1
            self.last = self._last_step(done)
            self.given.progress(done, self.last)
            if done % every == 0 or done == self.last:
                self.evaluate()
                self.save()

    def _last_step(self, done: int) -> int:
        """The last step that ends before the time limit, with an evaluation as long as the first one.

        At the start of a resumed training, when it is the step of the checkpoint, steps take as long as until then.
        """
        now, pace = working_time(), self.pace
        left = self.given.ends - now
        if left == math.inf:
            return self.steps.count
        left -= pace.stepping - pace.begun
        taken, seconds = (done - pace.first, now - pace.stepping) if done > pace.first else (done, pace.before)
        more = int(left * taken / max(seconds, 1e-9))
        return parallel.broadcast(min(done + max(more, 0), self.steps.count))

    def update(self, step: int) -> None:
        """One step: gradients of all its batches, the check of the loss, and the update. Raises NumericsError."""
        torch.manual_seed(step * parallel.size() + parallel.rank())
        if step == 0:
            self.state.highest_rate = self._rate_by_loss()
        total = torch.zeros((), device=self.given.device)
        for number in range(self.steps.accumulation):
            with self._unsynchronized(number):
                loss = self.loss_of(self._batch(step, number)) / self.steps.accumulation
                torch.autograd.backward(loss)
            total += loss.detach()
        mean = float(parallel.all_reduce(total)) / parallel.size()
        if not math.isfinite(mean):
            raise NumericsError(
                f"recovery stopped before step {step + 1}: the loss is {mean}. The last checkpoint is kept: "
                "lower recovery.learning_rate, and delete the stage's folder to start again"
            )
        if step == 0:
            self.state.highest_rate = min(self.state.highest_rate, self._rate_by_gradient(mean))
        rate = self.state.highest_rate * rate_share(self.last, step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.trained.values(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.unlogged.append(mean)
        if step == 0 or (step + 1) % LOG_EVERY == 0 or step + 1 == self.last:
            losses, self.state.unlogged = self.state.unlogged, []
            logged = sum(losses) / len(losses)
            where = self._log(step + 1, {"loss": logged, "grad_norm": _whole(norm), "learning_rate": rate})
            speed = (step + 1 - self.pace.first) * self.steps.tokens / max(working_time() - self.pace.begun, 1e-9)
            self.given.say(f"{where}: loss {logged:.4f}, rate {rate:.2e}, {speed:.0f} tokens/s")

    def _unsynchronized(self, number: int) -> AbstractContextManager[None]:
        """Let processes, or nodes that share a copy, accumulate gradients and sum them only once per step."""
        waits = number + 1 < self.steps.accumulation
        if self.sharded:
            cast("FSDPModule", self.call).set_requires_all_reduce(not waits)
        if waits and isinstance(self.call, DistributedDataParallel):
            return self.call.no_sync()
        return nullcontext()

    def _rate_by_loss(self) -> float:
        """The highest learning rate: the recipe's, or one by the weights and the loss before training.

        Raises RecipeError if there is no loss, which would give a rate of 0.
        """
        if self.settings.learning_rate is not None:
            return self.settings.learning_rate
        lost = self.state.log[0].get("eval_kl", RATE_KL) if self.given.objective.unit == NATS else RATE_KL
        if lost < SAME_KL:
            raise RecipeError(
                "recovery: the model already predicts what the dense model with the same tokens does, so it would "
                "learn nothing from it: train it on the text alone, with --set recovery.distillation=0 and a low "
                "recovery.learning_rate, or leave the recovery out"
            )
        return RATE * self.magnitude * min(lost / RATE_KL, 1.0)

    def _rate_by_gradient(self, loss: float) -> float:
        """The highest rate for a model that reads, by the loss of the first step and its gradients.

        An update of AdamW moves every weight by up to the rate, which lowers the loss by up to the rate times the sum
        of the gradients' magnitudes. No update can gain more than the whole loss, so a larger rate overshoots: this is
        the Polyak step (arXiv 2002.10542) in the norm of AdamW's updates.
        """
        if self.settings.learning_rate is not None or self.given.objective.unit == NATS:
            return math.inf
        gradients = [weight.grad for weight in self.trained.values() if weight.grad is not None]
        promised = _whole(nn.utils.get_total_norm(gradients, norm_type=1.0))
        return loss / promised if promised else math.inf

    def _batch(self, step: int, number: int) -> Tensor:
        """Tokens of a micro-batch of this process. The text is one epoch, whose order differs between epochs."""
        epoch, place = divmod(step, self.steps.per_epoch)
        if self.order is None or self.order[0] != epoch:
            generator = torch.Generator().manual_seed(epoch)
            self.order = epoch, torch.randperm(len(cast(Sized, self.given.text)), generator=generator)
        begin = place * self.steps.step_rows + (number * parallel.size() + parallel.rank()) * self.steps.rows
        rows = self.order[1][begin : begin + self.steps.rows].tolist()
        return to_device(torch.stack([self.given.text[row]["input_ids"] for row in rows]), self.given.device)

    def loss_of(self, tokens: Tensor) -> Tensor:
        """Mean loss per token of a batch [b, t]."""
        dense = self.dense_states(self.given.teacher, tokens) if self.settings.needs_dense else None
        loss: Tensor = self.call(tokens, dense)
        return loss

    def dense_states(self, teacher: PreTrainedModel, tokens: Tensor) -> Tensor:
        """States of the dense model for a batch [b, t], [b, t, m]."""
        return run_dense(teacher, tokens, marked=isinstance(self.given.objective, ItemObjective))

    # ------------------------------------------------------------------------------------- evaluation and the log

    @torch.no_grad()
    def evaluate(self) -> None:
        """Log perplexity, KL to the dense model and a registered loss, in nats per token, on validation text."""
        self.call.eval()
        teacher, held_out = self.given.teacher, self.given.held_out
        rows, sums = self.steps.rows, torch.zeros(5, dtype=torch.float64)
        # All processes run equally many passes, because FSDP gathers weights collectively.
        most = -(-len(held_out) // parallel.size())
        share = held_out[parallel.place() :: parallel.size()]
        for start in range(0, most, rows):
            batch = share[start : start + rows]
            tokens = (batch if len(batch) else held_out[:1]).to(self.given.device)
            dense = None if teacher is None else self.dense_states(teacher, tokens)
            of_batch: HeldOutSums = self.call(tokens, dense, held_out=True)
            counts = 1.0 * of_batch.predicted, 1.0 * of_batch.compared
            summed = [of_batch.next_token, of_batch.kl, of_batch.loss, *counts]
            sums += torch.tensor(summed, dtype=torch.float64) * bool(len(batch))
        self.call.train()
        next_token, divergence, own, predicted, compared = parallel.all_reduce(sums).tolist()
        figures: dict[str, int | float] = {}
        if predicted:
            figures["eval_perplexity"] = math.exp(min(next_token / predicted, 700.0))
        if teacher is not None:
            figures["eval_kl"] = max(divergence / compared, 0.0)
        if predicted and (loss := measured_apart(self.settings)) is not None:
            figures["eval_loss"] = own / (compared if loss.dense else predicted)
        where, words = self._log(self.state.step, figures), []
        if predicted:
            words.append(f"perplexity {figures['eval_perplexity']:.2f}")
        if "eval_kl" in figures:
            unit = self.given.objective.unit
            words.append(f"KL {figures['eval_kl']:.4f}" if unit == NATS else f"{unit} {figures['eval_kl']:.3g}")
        self.given.say(f"{where}: held out: {', '.join(words)}")

    def _log(self, step: int, figures: dict[str, int | float]) -> str:
        tokens = step * self.steps.tokens
        self.state.log.append({"step": step, "tokens": tokens, **figures})
        self.given.measured(step, {"tokens": tokens, **figures})
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
        return {"weights": dict(self.trained), "first_moments": first, "second_moments": second}

    def save(self) -> None:
        """Write a checkpoint. Raises StorageError."""
        self.state.seconds = round(self.pace.before + working_time() - self.pace.begun, 1)
        tensors = self._tensors()
        self.state.updates = [int(self.optimizer.state[weight]["step"]) for weight in self.trained.values()]
        self.checkpoints.save(self.state, tensors)

    def load(self, checkpoint: Path) -> None:
        """Load a checkpoint."""
        self.state = self.checkpoints.load(checkpoint, self._tensors())
        for weight, updates in zip(self.trained.values(), self.state.updates, strict=True):
            self.optimizer.state[weight]["step"].fill_(updates)

    def record(self) -> TrainingRecord:
        """Record of the training for the report."""
        return {
            "steps": self.state.step,
            "tokens": self.state.step * self.steps.tokens,
            "seconds": round(self.pace.before + working_time() - self.pace.begun, 1),
            "processes": parallel.size(),
            "sharded": self.sharded,
            "kept": "trained" if improved(self.state.log, self.settings) else "before",
            "log": self.state.log,
        }

    def result(self) -> PreTrainedModel | None:
        """The better model with plain weights, in the first process; sharded weights are gathered."""
        model = self.model
        if not improved(self.state.log, self.settings):
            self.given.say("recovery: no improvement on held-out text, so the weights before training are kept")
            model = self.given.student() if parallel.is_main() else None
        elif self.sharded:
            from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

            whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
            weights = get_model_state_dict(self.model, options=whole)  # empty in other processes
            model = self.given.student() if parallel.is_main() else None
            if model is not None:
                model.load_state_dict(weights)
        return model if model is None else model.cpu().eval().requires_grad_(requires_grad=False)


def improved(log: Sequence[Mapping[str, float]], settings: RecoverySettings) -> bool:
    """Whether training lowered the objective on held-out text, from the first and last figures of its log."""
    held_out = [entry for entry in log if entry.keys() & {"eval_perplexity", "eval_kl"}]
    return objective(held_out[-1], settings) <= objective(held_out[0], settings)


def objective(figures: Mapping[str, float], settings: RecoverySettings) -> float:
    """The weighted losses of the settings, from figures of held-out text: of a model that reads, the distance."""
    if "eval_perplexity" not in figures:
        return figures["eval_kl"]
    share, next_token = settings.distillation, math.log(figures["eval_perplexity"])
    loss = figures.get("eval_kl", 0.0) if settings.loss.dense else next_token
    return share * figures.get("eval_loss", loss) + (1 - share) * next_token
