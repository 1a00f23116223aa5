"""Run stages in an output folder: each in a folder of its own, skipped if that is complete for the same key.

The key of a stage holds its name and version, its settings, the digests of its inputs, and the version of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from darwinlm.planning.time_limit import limited
from darwinlm.recipe.settled import named_here
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, code_version, read_manifest
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.context import Context, open_context
from darwinlm.runtime.errors import DeviceMemoryError, RecipeError
from darwinlm.runtime.figures import StageTime
from darwinlm.runtime.memory import is_out_of_memory, kept_memory, memory_of
from darwinlm.runtime.output import claim, guarded
from darwinlm.runtime.step import Inputs, Result, Stage, Task, parameters

if TYPE_CHECKING:
    from pathlib import Path

    from darwinlm.recipe import Recipe
    from darwinlm.runtime.console import Reporter


class Ended(Exception):  # noqa: N818 - it ends a run as planned
    """The last stage that was asked for is done."""


class Run:
    """Stages with one recipe in one output folder.

    `run(STAGE, *inputs)` is the result of a stage. Inputs may be results of the `parent`, and a folder of the parent is
    used if it is complete for the same key. Of the stages named in `order`, those after `until` end the run with
    `Ended`. The folder is created by the first stage that works. The recipe's time limit counts from `begun`, on the
    monotonic clock, and is ignored without it.

    Attributes:
        results: Results of the stages so far by name.

    Raises ArtifactError if the folder holds something else, BusyError if another run works in it, RecipeError if no
    model is given or the device doesn't exist.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        reporter: Reporter,
        *,
        parent: Run | None = None,
        order: Sequence[str] = (),
        until: str | None = None,
        begun: float | None = None,
    ) -> None:
        if recipe.model is None:
            raise RecipeError("no model is given: name a hub id, a folder or a GGUF file")
        opened = open_context(named_here(recipe), folder, reporter)
        self.context: Context = opened[0]
        self.recipe: Recipe = opened[1]
        # Before the parent is kept, so that the lock ends before the parent's.
        self._lock = claim(folder, recipe)
        self.order, self.until, self._parent = order, until, parent
        if parent is None and self.recipe.model != recipe.model:
            self.context.reporter.say(f"model: the folder {self.recipe.model}, not {recipe.model} of the hub")
        if begun is not None:
            self.recipe, limit = limited(self.recipe, folder, self.context.device, begun)
            self.context = replace(self.context, limit=limit)
        self.results: dict[str, Any] = {}
        self._made: dict[int, tuple[object, StageFolder]] = {}
        self._times: dict[str, StageTime] = {}

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.context.folder

    @property
    def times(self) -> tuple[StageTime, ...]:
        """Durations of the stages so far, in order; those of the parent are reused."""
        parents = () if self._parent is None else self._parent.times
        return tuple(({each.name: replace(each, reused=True) for each in parents} | self._times).values())

    def task(self, name: str, folder: StageFolder | None = None) -> Task:
        """What a function of this name gets; without a stage's folder, it isn't one, or not yet begun."""
        return Task(self.context, self.recipe, folder or StageFolder(self.context.path(name), {}), self.times)

    def reach(self, name: str) -> None:
        """Raise Ended if a stage comes after the last one that was asked for."""
        if self.until is not None and self.order.index(name) > self.order.index(self.until):
            raise Ended

    def __call__(self, stage: Stage[Inputs, Result], *inputs: Inputs.args, **none: Inputs.kwargs) -> Result:
        """The result of a stage from its inputs, which are given by place."""
        assert not none, "a stage's inputs are given by place"
        self.reach(stage.name)
        key = self._key(stage, inputs)
        folder = StageFolder(self.context.path(stage.name), key)
        taken = None
        if (parents := self._of_parent(stage, key)) is not None:
            folder = parents
        elif not parallel.decide(self._is_complete, stage, folder):
            taken = self._work(stage, folder, inputs)
        else:
            self.context.reporter.say(f"{stage.title}: already done, reused")
        if not parallel.is_main():
            folder.await_manifest()
        self._times[stage.name] = taken or _earlier(folder, stage.name)
        result = stage.read(self.task(stage.name, folder), *inputs[: len(parameters(stage.read))])
        self.results[stage.name] = result
        if result is not None:
            self._made[id(result)] = result, folder
        return result

    def _key(self, stage: Stage[Any, Any], inputs: tuple[Any, ...]) -> dict[str, Any]:
        """Everything that the content of a stage's folder depends on."""
        key: dict[str, Any] = {"stage": stage.name, **code_version(stage.version)}
        key["inputs"] = dict(map(self._identity, stage.inputs, inputs))
        key["settings"] = stage.slice(self.recipe)
        if stage.arithmetic:
            key["arithmetic"] = self.context.arithmetic
        if stage.key is not None:
            key |= stage.key(self.task(stage.name), *inputs[: len(parameters(stage.key))])
        return key

    def _identity(self, name: str, value: Any) -> tuple[str, Any]:
        """Name and identity of an input: those of the stage that made it, else its own digest or the plain value."""
        run: Run | None = self
        while run is not None:
            if (made := run._made.get(id(value))) is not None:
                return made[1].folder.name, made[1].digest
            run = run._parent
        if isinstance(value, Mapping):
            return name, {key: self._identity("", each)[1] for key, each in value.items()}
        if isinstance(value, tuple):
            return name, [self._identity("", each)[1] for each in value]
        plain = value is None or isinstance(value, str | int | float)
        return name, value if plain else value.digest

    def _of_parent(self, stage: Stage[Any, Any], key: Mapping[str, Any]) -> StageFolder | None:
        """The parent's folder of a stage, or that of its parent, if it is complete for a key."""
        if self._parent is None:
            return None
        folder = StageFolder(self._parent.context.path(stage.name), key)
        return folder if parallel.decide(folder.is_complete) else self._parent._of_parent(stage, key)

    def _is_complete(self, stage: Stage[Any, Any], folder: StageFolder) -> bool:
        if not folder.is_complete():
            return False
        reason = None if stage.spoiled is None else stage.spoiled(self.task(stage.name, folder))
        if reason is not None:
            self.context.reporter.say(f"{stage.title}: {reason}, so it is written again")
            folder.discard()
        return reason is None

    def _work(self, stage: Stage[Any, Any], folder: StageFolder, inputs: tuple[Any, ...]) -> StageTime:
        """Fill a stage's folder; of several processes, all share the work, or the first one does it alone.

        Only the first one writes into the folder. Raises ArtifactError if the folder isn't one of a run.
        """
        title, reporter = stage.title, self.context.reporter
        if parallel.is_main() and (reason := folder.why_redone()):
            reporter.say(f"{title}: {reason}, redone")
        begun = working_time()
        memory_of(self.context.device).stage = stage.name
        with guarded(folder.folder), reporter.stage(title), kept_memory(self.context.device):
            if resumed := parallel.decide(folder.begin):
                reporter.resumes()
            if stage.together:
                self._call(stage, folder, inputs)
            else:
                with parallel.main_first():
                    if parallel.is_main():
                        self._call(stage, folder, inputs)
        # For a resumed stage, only the last part is timed.
        seconds = round(working_time() - begun, 2)
        parallel.in_main(partial(folder.finish, seconds=seconds, resumed=resumed))
        reporter.say(f"{title}: {seconds:.0f} s")
        return StageTime(stage.name, seconds, reused=False, resumed=resumed)

    def _call(self, stage: Stage[Any, Any], folder: StageFolder, inputs: tuple[Any, ...]) -> None:
        try:
            stage.work(self.task(stage.name, folder), *inputs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"{stage.title}: the memory of {self.context.device} is full: lower compute.batch_tokens "
                f"({self.context.batch_tokens:,}), or what darwinlm plan names, then rerun the same command; "
                "finished work is kept"
            ) from error


def _earlier(folder: StageFolder, name: str) -> StageTime:
    """What a finished stage took."""
    manifest = read_manifest(folder.folder)
    return StageTime(name, manifest.seconds, reused=True, resumed=manifest.resumed)
