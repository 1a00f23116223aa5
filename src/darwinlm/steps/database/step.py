"""The database: every module at every level, from one removal order and one factorisation each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Uses, Work
from darwinlm.steps.database.database_settings import DatabaseSettings
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.units.modules import ModuleReader
    from darwinlm.runtime.artifact import StageFolder
    from darwinlm.steps.database.store import DatabaseReader
    from darwinlm.steps.gradients.step import GradientMoments
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

MEETINGS = 3
"""How often processes meet in a block."""


@dataclass(frozen=True)
class Modules:
    """The dense model's modules, whole or removed; nothing was measured for them."""

    reader: ModuleReader

    @property
    def digest(self) -> str:
        """Hash of the dense model."""
        return self.reader.checkpoint.digest


@dataclass(frozen=True)
class PruningDatabase(Modules):
    """A finished database, with its folder: modules at every level."""

    reader: DatabaseReader
    stage: StageFolder

    @property
    def digest(self) -> str:
        """Hash of everything that it depends on."""
        return self.stage.digest

    def of(self, checkpoint: Checkpoint) -> PruningDatabase:
        """The same database for a model with the same blocks, such as one with fewer tokens."""
        from darwinlm.runtime.memory import ALL
        from darwinlm.steps.database.store import DatabaseReader

        self.reader.release(ALL)
        reader = DatabaseReader(self.reader.folder, checkpoint, self.reader.units, device=self.reader.device)
        return PruningDatabase(reader, self.stage)


@dataclass(frozen=True, eq=False)
class Database(Step[PruningDatabase]):
    """Every module at every level.

    Attributes:
        gradients: Second moments of the gradients at outputs; None if the metric of removal doesn't use them.
    """

    name = "database"
    title = "calibration and database"
    version = 9
    writes = "order, factor and errors of every module"
    Settings = DatabaseSettings
    section = "database"
    text_use = (("calibration", "second moments of the database"),)
    settings = (Uses(DatabaseSettings), Uses(UnitsSettings, only=("attention",)))
    arithmetic = True
    together = True

    dense: Checkpoint
    calibration: TokenSequences
    gradients: GradientMoments | None

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Calibration text."""
        return {"calibration": recipe.section(TextSettings).calibration_tokens}

    def work(self, task: Task) -> None:
        """Calibrate and factorise every module, block by block."""
        from darwinlm.model.walk.hidden import HiddenMemory
        from darwinlm.model.walk.stream import stream_of
        from darwinlm.runtime import parallel
        from darwinlm.runtime.errors import DataError
        from darwinlm.steps.database.block_moments import OutputMoments
        from darwinlm.steps.database.build import build_database
        from darwinlm.steps.database.elimination import why_not_recorded

        context, tokens = task.context, self.calibration.tokens
        if len(tokens) < parallel.size():
            raise DataError(
                f"text.calibration_tokens: {len(tokens)} sequences can't be shared by {parallel.size()} processes"
            )
        memory = HiddenMemory(task.folder)
        with parallel.agree():
            stream = stream_of(context, self.dense, tokens[parallel.place() :: parallel.size()], memory)
        metric = task.settings(DatabaseSettings).metric
        weights: OutputMoments = self.gradients or (lambda block: {})
        units = task.settings(UnitsSettings)
        build_database(task.stage, stream, units, weights, context.reporter.advance, metric.order)
        if reason := why_not_recorded():
            context.reporter.say(
                f"removal order: its steps can't be recorded as a CUDA graph ({reason}) and took longer, with the same "
                "results"
            )

    def read(self, task: Task) -> PruningDatabase:
        """The reader of the database."""
        from darwinlm.runtime.compute import exact_device
        from darwinlm.steps.database.store import DatabaseReader

        device = exact_device(task.context.device)
        reader = DatabaseReader(task.folder, self.dense, task.settings(UnitsSettings), device=device)
        return PruningDatabase(reader, task.stage)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Second moments of inputs, and for every variant of every module a removal order, a factor and a target.

        None if all blocks fit.
        """
        from darwinlm.steps.database.sharing import factor_operations
        from darwinlm.steps.workload import largest

        sizes, r = load.sizes, float(load.sizes.width)
        if sizes.whole:
            return None
        tokens = load.settings(TextSettings).calibration_tokens
        weighted = load.settings(DatabaseSettings).metric.gradients
        work, alone, moments, module = sizes.operations(tokens), 0.0, dict[int, float](), 0.0
        packed, largest_matrix = 0.0, 0.0
        for shape in sizes.cut:
            d, experts = float(shape.sizes.width), max(shape.sizes.experts, 1)
            work += load.exact * tokens * d * d
            alone += load.slow * factor_operations(shape, load.settings(UnitsSettings), r)  # step after step
            moments[shape.block] = moments.get(shape.block, 0.0) + 4 * experts * d * d
            few = tokens <= d  # the order needs another matrix, and weights in float64
            weights = sizes.size + 16 if few and weighted else 8
            matrices = 8 * (2 - load.on_cpu + few) + 4 * shape.sizes.experts
            module = max(module, matrices * d * d + weights * r * d + 12 * r * r)
            packed += 2 * experts * d * (d + 1)
            largest_matrix = max(largest_matrix, 8 * experts * d * d)
        parts = cls._on_gpu(load, packed)
        of_a_block = {"second moments": max(moments.values(), default=0.0)}
        factorising = {"factors of one module": module} | ({} if load.on_cpu else of_a_block)
        held = largest(load.passing | {"blocks": load.block} | of_a_block, factorising)
        set_aside = largest_matrix if load.on_cpu else 0.0
        held |= load.streams(tokens)
        return Cost(work + alone, held, disk=packed, scratch=set_aside, parts=parts, alone=alone)

    @staticmethod
    def _on_gpu(load: Workload, packed: float) -> dict[str, Work]:
        """Passes with sums of inputs, then orders and factors of one module after another, and their files."""
        from darwinlm.steps.database.elimination import GPU_LAUNCHES
        from darwinlm.steps.database.sharing import orders_of

        sizes, r, units = load.sizes, float(load.sizes.width), load.settings(UnitsSettings)
        tokens = load.settings(TextSettings).calibration_tokens / sizes.processes
        weighted = load.settings(DatabaseSettings).metric.gradients
        passes = load.passes(tokens * sizes.processes) + load.owning(sizes.blocks)
        factors = Work()
        for shape in sizes.cut:
            d, experts, orders = float(shape.sizes.width), shape.sizes.experts, orders_of(shape, units)
            squares = max(experts, 1) * d * d
            if experts:  # inputs of experts are float32, and all of their sums
                passes += Work(float32=2 * tokens * shape.chosen * d * d)
            else:
                passes += load.multiplied(tokens * d * d)
            calls = max(tokens / sizes.pass_tokens, 1)
            passes += Work(moved=4 * squares * calls, sent=4 * squares if sizes.processes > 1 else 0.0)
            unit = d / (shape.sizes.groups if shape.kind == "attention" else d)
            steps = d / unit
            gram = 2 * (r * d * d + r * r * d) if weighted and not experts else 2 * r * d * d
            errors = r * d * d + (2 * r * r * d if weighted else 0.0)
            factors += (
                Work(
                    float64=4 / 3 * d**3 + r * d * d,
                    float32=2.6 * d**3 + gram + errors,
                    moved=(0.16 * d + 500 + 100) * d * d,
                    launches=steps * GPU_LAUNCHES * (0.5 if unit == 1 else 2.0) + d / 10 + 300,
                )
                * orders
            )
        factors *= load.share(sizes.depth)
        writing = Work(copied=packed, written=packed) * load.share(sizes.depth)
        exchange = load.exchange(sizes.blocks * sizes.size, MEETINGS)
        return {"passes": passes, **exchange, "factors": factors, "writing": writing}
