"""State and checkpoints of a training: safetensors and JSON, written atomically, and verified by hash.

A checkpoint holds the trained weights, AdamW's two moments and `state.json`. Rates, the order of the text and random
numbers depend only on the step. `torch.distributed.checkpoint` writes each process's part of the tensors, and any
number of processes can resume from them.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor, nn

from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, check_room, write_text
from darwinlm.runtime.errors import ArtifactError, StorageError, storage_error

STATE = "state.json"
_PREFIX, _PARTIAL = "checkpoint-", "partial"
KEPT = 2
"""Number of checkpoints to keep: the older one serves if the newest is damaged."""


class TrainingState(BaseModel):
    """State of a training besides tensors.

    Attributes:
        seconds: Time of these steps.
        highest_rate: Learning rate after the warm-up; the first step sets it.
        log: Losses and held-out figures by step.
        unlogged: Losses of the steps since the last line of the log.
        updates: Number of AdamW updates of each trained tensor.
    """

    step: int = 0
    seconds: float = 0.0
    highest_rate: float = 0.0
    log: list[dict[str, int | float]] = []
    unlogged: list[float] = []
    updates: list[int] = []


class Checkpoints:
    """The checkpoints of one training.

    They are folders named `checkpoint-STEP`, with a stage's manifest. `run`, the identity of the training as JSON, is
    its key.
    """

    def __init__(self, folder: Path, run: dict[str, object]) -> None:
        self.folder = folder
        self.run = run

    def newest(self) -> Path | None:
        """The newest checkpoint, with all files verified; the same in all processes.

        Raises:
            ArtifactError: It belongs to another training, or a file is missing or damaged.
        """
        with parallel.agree():
            path = self._found()[-1] if parallel.is_main() and self._found() else None
            if path is not None and not StageFolder(path, self.run).is_complete():
                raise ArtifactError(
                    f"{path} isn't complete, or belongs to another run: delete it to resume from the one before, or "
                    f"{self.folder} to start again"
                )
        return parallel.broadcast(path)

    def _found(self) -> list[Path]:
        paths = [path for path in self.folder.glob(f"{_PREFIX}*") if path.name.removeprefix(_PREFIX).isdigit()]
        return sorted(paths, key=lambda path: int(path.name.removeprefix(_PREFIX)))

    def save(self, state: TrainingState, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint under a temporary name, rename it, and delete old ones.

        Tensors are weights and moments by name, in float32; each process passes its part of sharded ones, and writes
        it. Every part, such as the weights, has files of its own, so that only one part is copied at once.

        Raises:
            StorageError: The disk is full or can't be written; the checkpoints before are kept.
        """
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
        from torch.distributed.checkpoint.state_dict_saver import save

        partial, target = self.folder / _PARTIAL, self.folder / f"{_PREFIX}{state.step}"
        files = {f"{part}.{name}": number for number, part in enumerate(tensors, 1) for name in tensors[part]}
        parallel.in_main(shutil.rmtree, partial, True)
        try:
            with _one_error(partial):
                writer = HuggingFaceStorageWriter(str(partial), files, save_distributed=True)
                writer.per_thread_copy_ahead = 0  # copies ahead need streams, which not every device has
                save(_flat(tensors), storage_writer=writer, no_dist=parallel.size() == 1)
            parallel.in_main(write_text, partial / STATE, state.model_dump_json())
            parallel.in_main(self._finish, partial, target)
        except StorageError:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _finish(self, partial: Path, target: Path) -> None:
        try:
            StageFolder(partial, self.run).finish()
            for path in partial.iterdir():
                with path.open("r+b") as stream:  # Windows flushes only files that are open for writing
                    os.fsync(stream.fileno())
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
        except OSError as error:
            raise storage_error(target, error) from error
        for old in self._found()[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self, path: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> TrainingState:
        """Copy a checkpoint verified by `newest` into tensors of the same names; returns its state."""
        from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
        from torch.distributed.checkpoint.state_dict_loader import load

        with _one_error(path):
            reader = HuggingFaceStorageReader(str(path))
            load(_flat(tensors), storage_reader=reader, no_dist=parallel.size() == 1)
        return TrainingState.model_validate_json((path / STATE).read_bytes())

    def check_room(self, model: nn.Module) -> None:
        """Check the free space for checkpoints: trained weights and two moments of each. Raises StorageError."""
        wanted = 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad) * (KEPT + 1)
        what = f"{KEPT} checkpoints and a temporary one take"
        check_room(self.folder, wanted, what, "or choose another output folder")


def _flat(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for part, named in tensors.items() for name, tensor in named.items()}


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    """Raise the first error of any process in place of the library's collection of them."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is", UserWarning)  # in a single process
            yield
    except CheckpointException as failed:
        error, _ = next(iter(failed.failures.values()))
        raise storage_error(path, error) if isinstance(error, OSError) else error from failed
