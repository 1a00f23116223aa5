"""Recovery of a tiny model as a program of its own: what can be killed, and what torchrun can start several times.

python -m tests.tiny.recovering SMALL TEACHER TEXT OUT [--kill-at STEP] [--set field=value ...]
"""

from __future__ import annotations

import argparse
import os
import signal
import warnings
from pathlib import Path
from typing import Any

RECOVERY = (
    "text.sequence_length=32",
    "text.validation_tokens=256",
    "text.evaluation_tokens=256",
    "compute.dtype=float32",
    "compute.batch_tokens=128",
    "recovery.tokens=6144",
    "recovery.batch_tokens=512",
    "recovery.dtype=float32",
    "recovery.learning_rate=0.003",
    "recovery.evaluate_every=2048",
    "recovery.save_every=2048",
    "recovery.log_every=1",
)
"""Twelve steps, with checkpoints after the fourth, the eighth and the last."""


class Stopped(BaseException):
    """What a kill looks like from inside."""


def stop_at(monkeypatch: Any, step: int, error: BaseException) -> None:
    """Raise an error in a step, before its update."""
    from darwinlm.recovery.trainer import StepWatch

    whole = StepWatch.on_pre_optimizer_step

    def stopping(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == step:
            raise error
        whole(self, args, state, control, **more)

    monkeypatch.setattr(StepWatch, "on_pre_optimizer_step", stopping)


def recover_tiny(small: Path, teacher: Path, text: Path, out: Path, *assignments: str) -> dict[str, Any]:
    """Recover a tiny model in this process."""
    from rich.console import Console

    from darwinlm.console import Reporter
    from darwinlm.runs.recovery import recover

    settings = (*RECOVERY, *assignments)
    quiet = Reporter(Console(quiet=True))
    return recover(small, out, teacher=str(teacher), text=str(text), assignments=settings, reporter=quiet)


def shard_on_processors() -> None:
    """Let accelerate deal weights out over gloo as it does over GPUs, and let that be asked for.

    accelerate looks at its plugin for sharding on GPUs alone; PyTorch's `fully_shard` beneath it works on either.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    from darwinlm.stages import recover as stage

    whole = AcceleratorState.__init__

    def init(self: Any, *arguments: Any, **more: Any) -> None:
        whole(self, *arguments, **more)
        plugin = more.get("fsdp_plugin")
        if plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            if self._mixed_precision != "no":
                plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin = plugin

    AcceleratorState.__init__ = init  # type: ignore[method-assign]
    stage.check_sharding = lambda *_: None


def main() -> None:
    """Run it, killing the process on the way if that is asked for."""
    parser = argparse.ArgumentParser()
    for name in ("small", "teacher", "text", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--kill-at", type=int)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if options.shard:
        shard_on_processors()
    if options.kill_at is not None:
        from darwinlm.recovery.trainer import StepWatch

        whole = StepWatch.on_pre_optimizer_step

        def killing(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == options.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            whole(self, args, state, control, **more)

        StepWatch.on_pre_optimizer_step = killing  # type: ignore[method-assign]
    recover_tiny(options.small, options.teacher, options.text, options.out, *options.set)


if __name__ == "__main__":
    main()
