"""The Hugging Face Trainer with our objective, checkpoints that are whole or not there, and a stop in time."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from darwinlm.artifact import digest_of, read_json, storage_error, write_json
from darwinlm.errors import ArtifactError, NumericsError, StorageError
from darwinlm.recovery.cache import STORED
from darwinlm.recovery.heads import Dense, Objective, batch_loss, held_out_sums, run_dense
from darwinlm.recovery.losses import TopK

RUN = "run.json"
SECONDS = "seconds.json"
PARTIAL = "partial"
_SMOOTHING = 0.9
_SETTLED = 10


@dataclass
class LossGuard:
    """Watches the loss of the steps: stops at the first one that isn't finite, and when the loss has come apart.

    Attributes:
        factor: how many times its lowest value the smoothed loss may be.
        smoothed: mean of the last losses, weighted exponentially.
        lowest: the lowest smoothed loss so far.
        steps: losses seen.
    """

    factor: float
    smoothed: float = 0.0
    lowest: float = math.inf
    steps: int = 0

    def see(self, loss: float, step: int) -> None:
        """Take note of a step's loss, before its update. Raises NumericsError."""
        if not math.isfinite(loss):
            raise NumericsError(self._message(step, f"the loss is {loss}"))
        self.steps += 1
        weight = min(_SMOOTHING, 1 - 1 / self.steps)
        self.smoothed = weight * self.smoothed + (1 - weight) * loss
        if self.steps >= _SETTLED:
            self.lowest = min(self.lowest, self.smoothed)
        if self.smoothed > self.factor * self.lowest:
            raise NumericsError(
                self._message(step, f"the loss has risen from {self.lowest:.4g} to {self.smoothed:.4g}")
            )

    @property
    def good(self) -> bool:
        """Whether a state at this loss is worth keeping."""
        return self.smoothed <= (1 + (self.factor - 1) / 2) * self.lowest

    @staticmethod
    def _message(step: int, what: str) -> str:
        return (
            f"recovery stopped before the update of step {step + 1}: {what}. The last good checkpoint is kept; lower "
            "recovery.learning_rate, or raise recovery.warmup, and delete the stage's folder to start afresh"
        )


class RecoveryTrainer(Trainer):  # type: ignore[misc]
    """Trains the smaller model against an `Objective`.

    Args:
        teacher: the dense model, ready for inference; None where the objective needs none.
        objective: what is made small.
        held_out: [n, t] validation tokens.
        run: what identifies this training; a checkpoint of another one isn't taken.
        guard: watches the loss.
        rate: share of the learning rate at a step, counted from 0.
        **arguments: those of the Trainer.
    """

    def __init__(
        self,
        *,
        teacher: Any,
        objective: Objective,
        held_out: Tensor,
        run: dict[str, Any],
        guard: LossGuard,
        rate: Callable[[int], float],
        **arguments: Any,
    ) -> None:
        super().__init__(**arguments)
        self.teacher = None if teacher is None else teacher.to(self.args.device)
        self.objective = objective
        self.held_out = held_out
        self.run = json.loads(json.dumps(run, default=str))
        self.guard = guard
        self.rate = rate
        self.seconds_before = 0.0
        self._begun = time.monotonic()
        self._step_loss: float | Tensor = 0.0
        self._saving = False
        _learn_to_return_losses(self.accelerator.unwrap_model(self.model), objective)

    @property
    def seconds(self) -> float:
        """Wall-clock so far, that of an interrupted training up to its last checkpoint included."""
        return round(self.seconds_before + time.monotonic() - self._begun, 1)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Ours: those of transformers begin a warm-up with a step at a rate of 0."""
        if self.lr_scheduler is None:  # type: ignore[has-type]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, self.rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # ------------------------------------------------------------------------------------------------- the loss

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        """Mean loss per token of a batch; the dense model runs unless the batch carries what it gave."""
        tokens = inputs["input_ids"]
        dense: Dense | None
        if STORED[0] in inputs:
            dense = Dense(None, top=TopK(*(inputs[name] for name in STORED)))
        else:
            dense = run_dense(self.teacher, tokens, self.objective) if self.objective.needs_teacher else None
        loss: Tensor = model(input_ids=tokens, teacher=self.teacher, dense=dense)
        return loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *rest: Any, **more: Any) -> Tensor:
        """As the Trainer's, with the loss of the step summed up."""
        loss: Tensor = super().training_step(model, inputs, *rest, **more)
        self._step_loss = self._step_loss + loss.detach()
        return loss

    def finish_step_loss(self) -> float:
        """The mean loss of the step at hand over all processes."""
        loss = torch.as_tensor(self._step_loss, dtype=torch.float32, device=self.args.device)
        self._step_loss = 0.0
        return float(self.accelerator.reduce(loss, reduction="mean"))

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Perplexity, and KL to the dense model in nats per token, on validation text. Logged and returned."""
        model = self.model_wrapped if self.is_fsdp_enabled else self.model
        model.eval()
        rows = self.args.per_device_eval_batch_size
        share = self.held_out[self.args.process_index :: self.args.world_size]
        # Every process runs as many batches: under FSDP they gather weights together.
        share = share[: len(self.held_out) // self.args.world_size]
        sums = torch.zeros(3, dtype=torch.float64)
        for batch in torch.split(share, rows):
            tokens = batch.to(self.args.device)
            with self.accelerator.autocast():
                loss, divergence = model(input_ids=tokens, teacher=self.teacher, held_out=True)
            sums += torch.tensor([loss, divergence, batch.shape[0]], dtype=torch.float64)
        sums = self.accelerator.reduce(sums.to(self.args.device), reduction="sum").cpu()
        length = self.held_out.shape[1]
        metrics = {"eval_perplexity": math.exp(min(float(sums[0]) / (float(sums[2]) * (length - 1)), 700.0))}
        if self.teacher is not None:
            metrics["eval_kl"] = max(float(sums[1]) / (float(sums[2]) * length), 0.0)
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    # ----------------------------------------------------------------------------------------------- checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        folder: str = super()._get_output_dir(trial)
        return str(Path(folder) / PARTIAL) if self._saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Write a checkpoint beside the others and rename it when it is whole; then let go of old ones.

        Raises:
            StorageError: the disk is full or can't be written; the checkpoints before are kept.
        """
        if not self.guard.good:
            return
        folder = Path(self.args.output_dir)
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        self._saving = True
        try:
            if self.args.should_save:
                shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                write_json(folder / PARTIAL / name / SECONDS, self.seconds)
                write_json(folder / PARTIAL / name / RUN, self.run)
                for path in (folder / PARTIAL / name).rglob("*"):
                    _flush(path)
                shutil.rmtree(folder / name, ignore_errors=True)
                (folder / PARTIAL / name).replace(folder / name)
                shutil.rmtree(folder / PARTIAL, ignore_errors=True)
        except (OSError, SafetensorError, RuntimeError) as error:
            # torch.save reports a full disk as a RuntimeError of its writer.
            if isinstance(error, RuntimeError) and "write" not in str(error):
                raise
            shutil.rmtree(folder / PARTIAL, ignore_errors=True)
            raise storage_error(folder / name, error) from error
        finally:
            self._saving = False
            self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(output_dir=str(folder), save_total_limit=limit, use_mtime=False)
        self.accelerator.wait_for_everyone()


class StepWatch(TrainerCallback):  # type: ignore[misc]
    """Shows each step's loss to the guard before the weights are changed by it."""

    def __init__(self, guard: LossGuard) -> None:
        self.guard = guard
        self.trainer: RecoveryTrainer | None = None

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """All processes see the same mean, so that they stop together."""
        assert self.trainer is not None
        self.guard.see(self.trainer.finish_step_loss(), state.global_step)


def _learn_to_return_losses(model: Any, objective: Objective) -> None:
    """Let the model's call return losses: wrappers (DDP, FSDP, adapters) act on a model's call and on nothing else."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(
        input_ids: Tensor, teacher: Any = None, dense: Any = None, *, held_out: bool = False, **__: Any
    ) -> Tensor | tuple[float, float]:
        if held_out:
            return held_out_sums(causal, teacher, input_ids, objective.chunk)
        return batch_loss(causal, teacher, input_ids, dense, objective)

    causal.forward = forward


def last_checkpoint(folder: Path, run: dict[str, Any]) -> Path | None:
    """The newest whole checkpoint in a folder.

    Raises:
        ArtifactError: it is another training's.
    """
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    whole = sorted(
        (path for path in found if (path / RUN).is_file()), key=lambda path: int(path.name.rpartition("-")[2])
    )
    if found and not whole:
        raise ArtifactError(
            f"{found[0]} is a checkpoint that this recovery didn't write: move it away, or choose another output folder"
        )
    if not whole:
        return None
    theirs, ours = read_json(whole[-1] / RUN), json.loads(json.dumps(run, default=str))
    if digest_of(theirs) != digest_of(ours):
        names = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
        raise ArtifactError(
            f"{whole[-1]} belongs to another run ({', '.join(names)} differ): choose another output folder, or delete "
            f"{folder} to start afresh"
        )
    return whole[-1]


def check_room(folder: Path, model: nn.Module, checkpoints: int) -> None:
    """Refuse to begin when the checkpoints won't fit: weights or adapters, and AdamW's two moments of what is trained.

    Raises:
        StorageError: too little is free.
    """
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    one = (trained if hasattr(model, "peft_config") else weights) + 2 * trained
    wanted = one * (checkpoints + 1)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise StorageError(
            f"{folder}: {checkpoints} checkpoints and one on its way take {wanted / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free: free some space, choose another output folder, or lower "
            "recovery.keep_checkpoints"
        )


def _flush(path: Path) -> None:
    if path.is_file():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
