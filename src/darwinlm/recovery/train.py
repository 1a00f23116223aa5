"""Recovery from beginning to end: prepare the models, train or go on, hand back the weights."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainingArguments

from darwinlm import parallel
from darwinlm.artifact import read_json
from darwinlm.malloc import kept_memory
from darwinlm.recipe import RecoverySettings
from darwinlm.recovery.heads import Objective
from darwinlm.recovery.schedule import rate_share
from darwinlm.recovery.trainer import SECONDS, LossGuard, RecoveryTrainer, StepWatch, check_room, last_checkpoint


@dataclass(frozen=True)
class Plan:
    """How a training is cut into steps.

    Attributes:
        length: tokens in a sequence.
        rows: sequences that one process runs at once.
        accumulation: how often it does so in a step.
        steps: of the optimiser.
        steps_per_epoch: after which the text begins again.
        step_rows: sequences in one step over all processes.
    """

    length: int
    rows: int
    accumulation: int
    steps: int
    steps_per_epoch: int
    step_rows: int

    @property
    def blocks(self) -> int:
        """Sequences in an epoch."""
        return self.steps_per_epoch * self.step_rows


def plan_steps(settings: RecoverySettings, length: int, rows: int, accumulation: int) -> Plan:
    """Cut the tokens into steps; what doesn't fill one is left out."""
    step_rows = settings.batch_tokens // length
    steps = max(1, settings.tokens // (step_rows * length))
    return Plan(length, rows, accumulation, steps, -(-steps // settings.epochs), step_rows)


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        model: the trained model, float32, adapters merged.
        record: steps, tokens, seconds, and the log: losses and held-out figures by step.
    """

    model: Any
    record: dict[str, Any]


def objective_of(settings: RecoverySettings) -> Objective:
    """The objective that a recipe names."""
    return Objective(
        settings.distillation,
        settings.cross_entropy,
        settings.hidden,
        settings.temperature,
        settings.top_k,
        settings.logit_chunk,
        again=_sharded(settings),
    )


def _sharded(settings: RecoverySettings) -> bool:
    return settings.sharding == "fsdp" and parallel.size() > 1


def train(
    model: Any,
    teacher: Any,
    text: Dataset[dict[str, Tensor]],
    held_out: Tensor,
    plan: Plan,
    settings: RecoverySettings,
    folder: Path,
    run: dict[str, Any],
    *,
    device: torch.device,
    say: Callable[[str], None] = lambda message: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    each_step: Callable[[int, Any], None] = lambda tokens, model: None,
) -> Trained:
    """Train, or go on from the last checkpoint in `folder`.

    Args:
        model: the smaller model in float32; it is changed.
        teacher: the dense model in the type of the forward pass; None where the objective needs none.
        text: training text, one epoch of it; with what the dense model says about it where that was stored
            (`darwinlm.recovery.cache`).
        held_out: [n, t] validation tokens.
        plan: the steps.
        settings: the recipe's section.
        folder: for checkpoints and logs.
        run: what identifies this training.
        device: where; of several processes each has its own.
        say: prints a line.
        progress: called with finished and total steps.
        each_step: called with the tokens so far and the model after each step, before a checkpoint of it is written;
            the model's call returns losses while it is trained, so that logits need its weights in another one.

    Raises:
        NumericsError: the loss isn't finite or has come apart; the last good checkpoint is kept.
        StorageError: the disk is full; the last checkpoint is kept.
        ArtifactError: the folder holds another training's checkpoint.
    """
    checkpoint = last_checkpoint(folder, run)
    model = _prepared(model, settings)
    check_room(folder, model, settings.keep_checkpoints)
    guard = LossGuard(settings.divergence)
    watch = StepWatch(guard)
    teller = _Teller(say, progress, each_step, plan)
    trainer = RecoveryTrainer(
        teacher=teacher,
        objective=objective_of(settings),
        held_out=held_out,
        run=run,
        guard=guard,
        rate=partial(rate_share, settings, plan.steps),
        model=model,
        args=_arguments(settings, plan, folder, device, model),
        train_dataset=text,
        eval_dataset=text,  # the Trainer asks for one, but evaluate reads held_out
        callbacks=[watch, teller],
    )
    watch.trainer = trainer
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if checkpoint is not None:
        say(f"recovery: going on from {checkpoint.name}")
        trainer.seconds_before = float(read_json(checkpoint / SECONDS))
    with kept_memory(device):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    record = {
        "steps": trainer.state.global_step,
        "tokens": trainer.state.global_step * plan.step_rows * plan.length,
        "seconds": trainer.seconds,
        "processes": trainer.args.world_size,
        "sharded": trainer.is_fsdp_enabled,
        "log": [_logged(entry, plan) for entry in trainer.state.log_history if "train_runtime" not in entry],
    }
    return Trained(_finished(trainer, settings), record)


def _logged(entry: dict[str, Any], plan: Plan) -> dict[str, Any]:
    kept = {name: value for name, value in entry.items() if name not in ("epoch", "step")}
    return {"step": entry["step"], "tokens": entry["step"] * plan.step_rows * plan.length, **kept}


def _prepared(model: Any, settings: RecoverySettings) -> Any:
    """What is trained: everything, everything but the embedding and the head, or adapters on every projection."""
    model.config.use_cache = False
    if settings.gradient_checkpointing:
        options = {"use_reentrant": False}
        if hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
        else:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    if not settings.lora_rank:
        model.requires_grad_(requires_grad=True)
        if not settings.embeddings:
            for module in (model.get_input_embeddings(), model.get_output_embeddings()):
                module.requires_grad_(requires_grad=False)
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(settings.seed)
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft asks transformers by names that newer releases have given up.
        warnings.simplefilter("ignore", FutureWarning)
        return get_peft_model(model, config)


def _arguments(settings: RecoverySettings, plan: Plan, folder: Path, device: torch.device, model: nn.Module) -> Any:
    step_tokens = plan.step_rows * plan.length
    sharded: dict[str, Any] = {}
    if _sharded(settings):
        # Those that the class names and the model has: without odd layers there is none of ours.
        named = getattr(model, "_no_split_modules", None) or []
        blocks = sorted({type(module).__name__ for module in model.modules()} & set(named))
        sharded = {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": blocks}}
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=plan.rows,
        per_device_eval_batch_size=plan.rows,
        gradient_accumulation_steps=plan.accumulation,
        num_train_epochs=settings.epochs,
        max_steps=plan.steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch",
        bf16=settings.dtype == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_strategy="steps",
        eval_steps=max(1, settings.evaluate_every // step_tokens),
        eval_on_start=True,
        save_strategy="steps",
        save_steps=max(1, settings.save_every // step_tokens),
        save_total_limit=settings.keep_checkpoints,
        logging_strategy="steps",
        logging_steps=settings.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        report_to=list(settings.log_to) or "none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=device.type != "cpu",
        ddp_find_unused_parameters=False,
        **sharded,
    )


def _finished(trainer: RecoveryTrainer, settings: RecoverySettings) -> Any:
    """The trained model as a plain one; under FSDP its weights are gathered."""
    if trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model)
        model = trainer.accelerator.unwrap_model(trainer.model)
        return _reloaded(model, state)
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if settings.lora_rank:
        model = model.merge_and_unload()
    model.__dict__.pop("forward", None)
    return model.cpu().eval().requires_grad_(requires_grad=False)


def _reloaded(model: Any, state: dict[str, Tensor]) -> Any:
    """A plain model around gathered weights; in the other processes, which gather nothing, None."""
    if not state:
        return None
    from torch.distributed.fsdp import FSDPModule

    buffers = {name: buffer.cpu() for name, buffer in model.named_buffers()}
    unsharded: Any = next(own for own in type(model).__mro__ if not issubclass(own, FSDPModule))
    with torch.device("meta"):
        plain = unsharded(model.config)
    plain.load_state_dict({name: tensor.cpu().float() for name, tensor in state.items()}, assign=True, strict=False)
    for name in [name for name, buffer in plain.named_buffers() if buffer.is_meta]:
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner)._buffers[leaf] = buffers[name]
    plain.tie_weights()
    return plain.eval().requires_grad_(requires_grad=False)


class _Teller(TrainerCallback):  # type: ignore[misc]
    """One line for each log and evaluation, and the bar."""

    def __init__(
        self,
        say: Callable[[str], None],
        progress: Callable[[int, int], None],
        each_step: Callable[[int, Any], None],
        plan: Plan,
    ) -> None:
        self.say = say
        self.progress = progress
        self.each_step = each_step
        self.plan = plan
        self.begun: tuple[float, int] | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        """Move the bar."""
        self.progress(state.global_step, state.max_steps)
        self.each_step(state.global_step * self.plan.step_rows * self.plan.length, model)
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
            control.should_save = True

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self.begun = self.begun or (time.monotonic(), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Print what the Trainer logs."""
        logs = logs or {}
        tokens = state.global_step * self.plan.step_rows * self.plan.length
        where = f"recovery: step {state.global_step}/{state.max_steps}, {tokens:,} tokens"
        if "loss" in logs:
            speed = ""
            if self.begun is not None and state.global_step > self.begun[1]:
                seconds = time.monotonic() - self.begun[0]
                done = (state.global_step - self.begun[1]) * self.plan.step_rows * self.plan.length
                speed = f", {done / seconds:.0f} tokens/s"
            self.say(f"{where}: loss {logs['loss']:.4f}, rate {logs['learning_rate']:.2e}{speed}")
        elif "eval_perplexity" in logs:
            kl = f", KL {logs['eval_kl']:.4f}" if "eval_kl" in logs else ""
            self.say(f"{where}: held out: perplexity {logs['eval_perplexity']:.2f}{kl}")
