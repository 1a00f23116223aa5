"""One run: its recipe, its output folder, its device, and the stage folders in it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from darwinlm import __version__
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.models.resolve import resolve_model
from darwinlm.recipe import Recipe
from darwinlm.recipe.settled import settled
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import (
    KEY,
    MARKER,
    STAGES,
    StageFolder,
    read_json,
    read_manifest,
    stage_version,
    write_json,
)
from darwinlm.runtime.compute import DTYPES, resolve_device
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError, DarwinLMError, DeviceMemoryError, RecipeError
from darwinlm.runtime.figures import StageTime
from darwinlm.runtime.lock import Lock, hold_folder, is_ours
from darwinlm.runtime.places import check_output

if TYPE_CHECKING:
    from darwinlm.report.summary import TimeFigures


class Run:
    """The state shared by stages. Its constructor checks the output folder; the first stage with work creates it.

    The output folder is new, empty, or of an earlier run. `elsewhere` are the folders of stages that another run
    shares, which holds their locks. Raises ArtifactError if the folder holds something else, BusyError if another run
    works in it, RecipeError if no model is given or the device doesn't exist.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, reporter: Reporter, *, elsewhere: Mapping[str, Path] | None = None
    ) -> None:
        if recipe.model is None:
            raise RecipeError("no model is given: name a hub id, a folder or a GGUF file")
        self.folder = folder
        self.elsewhere = elsewhere or {}
        self.timings: list[StageTime] = []
        self.time: TimeFigures | None = None
        self.evaluation_ends: float | None = None
        self.skipped_tokens = 0  # training text of earlier rounds
        parallel.init_from_environment()
        self.reporter = reporter if parallel.is_main() else Reporter(quiet=True)
        with parallel.agree():
            self.device = resolve_device(recipe.compute.device)
            self.recipe = settled(recipe, self.device)
        # The lock of the first process covers all processes; it ends with this object or the process.
        self.lock: Lock | None = None
        with parallel.agree():
            if parallel.is_main():
                _check_places(recipe, folder)
                _check_output(folder)
                self.lock = hold_folder(folder)
        if self.lock is not None and self.lock.problem is not None:
            self.reporter.say(f"{folder} can't be locked ({self.lock.problem}): don't start another run there")

    @property
    def dtype(self) -> torch.dtype:
        """Element type of forward passes."""
        return DTYPES[self.recipe.compute.dtype]

    @property
    def arithmetic(self) -> dict[str, str]:
        """Properties of the machine that are parts of keys of stages."""
        return {"dtype": str(self.dtype), "device": self.device.type}

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The dense model, opened on first access; the stage `vocabulary` replaces it by one with fewer tokens."""
        assert self.recipe.model is not None
        return self._resolved(self.recipe.model, "source", "model")

    @cached_property
    def teacher(self) -> Checkpoint:
        """The original dense model, for distillation and for comparisons in the report."""
        if self.recipe.teacher is None or self.recipe.teacher == self.recipe.model:
            return self.checkpoint
        return self._resolved(self.recipe.teacher, "teacher", "teacher")

    def _resolved(self, model: str, folder: str, title: str) -> Checkpoint:
        work = self.path(folder)
        with parallel.main_first():
            if Path(model).suffix != ".gguf":
                return resolve_model(model, work, allow_remote_code=self.recipe.allow_remote_code)
            # A GGUF file is dequantised into the output folder, so that folder is marked as ours first.
            with self._guarded(work), self.reporter.stage(title):
                return resolve_model(model, work)

    @property
    def batch_tokens(self) -> int:
        """Tokens in one forward pass."""
        return self.recipe.compute.batch_tokens

    def path(self, stage: str) -> Path:
        """Folder of a stage."""
        return self.elsewhere.get(stage, self.folder / STAGES / stage)

    @contextmanager
    def stage(
        self, name: str, key: Mapping[str, Any], title: str, *, shared: bool = False
    ) -> Iterator[tuple[StageFolder, bool]]:
        """Open a stage: yields its folder and whether there is work; after the body the folder is finished.

        Among several processes, the first one runs the body alone, then the others run it without work. All processes
        work on a shared stage together; only the first one writes into its folder. Raises ArtifactError if an earlier
        result for the same key is damaged.
        """
        folder = StageFolder(self.path(name), {"stage": name, "version": stage_version(name), **key})
        if shared:
            with parallel.main_first():
                complete = not parallel.is_main() or folder.is_complete()
            with self._worked(folder, title, work=not parallel.broadcast(complete)) as work:
                yield folder, work
        else:
            with parallel.main_first():
                unfinished = parallel.is_main() and not folder.is_complete()
                with self._worked(folder, title, work=unfinished) as work:
                    yield folder, work

    @contextmanager
    def _worked(self, folder: StageFolder, title: str, *, work: bool) -> Iterator[bool]:
        """Begin and finish a stage around its body, in the first process."""
        name = folder.key["stage"]
        if not work:
            facts = read_manifest(folder.folder).facts
            self.reporter.say(f"{title}: already done, reused")
            resumed = bool(facts.get("resumed", False))
            self.timings.append(StageTime(name, float(facts.get("seconds", 0.0)), reused=True, resumed=resumed))
            yield False
            return
        if parallel.is_main() and (reason := folder.why_redone()):
            self.reporter.say(f"{title}: {reason}, redone")
        begun, resumed = time.monotonic(), False
        with self._guarded(folder.folder), self.reporter.stage(title):
            with parallel.agree():
                if parallel.is_main():
                    resumed = folder.begin()
            if resumed:
                self.reporter.resumes()
            try:
                yield True
            except torch.OutOfMemoryError as error:
                raise DeviceMemoryError(f"{title}: the memory of {self.device} is full", str(name), self) from error
        # For a resumed stage, only the last part is timed.
        seconds = round(time.monotonic() - begun, 2)
        self.timings.append(StageTime(name, seconds, reused=False, resumed=resumed))
        parallel.in_main(partial(folder.finish, seconds=seconds, resumed=resumed))
        self.reporter.say(f"{title}: {seconds:.0f} s")

    @contextmanager
    def _guarded(self, stage: Path) -> Iterator[None]:
        """Mark the output folder as ours; after an error, remove it if nothing was finished."""
        folder = stage.parent.parent
        parallel.in_main(mark, folder)
        try:
            yield
        except DarwinLMError:
            if parallel.is_main():
                self._tidy(stage)
            raise

    def _tidy(self, stage: Path) -> None:
        if stage.is_dir() and all(path.name == KEY for path in stage.iterdir()):
            shutil.rmtree(stage)
        if stage.parent.is_dir() and not any(stage.parent.iterdir()):
            stage.parent.rmdir()
        folder = stage.parent.parent
        if all(path.name == MARKER or is_ours(path) for path in folder.iterdir()):
            (folder / MARKER).unlink()  # the folder itself is removed with its lock


def mark(folder: Path) -> None:
    """Mark an output folder as ours. Raises StorageError."""
    write_json(folder / MARKER, {"made_by": "darwinlm", "version": __version__})


def _check_places(recipe: Recipe, folder: Path) -> None:
    """Refuse to write over the models and the text that are read, except over a round's model. Raises ArtifactError."""
    rounds = folder / "rounds"
    models = [model for model in (recipe.model, recipe.teacher) if model and not Path(model).is_relative_to(rounds)]
    text = (recipe.text.source, recipe.recovery.text)
    check_output(folder, "--out", models, text)
    if recipe.recovery.teacher_cache is not None:
        check_output(Path(recipe.recovery.teacher_cache), "recovery.teacher_cache", models, text)


def _check_output(folder: Path) -> None:
    marker = folder / MARKER
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(f"{folder} is a file: choose another output folder")
    if marker.exists():
        content = read_json(marker)
        if not isinstance(content, dict) or content.get("made_by") != "darwinlm":
            raise ArtifactError(f"{marker} was not written by darwinlm: choose another output folder")
    elif folder.exists() and not all(map(is_ours, folder.iterdir())):
        raise ArtifactError(f"{folder} is not empty and not a run of darwinlm: choose a new or empty output folder")
