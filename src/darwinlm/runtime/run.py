"""Run steps in an output folder: each in a folder of its own, skipped if that is complete for the same key.

The key of a step holds its name and version, its settings, the sources of extensions that they name, the digests of its
inputs, and the version of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, code_version, read_manifest
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.context import Context, open_context
from darwinlm.runtime.errors import DeviceMemoryError, RecipeError
from darwinlm.runtime.figures import StageTime
from darwinlm.runtime.memory import is_out_of_memory, kept_memory, memory_of
from darwinlm.runtime.output import claim, guarded
from darwinlm.runtime.reads import Reads, noted, readable_inputs, what_differs
from darwinlm.runtime.registry import identity_of
from darwinlm.runtime.sections import AnyRecipe
from darwinlm.runtime.step import AnyStep, Step, Task

if TYPE_CHECKING:
    from pathlib import Path

    from darwinlm.runtime.console import Reporter
    from darwinlm.runtime.figures import StepFigures
    from darwinlm.runtime.time_limit import TimeLimit

Result = TypeVar("Result")


class Ended(Exception):  # noqa: N818 - it ends a run as planned
    """The last step that was asked for is done."""


class Run(Generic[AnyRecipe]):
    """Steps with one recipe in one output folder.

    `run(step)` is the result of a step. Its inputs may be results of the `parent`, and a folder of the parent is used
    if it is complete for the same key. Of the steps named in `order`, those after `until` end the run with `Ended`. The
    folder is created by the first step that works.

    Attributes:
        results: Results of the steps so far by name.

    Raises ArtifactError if the folder holds something else, BusyError if another run works in it, RecipeError if no
    model is given or the device doesn't exist.
    """

    def __init__(
        self,
        recipe: AnyRecipe,
        folder: Path,
        reporter: Reporter,
        *,
        parent: Run[AnyRecipe] | None = None,
        order: Sequence[str] = (),
        until: str | None = None,
    ) -> None:
        if recipe.model is None:
            raise RecipeError("no model is given: name a hub id, a folder or a GGUF file")
        context, compute = open_context(recipe.compute, folder, reporter)
        self.context: Context = context
        self.recipe = recipe.model_copy(update={"compute": compute})
        # Before the parent is kept, so that the lock ends before the parent's.
        self._lock = claim(folder)
        self.order, self.until, self._parent = order, until, parent
        self.results: dict[str, Any] = {}
        self._figures: dict[str, StepFigures] = {}
        self._text_use: dict[str, tuple[str, ...]] = {}
        self._steps: dict[str, str] = {} if parent is None else dict(parent._steps)
        self._times: dict[str, StageTime] = {}
        self._unread: set[type] = set()

    def limit(self, recipe: AnyRecipe, limit: TimeLimit | None) -> None:
        """Go on with the recipe that a time limit chose, and with that limit."""
        self.recipe = recipe
        self.context = replace(self.context, limit=limit)

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.context.folder

    @property
    def times(self) -> tuple[StageTime, ...]:
        """Durations of the steps so far, in order; those of the parent are reused."""
        earlier = () if self._parent is None else self._parent.times
        times = {time.name: replace(time, reused=True) for time in earlier} | self._times
        return tuple(times.values())

    @property
    def figures(self) -> dict[str, StepFigures]:
        """What the steps so far tell in reports, by their names and in their order; those of the parent come first."""
        return self._figures if self._parent is None else self._parent.figures | self._figures

    @property
    def text_use(self) -> dict[str, tuple[str, ...]]:
        """What the steps so far used text for, by purpose."""
        uses = {} if self._parent is None else self._parent.text_use
        for purpose, words in self._text_use.items():
            uses[purpose] = tuple(dict.fromkeys((*uses.get(purpose, ()), *words)))
        return uses

    def task(self, name: str) -> Task:
        """What work of this name gets that is no step: it may read the whole recipe."""
        return Task(self.context, self.recipe, StageFolder(self.context.path(name), {}), self.times)

    def reach(self, name: str) -> None:
        """Raise Ended if a step comes after the last one that was asked for; a script's own steps have no order."""
        if self.until is not None and name in self.order[self.order.index(self.until) + 1 :]:
            raise Ended

    def __call__(self, step: Step[Result]) -> Result:
        """The result of a step."""
        self.reach(step.name)
        key = self._key(step)
        folder = StageFolder(self.context.path(step.folder_name), key)
        time = None
        if (parents := self._of_parent(step, key)) is not None:
            folder = parents
        elif not parallel.decide(self._is_complete, step, folder):
            time = self._work(step, folder)
        else:
            self.context.reporter.say(f"{step.label}: already done, reused")
        if not parallel.is_main():
            folder.await_manifest()
        self._times[step.folder_name] = time or _earlier(folder, step.folder_name)
        task = self._task_of(step, folder)
        result = step.read(task)
        self.results[step.folder_name] = result
        self._steps[folder.digest] = step.folder_name
        self._tell(step, task, result)
        return result

    def _tell(self, step: Step[Result], task: Task, result: Result) -> None:
        """Keep what a finished step tells in reports."""
        figures = step.figures(task, result)
        if figures is not None:
            assert type(figures) is step.Figures, f"the figures of {step.name} are of the class that it declares"
            self._figures[step.name] = figures
        for purpose, words in step.text_use:
            self._text_use[purpose] = (*self._text_use.get(purpose, ()), words)

    def _task_of(self, step: AnyStep, folder: StageFolder) -> Task:
        return Task(self.context, self.recipe, folder, self.times, step.sections)

    def _key(self, step: AnyStep) -> dict[str, object]:
        """Everything that the content of a step's folder depends on."""
        key: dict[str, object] = {"stage": step.folder_name, **code_version(step.version)}
        key["inputs"] = {name: self._identity(value) for name, value in step.inputs.items()}
        key["settings"] = {uses.section.__name__: uses.values(self.recipe) for uses in step.settings}
        if extensions := self._extensions(step):
            key["extensions"] = extensions
        if step.ends_early:
            key["time"] = self.recipe.time
        if step.arithmetic:
            key["arithmetic"] = self.context.arithmetic
        key |= step.key(self._task_of(step, StageFolder(self.context.path(step.folder_name), {})))
        return key

    def _extensions(self, step: AnyStep) -> dict[str, object]:
        """Versions and sources of what comes from outside the package: the step, and extensions that it names."""
        identities: dict[str, object] = {}
        named = [extension for uses in step.settings for extension in uses.extensions(self.recipe)]
        for kind in (type(step), *map(type, (*named, *step.extensions))):
            identity = identity_of(kind)
            if identity is None:
                continue
            identities[kind.__name__] = identity
            if identity["source"] is None and kind not in self._unread:
                self._unread.add(kind)
                self.context.reporter.say(
                    f"{kind.__name__}: its source can't be read, so a change of it isn't noticed; raise its `version` "
                    "when you change it"
                )
        return identities

    def _identity(self, value: Any) -> object:
        """What identifies an input in a key: a plain value itself, an object by its `digest`; also inside containers.

        With the digest of a step's result stands the name of the step, so that the chain of steps can be verified.
        """
        if isinstance(value, Mapping):
            return {name: self._identity(part) for name, part in value.items()}
        if isinstance(value, tuple | list):
            return [self._identity(part) for part in value]
        if value is None or isinstance(value, str | int | float):
            return value
        digest = value.digest
        return {"step": self._steps[digest], "digest": digest} if digest in self._steps else digest

    def _of_parent(self, step: AnyStep, key: Mapping[str, object]) -> StageFolder | None:
        """The parent's folder of a step, or that of its parent, if it is complete for a key."""
        if self._parent is None:
            return None
        folder = StageFolder(self._parent.context.path(step.folder_name), key)

        def is_complete() -> bool:
            return folder.is_complete() and what_differs(folder.reads, step.inputs) is None

        return folder if parallel.decide(is_complete) else self._parent._of_parent(step, key)

    def _is_complete(self, step: AnyStep, folder: StageFolder) -> bool:
        if not folder.is_complete():
            return False
        reason = what_differs(folder.reads, step.inputs) or step.spoiled(self._task_of(step, folder))
        if reason is not None:
            self.context.reporter.say(f"{step.label}: {reason}, so it is redone")
            folder.discard()
        return reason is None

    def _work(self, step: AnyStep, folder: StageFolder) -> StageTime:
        """Fill a step's folder; of several processes, all share the work, or the first one does it alone.

        Only the first one writes into the folder. Raises ArtifactError if the folder isn't one of a run.
        """
        reporter = self.context.reporter
        if parallel.is_main() and (reason := folder.why_redone()):
            reporter.say(f"{step.label}: {reason}, redone")
        begun = working_time()
        memory_of(self.context.device).stage = step.name
        with (
            guarded(folder.folder),
            reporter.stage(step.label),
            kept_memory(self.context.device),
            noted(folder.folder, folder.keep_reads if parallel.is_main() else lambda _: None) as reads,
        ):
            if resumed := parallel.decide(self._begin, step, folder):
                reporter.resumes()
                reads.update(parallel.broadcast(folder.reads_so_far if parallel.is_main() else {}))
            if step.together:
                self._call(step, folder)
            else:
                with parallel.main_first():
                    if parallel.is_main():
                        self._call(step, folder)
        # For a resumed step, only the last part is timed.
        seconds = round(working_time() - begun, 2)
        _check_noted(step, reads)
        parallel.in_main(partial(folder.finish, reads=reads, seconds=seconds, resumed=resumed))
        reporter.say(f"{step.label}: {seconds:.0f} s")
        return StageTime(step.folder_name, seconds, reused=False, resumed=resumed)

    def _begin(self, step: AnyStep, folder: StageFolder) -> bool:
        """Prepare a step's folder; whether it resumes an interrupted run, which read what is there now."""
        if reason := what_differs(folder.reads_so_far, step.inputs):
            self.context.reporter.say(f"{step.label}: {reason}, so it is redone")
            folder.discard()
        return folder.begin()

    def _call(self, step: AnyStep, folder: StageFolder) -> None:
        try:
            step.work(self._task_of(step, folder))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceMemoryError(
                f"{step.label}: the memory of {self.context.device} is full: lower compute.batch_tokens "
                f"({self.context.batch_tokens:,}), or what darwinlm plan names, then rerun the same command; "
                "finished work is kept"
            ) from error


def _check_noted(step: AnyStep, reads: Reads) -> None:
    digests = {source.digest for source in readable_inputs(step.inputs)}
    assert reads.keys() <= digests, f"{step.name} reads a part of a model that isn't among its inputs"


def _earlier(folder: StageFolder, name: str) -> StageTime:
    """What a finished step took."""
    manifest = read_manifest(folder.folder)
    return StageTime(name, manifest.seconds, reused=True, resumed=manifest.resumed)
