"""Gradients of the loss at the outputs of all modules, which weight output errors by their effect on the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.step import Cost, Step, Task, Work
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.families.parts import ModuleKind
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Memory, Workload

MEETINGS = 4
"""How often processes meet in a block."""
GRADIENT_TOKENS, GRADIENT_SHARE = 8192, 8
"""Most calibration tokens for the gradients of the loss, and the part of the calibration text that they are: an eighth.
Measured databases have these amounts (docs/notebook/database.md)."""


def gradient_tokens(calibration_tokens: int) -> int:
    """Number of calibration tokens for the gradients of the loss."""
    return min(max(calibration_tokens // GRADIENT_SHARE, 1), GRADIENT_TOKENS)


def gradient_sequences(calibration: TokenSequences) -> int:
    """Number of sequences for the gradients; each process needs one."""
    from darwinlm.runtime import parallel

    count = -(-gradient_tokens(calibration.n_tokens) // calibration.tokens.shape[1])
    return min(max(count, parallel.size()), len(calibration.tokens))


@dataclass(frozen=True)
class GradientMoments:
    """Second moments of output gradients in a folder: a file for each block."""

    folder: Path
    device: torch.device
    digest: str

    def __call__(self, block: int) -> dict[ModuleKind, Tensor]:
        """Moments at the outputs of a block's modules, [r, r] float32 each, on the device."""
        from darwinlm.model.families.parts import KINDS
        from darwinlm.runtime.artifact import read_tensors
        from darwinlm.steps.database.block_files import block_file

        moments = read_tensors(self.folder / block_file(block))
        return {kind: moments[kind].to(self.device) for kind in KINDS if kind in moments}


@dataclass(frozen=True, eq=False)
class Gradients(Step[GradientMoments]):
    """Second moments of the gradients at every module's output, on the beginning of the calibration text."""

    name = "gradients"
    title = "output gradients"
    version = 5
    writes = "second moments of output gradients"
    text_use = (("calibration", "gradients of the loss"),)
    consults = (TextSettings,)
    arithmetic = True
    together = True

    calibration: TokenSequences
    dense: Checkpoint

    def key(self, task: Task) -> Mapping[str, int]:
        """Number of sequences that are used."""
        return {"rows": gradient_sequences(self.calibration)}

    def work(self, task: Task) -> None:
        """Walk back through the blocks, and write the moments of each."""
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.model.walk.hidden import HiddenMemory
        from darwinlm.model.walk.stream import stream_of
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import await_files, write_tensors
        from darwinlm.steps.database.block_files import block_file
        from darwinlm.steps.gradients.output_gradients import output_gradients

        context, count = task.context, gradient_sequences(self.calibration)
        tokens = self.calibration.tokens[:count][parallel.place() :: parallel.size()]
        memory, total = HiddenMemory(task.folder), self.dense.n_blocks
        stream = stream_of(context, self.dense, tokens, memory, again=True)
        files = [task.folder / block_file(block) for block in range(total)]
        for block, moments in output_gradients(stream, objective_of(self.dense), memory, parallel.owner):
            with parallel.agree():
                if parallel.owner(block) == parallel.place():
                    write_tensors(files[block], moments)
            context.reporter.advance(total - block, total)
        parallel.in_main(await_files, files)

    def read(self, task: Task) -> GradientMoments:
        """The folder of the moments."""
        return GradientMoments(task.folder, task.context.device, task.stage.digest)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Passes with gradients; none if the removal order doesn't use them, or if all blocks fit."""
        from darwinlm.steps.database.database_settings import DatabaseSettings
        from darwinlm.steps.workload import largest

        sizes, text = load.sizes, load.settings(TextSettings)
        if sizes.whole or not load.settings(DatabaseSettings).metric.gradients:
            return None
        tokens = -(-gradient_tokens(text.calibration_tokens) // text.sequence_length) * text.sequence_length
        memory = largest({"heads": load.head}, load.backward | {"blocks": 2 * load.block})
        if load.on_cpu:  # memory that forward passes freed stays with the process, in fragments between the streams
            memory["fragments"] = load.passing["activations"]
        memory["rows of the embedding"] = float(min(tokens, sizes.vocabulary) * sizes.width * sizes.size)
        work = sizes.operations(tokens, blocks=3, heads=2)
        moments = 4.0 * sizes.width**2 * len(sizes.shapes)
        memory |= load.streams(tokens, sizes.depth + 1)
        return Cost(work, memory, disk=moments, parts=cls._on_gpu(load, tokens, moments, memory))

    @staticmethod
    def _on_gpu(load: Workload, tokens: float, moments: float, memory: Memory) -> dict[str, Work]:
        """A walk forward, and one back that repeats each block with gradients."""
        sizes, least = load.sizes, load.settings(TextSettings).sequence_length  # each process has a sequence
        own = max(tokens / sizes.processes, least)
        walks = load.passes(own * sizes.processes, blocks=3, heads=2)
        staying = load.stay(sizes.blocks / sizes.processes + sizes.outside, memory)
        walks += load.owning(sizes.blocks, 1 if staying else 2) + load.loading(sizes.outside, 2, staying=staying)
        sent = sizes.blocks * sizes.size * (1.0 if load.stay(sizes.params, memory) else 2.0)
        sums = load.multiplied(own * sizes.width**2 * len(sizes.shapes)) + Work(
            moved=max(own / sizes.pass_tokens, 1) * moments,
            sent=moments if sizes.processes > 1 else 0.0,
        )
        writing = Work(copied=moments, written=moments) * load.share(sizes.depth)
        return {"passes": walks + sums, **load.exchange(sent, MEETINGS), "writing": writing}
