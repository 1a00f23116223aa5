"""A step of a run: what it needs, what it does, and what it leaves in its folder.

A step is a class: its fields are its inputs, `work` fills its folder, and `read` loads the result from the folder. The
modules in which steps are declared import nothing heavy, so that a recipe can be read and help be printed at once; they
import their methods where they work.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.registry import Extension
from darwinlm.runtime.section import Section
from darwinlm.runtime.sections import AnySection, Sections

if TYPE_CHECKING:
    from pathlib import Path

    from darwinlm.runtime.artifact import StageFolder
    from darwinlm.runtime.context import Context
    from darwinlm.runtime.figures import StageTime, StepFigures

Result = TypeVar("Result")


@dataclass(frozen=True)
class Uses:
    """A section of the recipe on which a result depends.

    Attributes:
        section: Class of the section.
        only: Names of the fields that matter; empty if all do.
        ignoring: Names of fields that don't change the result.
    """

    section: type[Section]
    only: tuple[str, ...] = ()
    ignoring: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = {*self.only, *self.ignoring} - self.section.model_fields.keys()
        assert not unknown, f"{self.section.__name__} has no fields {sorted(unknown)}"

    def values(self, recipe: Sections) -> JsonObject:
        """The values of these fields in a recipe, as JSON has them."""
        return recipe.section(self.section).model_dump(mode="json", include=self._names)

    def extensions(self, recipe: Sections) -> list[Extension]:
        """What a recipe chooses by these fields among the registered ways to do a part of the method."""
        section = recipe.section(self.section)
        values = (getattr(section, name) for name in sorted(self._names))
        return [value for value in values if isinstance(value, Extension)]

    @property
    def _names(self) -> set[str]:
        return set(self.only or self.section.model_fields) - set(self.ignoring)


@dataclass(frozen=True)
class Work:
    """What a part of a step asks of a GPU, in each process.

    Attributes:
        products: Operations of matrix products in the element type of passes.
        float32: Operations in this type.
        float64: Operations in this type.
        moved: Bytes read and written in the GPU's memory.
        copied: Bytes between main memory and the GPU.
        read: Bytes read from files.
        written: Bytes written to files, which are hashed.
        sent: Bytes sent to other processes.
        launches: Kernels; one that a CUDA graph replays counts half.
    """

    products: float = 0.0
    float32: float = 0.0
    float64: float = 0.0
    moved: float = 0.0
    copied: float = 0.0
    read: float = 0.0
    written: float = 0.0
    sent: float = 0.0
    launches: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Both together."""
        return Work(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Work)})

    def __mul__(self, factor: float) -> Work:
        """So many times as much."""
        return Work(**{one.name: getattr(self, one.name) * factor for one in fields(Work)})

    @property
    def operations(self) -> float:
        """Operations in all types."""
        return self.products + self.float32 + self.float64


@dataclass(frozen=True)
class Cost:
    """What a step takes on one device.

    Attributes:
        operations: Its work in operations of passes through the model, over all processes.
        alone: Those of them that more processor cores don't do faster, such as tokens written one after another.
        python: Seconds of Python and of libraries on the host, which don't depend on the device.
        memory: Bytes on the device of one process at the peak, by what they hold.
        caches: Largest number of bytes of caches, in addition to `memory`.
        disk: Bytes of files that it leaves in the output folder.
        scratch: Bytes of its temporary files there, in addition to `disk`.
        parts: What its parts, which follow each other, ask of a GPU; empty if they weren't counted.
    """

    operations: float
    memory: Mapping[str, float]
    caches: float = 0.0
    disk: float = 0.0
    scratch: float = 0.0
    parts: Mapping[str, Work] = field(default_factory=dict)
    alone: float = 0.0
    python: float = 0.0

    @property
    def bytes(self) -> float:
        """Peak memory."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Task:
    """What a step gets in addition to its inputs.

    Attributes:
        recipe: Settings of the run.
        stage: Folder of the step, with its key.
        times: Durations of the steps so far.
        sections: Sections of the recipe that the step may read; None for all.
    """

    context: Context
    recipe: Sections
    stage: StageFolder
    times: tuple[StageTime, ...] = ()
    sections: frozenset[type[Section]] | None = None

    @property
    def folder(self) -> Path:
        """Where the step writes."""
        return self.stage.folder

    def settings(self, kind: type[AnySection]) -> AnySection:
        """A section of the recipe, which the step has declared."""
        assert self.sections is None or kind in self.sections, f"the step doesn't declare that it reads {kind.__name__}"
        return self.recipe.section(kind)

    def left(self, step: str) -> float:
        """Seconds after which a step must end; infinite without a time limit."""
        return math.inf if self.context.limit is None else self.context.limit.left(step, self.times)


class Step(ABC, Generic[Result]):
    """One step. A subclass is a frozen dataclass whose fields are the step's inputs.

    An input is a plain value, a tuple or a mapping of inputs, or an object whose `digest` identifies it. The digest of
    a step's result is that of its key.

    Attributes:
        name: Name of the step and of its folder.
        title: Name in messages and in the progress bar, if it is another one.
        version: Number that the step's author raises when its results change for the same key.
        writes: What is in its folder, for the table in the docs.
        Settings: The step's own section of the recipe, and `section`, its name there.
        Figures: What the step tells in reports, if it does.
        text_use: Purposes of text, and what the step uses each for, in words for the page.
        settings: Sections and fields of the recipe that the result depends on.
        consults: Further sections that the step reads; what matters of them is in `key`.
        arithmetic: Whether the result depends on the device and the element type of passes.
        together: Whether all processes share the work; else the first one does it alone.
        ends_early: Whether it ends with the recipe's time limit, on which its result then depends.
    """

    name: ClassVar[str]
    title: ClassVar[str] = ""
    version: ClassVar[int] = 1
    writes: ClassVar[str] = ""
    Settings: ClassVar[type[Section] | None] = None
    section: ClassVar[str] = ""
    Figures: ClassVar[type[StepFigures] | None] = None
    text_use: ClassVar[tuple[tuple[str, str], ...]] = ()
    settings: ClassVar[tuple[Uses, ...]] = ()
    consults: ClassVar[tuple[type[Section], ...]] = ()
    arithmetic: ClassVar[bool] = False
    together: ClassVar[bool] = False
    ends_early: ClassVar[bool] = False

    @abstractmethod
    def work(self, task: Task) -> None:
        """Write the folder's files. Work that was interrupted finds the files that it had finished."""

    @abstractmethod
    def read(self, task: Task) -> Result:
        """The result, from the folder."""

    def key(self, task: Task) -> Mapping[str, object]:
        """Further properties that the result depends on."""
        return {}

    def figures(self, task: Task, result: Result) -> StepFigures | None:
        """What the step tells in reports, an instance of `Figures`; None if it has nothing to tell."""
        return None

    def spoiled(self, task: Task) -> str | None:
        """Why a finished result can't be used, if files outside the step's folder were changed."""
        return None

    @classmethod
    def cost(cls, load: Any) -> Cost | None:
        """What the step takes in a run, from a `Workload`; None if it isn't part of it or takes next to nothing."""
        return None

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Number of tokens of text that the step reads, by purpose. Steps that share a purpose read the same tokens."""
        return {}

    @property
    def extensions(self) -> tuple[object, ...]:
        """Registered objects, besides those that settings name, on which the result depends."""
        return ()

    @property
    def label(self) -> str:
        """Name in messages and in the progress bar."""
        return self.title or self.name

    @property
    def folder_name(self) -> str:
        """Name of the step's folder."""
        return self.name

    @property
    def inputs(self) -> dict[str, object]:
        """The inputs by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    @property
    def sections(self) -> frozenset[type[Section]]:
        """Sections of the recipe that the step reads."""
        return frozenset({*(uses.section for uses in self.settings), *self.consults})


AnyStep: TypeAlias = Step[Any]
"""A step with any result."""
