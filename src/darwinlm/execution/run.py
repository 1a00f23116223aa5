"""Run the stages of a graph: each once, in its folder, skipped if the folder is complete for the same key.

The key of a stage is derived from its declaration: the digests of its inputs, its settings, and the versions of its
code and of transformers. A stage whose key would be the same in another run is that run's: sizes of a sweep and rows of
a comparison share what doesn't depend on their differences.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from darwinlm.execution.context import Context, open_context
from darwinlm.execution.limit import TimeLimit, limited
from darwinlm.execution.output import claim, guarded
from darwinlm.execution.stage import Deferred, Graph, Result, Stage, Task, parameters
from darwinlm.recipe import Recipe
from darwinlm.recipe.settled import named_here
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, code_version, read_manifest
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import DeviceMemoryError, RecipeError
from darwinlm.runtime.figures import StageTime
from darwinlm.runtime.memory import is_out_of_memory


class Run:
    """One graph of stages with one recipe in one output folder.

    `run[STAGE]` is the result of a stage; what it depends on is run first. `given` are results by name, in place of
    stages. Stages that don't depend on differences between the recipes `alike` are taken from `parent`, whose recipe is
    one of them. The folder is created by the first stage that works. `allow_remote_code` lets checkpoints run their own
    code, also in the runs that have this one as `parent`. The recipe's time limit counts from `begun`, on the monotonic
    clock, and is ignored without it; a run with a parent gets its `limit`.

    Raises ArtifactError if the folder holds something else, BusyError if another run works in it, RecipeError if no
    model is given or the device doesn't exist.
    """

    def __init__(
        self,
        graph: Graph,
        recipe: Recipe,
        folder: Path,
        reporter: Reporter,
        *,
        given: Mapping[str, Any] | None = None,
        parent: Run | None = None,
        alike: Sequence[Recipe] = (),
        begun: float | None = None,
        limit: TimeLimit | None = None,
        allow_remote_code: bool = False,
    ) -> None:
        if recipe.model is None:
            raise RecipeError("no model is given: name a hub id, a folder or a GGUF file")
        self.graph = graph
        allowed = allow_remote_code or (parent is not None and parent.context.allow_remote_code)
        opened = open_context(named_here(recipe), folder, reporter, allow_remote_code=allowed)
        self.context: Context = opened[0]
        self.recipe: Recipe = opened[1]
        self._lock = claim(
            folder, recipe, self.context.reporter
        )  # before the parent, so that it ends before the parent's
        self._given, self._parent, self._alike = dict(given or {}), parent, (*map(named_here, alike), self.recipe)
        for name in ("model", "teacher") if parent is None else ():
            if (found := getattr(self.recipe, name)) != (given_as := getattr(recipe, name)):
                self.context.reporter.say(f"{name}: the folder {found}, not {given_as} of the hub")
        if begun is not None:
            self.recipe, limit = limited(self.recipe, folder, self.context.device, begun, allow_remote_code=allowed)
        self.context = replace(self.context, limit=limit)
        self._results: dict[str, Any] = {}
        self._folders: dict[str, StageFolder] = {}
        self._times: dict[str, StageTime] = {}

    @property
    def folder(self) -> Path:
        """The output folder."""
        return self.context.folder

    @property
    def times(self) -> tuple[StageTime, ...]:
        """Durations of the stages so far, in order."""
        return tuple(self._times.values())

    def __getitem__(self, stage: Stage[Result]) -> Result:
        result: Result = self._value(stage.name)
        return result

    def result(self, name: str) -> Any:
        """The result of a stage by its name in the graph."""
        return self._value(name)

    def check(self, name: str) -> None:
        """Check what can be checked without work, for all stages up to one of them. Raises DarwinLMError."""
        for each in self.graph.before(name):
            stage = self.graph[each]
            if stage.check is not None and stage.wanted(self.recipe):
                self._call(stage.check, self._task(stage, StageFolder(self.context.path(each), {})))

    def until(self, name: str) -> None:
        """Check, then run the stages in order up to one of them. Raises DarwinLMError."""
        self.check(name)
        for each in self.graph.before(name):
            self._value(each)

    def _value(self, name: str) -> Any:
        if name in self._given or name in self.graph.given:
            given = self._given.get(name)
            return given.make() if isinstance(given, Deferred) else given
        stage = self.graph[name]
        if self._parent is not None and self._is_shared(name):
            return self._taken(self._parent, name)
        if name not in self._results:
            self._results[name] = self._made(stage, self.recipe)
        return self._results[name]

    def _made(self, stage: Stage[Any], recipe: Recipe) -> Any:
        if not stage.wanted(recipe):
            if stage.otherwise is None:
                return None
            return self._call(stage.otherwise, self._task(stage, StageFolder(self.context.path(stage.name), {})))
        if stage.work is None:
            return self._call(stage.result, self._task(stage, StageFolder(self.context.path(stage.name), {})))
        inputs = {name: self._value(name) for name in stage.needs(recipe)}
        task = self._task(stage, StageFolder(self.context.path(stage.name), {}))
        folder = StageFolder(self.context.path(stage.name), self._key(stage, task, inputs))
        task = self._task(stage, folder)
        with self._opened(stage, task) as work:
            if work:
                stage.work(*_of(stage.work, task, inputs))
        self._folders[stage.name] = folder
        if not parallel.is_main():
            folder.await_manifest()
        return stage.result(*_of(stage.result, task, inputs))

    def _task(self, stage: Stage[Any], folder: StageFolder) -> Task:
        return Task(self.context, self.recipe, folder, self.times)

    def _call(self, function: Callable[..., Any], task: Task) -> Any:
        return function(*_of(function, task, {name: self._value(name) for name in parameters(function)}))

    def _key(self, stage: Stage[Any], task: Task, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the content of a stage's folder depends on."""
        key: dict[str, Any] = {"stage": stage.name, **code_version(stage.version)}
        key["inputs"] = {name: self.digest(name, inputs[name]) for name in stage.inputs}
        key["settings"] = stage.slice(task.recipe)
        if stage.arithmetic:
            key["arithmetic"] = self.context.arithmetic
        if stage.key is not None:
            key |= stage.key(*_of(stage.key, task, inputs))
        return key

    def digest(self, name: str, result: Any) -> Any:
        """Identity of a stage's result: that of its folder, else its own digest, or the plain value itself."""
        if name in self._folders:
            return self._folders[name].digest
        if self._parent is not None and name in self.graph.stages and name not in self._given and self._is_shared(name):
            return self._parent.digest(name, result)
        if isinstance(result, Mapping):
            return {key: self.digest("", value) for key, value in result.items()}
        return getattr(result, "digest", result)

    def _is_shared(self, name: str) -> bool:
        """Whether a stage has the same inputs and settings in all runs, so that it is the parent's."""
        assert self._parent is not None
        if name in self.graph.given or name not in self._parent.graph.stages:
            return False
        stages = list(self.graph.upstream(name, self.recipe))
        needed = {each for stage in stages for each in (stage.name, *stage.needs(self.recipe))}
        first, *others = self._parent.recipe, *self._alike
        theirs, ours = self._parent._given, self._given
        if any(theirs.get(each) is not ours[each] for each in needed & ours.keys()):
            return False
        return all(
            bool(stage.wanted(first)) == bool(stage.wanted(other)) and stage.slice(first) == stage.slice(other)
            for stage in stages
            for other in others
        )

    def _taken(self, parent: Run, name: str) -> Any:
        before = parent._times.get(name)
        result = parent._value(name)
        if (taken := parent._times.get(name)) is not None and name not in self._times:
            self._times[name] = taken if before is None else StageTime(name, taken.seconds, True, taken.resumed)
        return result

    @contextmanager
    def _opened(self, stage: Stage[Any], task: Task) -> Iterator[bool]:
        """Open a stage's folder: yields whether there is work; after the body the folder is finished.

        Among several processes, the first one runs the body alone, then the others run it without work. All processes
        work on a shared stage together; only the first one writes into its folder. Raises ArtifactError if an earlier
        result for the same key is damaged.
        """
        folder = task.stage
        if stage.together:
            with parallel.main_first():
                complete = not parallel.is_main() or self._is_complete(stage, task)
            with self._worked(stage, folder, work=not parallel.broadcast(complete)) as work:
                yield work
        else:
            with parallel.main_first():
                unfinished = parallel.is_main() and not self._is_complete(stage, task)
                with self._worked(stage, folder, work=unfinished) as work:
                    yield work

    def _is_complete(self, stage: Stage[Any], task: Task) -> bool:
        if not task.stage.is_complete():
            return False
        reason = None if stage.spoiled is None else stage.spoiled(task)
        if reason is not None:
            self.context.reporter.say(f"{stage.title}: {reason}, so it is written again")
            task.stage.discard()
        return reason is None

    @contextmanager
    def _worked(self, stage: Stage[Any], folder: StageFolder, *, work: bool) -> Iterator[bool]:
        """Begin and finish a stage around its body, in the first process."""
        title, reporter = stage.title, self.context.reporter
        if not work:
            if not parallel.is_main():
                folder.await_manifest()
            facts = read_manifest(folder.folder).facts
            reporter.say(f"{title}: already done, reused")
            seconds, resumed = float(facts.get("seconds", 0.0)), bool(facts.get("resumed", False))
            self._times[stage.name] = StageTime(stage.name, seconds, reused=True, resumed=resumed)
            yield False
            return
        if parallel.is_main() and (reason := folder.why_redone()):
            reporter.say(f"{title}: {reason}, redone")
        begun, resumed = time.monotonic(), False
        with guarded(folder.folder), reporter.stage(title):
            with parallel.agree():
                if parallel.is_main():
                    resumed = folder.begin()
            if resumed:
                reporter.resumes()
            try:
                yield True
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                device = self.context.device
                raise DeviceMemoryError(
                    f"{title}: the memory of {device} is full: lower compute.batch_tokens "
                    f"({self.recipe.compute.batch_tokens:,}), "
                    "or what darwinlm plan names, then rerun the same command; finished work is kept"
                ) from error
        # For a resumed stage, only the last part is timed.
        seconds = round(time.monotonic() - begun, 2)
        self._times[stage.name] = StageTime(stage.name, seconds, reused=False, resumed=resumed)
        parallel.in_main(partial(folder.finish, seconds=seconds, resumed=resumed))
        reporter.say(f"{title}: {seconds:.0f} s")


def _of(function: Callable[..., Any], task: Task, inputs: Mapping[str, Any]) -> list[Any]:
    return [task, *(inputs[name] for name in parameters(function))]
