"""The declaration of a stage.

A stage is a name, a function that does the work in the stage's folder, and a function that returns the result. Its
inputs are the parameters of these functions: each has the name of another stage, whose result is passed. A stage
without work is a value: it has no folder and is computed whenever it is needed.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from darwinlm.execution.context import Context
from darwinlm.recipe import Recipe
from darwinlm.runtime.artifact import StageFolder
from darwinlm.runtime.figures import StageTime

Result = TypeVar("Result")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """What a stage gets besides its inputs.

    Attributes:
        recipe: Settings of the run.
        stage: Folder of the stage, with its key.
        times: Durations of the stages so far.
    """

    context: Context
    recipe: Recipe
    stage: StageFolder
    times: tuple[StageTime, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the stage writes."""
        return self.stage.folder

    def left(self, stage: str) -> float:
        """Seconds after which a stage must end; infinite without a time limit."""
        return math.inf if self.context.limit is None else self.context.limit.left(stage, self.times)


@dataclass(frozen=True, eq=False)
class Stage(Generic[Result]):
    """One stage.

    Attributes:
        result: Its result, from the task and the inputs; reads what the work left in the folder.
        work: Writes the folder's files, from the task and the inputs; None for a value.
        version: Number that its author raises when its results change for the same key.
        title: Name in messages and in the progress bar, if it is another.
        writes: Files, for the table in the docs.
        settings: Dotted names of sections and fields of the recipe that the result depends on.
        ignored: Names among these that don't change the result.
        arithmetic: Whether the result depends on the device and the element type of passes.
        together: Whether all processes share the work; else the first one does it alone.
        wanted: Whether a recipe has this stage.
        otherwise: The result if it isn't wanted; without it, None.
        key: Further properties that the result depends on, from the task and inputs.
        check: What can be checked before the first stage of a run works, from the task and inputs that need no work.
        spoiled: Why a finished result can't be used, if files outside the stage's folder were changed.
    """

    name: str
    result: Callable[..., Result]
    work: Callable[..., None] | None = None
    version: int = 1
    title: str = ""
    writes: str = ""
    settings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    arithmetic: bool = False
    together: bool = False
    wanted: Callable[[Recipe], object] = lambda recipe: True
    otherwise: Callable[..., Result] | None = None
    key: Callable[..., Mapping[str, Any]] | None = None
    check: Callable[..., object] | None = None
    spoiled: Callable[[Task], str | None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the stages whose results the work depends on; for a value, those that the result depends on."""
        return parameters(self.work or self.result)

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        """Names of all stages whose results are passed under a recipe."""
        if not self.wanted(recipe):
            return () if self.otherwise is None else parameters(self.otherwise)
        functions = (self.work, self.result, self.key)
        return tuple(dict.fromkeys(name for each in functions if each is not None for name in parameters(each)))

    def slice(self, recipe: Recipe) -> Settings:
        """The settings that the result depends on, as plain values."""
        return {name: _plain(recipe, name, self.ignored) for name in self.settings}


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a function's inputs: its parameters without the task and without those that have a default."""
    found = inspect.signature(function).parameters.values()
    return tuple(each.name for each in found if each.name != "task" and each.default is each.empty)


def _plain(recipe: Recipe, name: str, ignored: tuple[str, ...]) -> Any:
    value = attrgetter(name)(recipe)
    if not isinstance(value, BaseModel):
        return value
    return value.model_dump(exclude={each.removeprefix(f"{name}.") for each in ignored if each.startswith(f"{name}.")})


@dataclass(frozen=True, eq=False)
class Deferred:
    """A given result that is made when it is needed."""

    make: Callable[[], Any]


class Graph:
    """Stages in the order in which a whole run needs them; inputs come before the stages that use them.

    `given` are names of further inputs, which the caller of a run may give; they are None otherwise.
    """

    def __init__(self, *stages: Stage[Any], given: tuple[str, ...] = ()) -> None:
        self.stages, self.given = {stage.name: stage for stage in stages}, given
        assert len(self.stages) == len(stages), "two stages have the same name"
        seen = set(given)
        for stage in stages:
            missing = {*stage.inputs, *parameters(stage.result)} - seen
            assert not missing, f"{stage.name} has inputs that don't come before it: {missing}"
            seen.add(stage.name)

    def __getitem__(self, name: str) -> Stage[Any]:
        return self.stages[name]

    def __iter__(self) -> Iterator[Stage[Any]]:
        return iter(self.stages.values())

    @property
    def steps(self) -> tuple[str, ...]:
        """Names of the stages that do work, in order, and of the last one."""
        *before, last = self
        return (*(stage.name for stage in before if stage.work is not None), last.name)

    def before(self, name: str) -> tuple[str, ...]:
        """Names of the stages and values up to one of them."""
        names = tuple(self.stages)
        return names[: names.index(name) + 1]

    def upstream(self, name: str, recipe: Recipe) -> Iterator[Stage[Any]]:
        """A stage, and all stages that its result depends on under a recipe."""
        found = {name: self.stages[name]}
        waiting = [name]
        while waiting:
            for each in self.stages[waiting.pop()].needs(recipe):
                if each not in found and each in self.stages:
                    found[each] = self.stages[each]
                    waiting.append(each)
        yield from found.values()
