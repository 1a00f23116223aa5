"""A stage: a function that writes a folder, declared once with all that its result depends on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from pydantic import BaseModel

from darwinlm.recipe import Recipe
from darwinlm.runtime.artifact import StageFolder
from darwinlm.runtime.context import Context
from darwinlm.runtime.figures import StageTime

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")


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
class Stage(Generic[Inputs, Result]):
    """One stage.

    Attributes:
        work: Writes the folder's files, from the task and the inputs.
        read: The result, from the task and the first of the inputs; reads what the work left in the folder.
        version: Number that its author raises when its results change for the same key.
        title: Name in messages and in the progress bar.
        writes: Files, for the table in the docs.
        settings: Dotted names of sections and fields of the recipe that the result depends on.
        ignored: Names among these that don't change the result.
        arithmetic: Whether the result depends on the device and the element type of passes.
        together: Whether all processes share the work; else the first one does it alone.
        key: Further properties that the result depends on, from the task and the first of the inputs.
        spoiled: Why a finished result can't be used, if files outside the stage's folder were changed.
    """

    name: str
    work: Callable[Concatenate[Task, Inputs], None]
    read: Callable[..., Result]
    version: int = 1
    title: str = ""
    writes: str = ""
    settings: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    arithmetic: bool = False
    together: bool = False
    key: Callable[..., Mapping[str, Any]] | None = None
    spoiled: Callable[[Task], str | None] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", self.title or self.name)
        for function in filter(None, (self.read, self.key)):
            names = parameters(function)
            assert names == self.inputs[: len(names)], f"{self.name}: {names} aren't its first inputs"

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return parameters(self.work)

    def slice(self, recipe: Recipe) -> dict[str, Any]:
        """The settings that the result depends on, as plain values."""
        return {name: _plain(attrgetter(name)(recipe), name, self.ignored) for name in self.settings}


def _plain(value: Any, name: str, ignored: tuple[str, ...]) -> Any:
    if not isinstance(value, BaseModel):
        return value
    return value.model_dump(exclude={each.removeprefix(f"{name}.") for each in ignored if each.startswith(f"{name}.")})


def parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """Names of a function's parameters after the task."""
    return tuple(inspect.signature(function).parameters)[1:]
