"""Latency: time of a module at each level on this machine, and the error of predictions for whole models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.step import Cost, Step, Task, Uses
from darwinlm.steps.budget.budget_settings import BudgetSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.units.cost import CostModel
    from darwinlm.steps.workload import Workload

WORRYING = 0.05
"""Prediction error above which the user is warned."""
POINTS, RUNS = 9, 3
"""Maximum number of timed widths for one kind of module (other times are interpolated), and timed passes at each width,
whose median is used; up to three times as many if they disagree."""
TIMED = 200
"""Timed passes for each kind of module, in plans."""
TABLE = "table.json"
RATIOS = "ratios.json"


@dataclass(frozen=True, eq=False)
class Latency(Step["CostModel"]):
    """Costs in nanoseconds of the recipe's request. Its work raises BudgetError if no model is fast enough.

    Attributes:
        dense: The dense model, with all of its tokens.
        tokens: The smallest number of tokens that the run may keep.
    """

    name = "latency"
    title = "latency table"
    version = 3
    writes = "time of a module at every level, and of the head"
    settings = (Uses(UnitsSettings), Uses(BudgetSettings, only=("prefill_tokens", "decode_tokens")))

    dense: Checkpoint
    tokens: int

    def key(self, task: Task) -> Mapping[str, object]:
        """What the times depend on, besides the model and the request."""
        import platform

        import torch

        device = task.context.device
        on_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else platform.processor() or platform.machine()
        return {
            "dtype": str(task.context.dtype),
            "machine": [name, device.type, torch.get_num_threads(), torch.__version__],
            "timed": [POINTS, RUNS, "CUDA graph" if on_gpu else "eager"],
        }

    def work(self, task: Task) -> None:
        """Time whole models in pairs, and solve for the times of their modules."""
        from darwinlm.model.families.shapes import module_shapes
        from darwinlm.model.units.space import space_of
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.latency.measure import check_fastest, fastest, measure_table
        from darwinlm.steps.latency.timing import ModelTimer

        context, budget = task.context, task.settings(BudgetSettings)
        shapes = module_shapes(self.dense)
        space = space_of(task.settings(UnitsSettings), self.dense, shapes)
        timer = ModelTimer(
            self.dense,
            {shape.place: shape for shape in shapes},
            budget,
            dtype=context.dtype,
            device=context.device,
            runs=RUNS,
            tokens=self.tokens,
        )
        check_fastest(budget, fastest(space, timer, self.tokens))
        table = measure_table(
            space,
            timer,
            points=POINTS,
            record=task.folder / RATIOS,
            tokens=self.tokens,
            progress=context.reporter.advance,
        )
        write_json(task.folder / TABLE, table.model_dump())
        context.reporter.say(f"latency table: whole models are predicted to within {table.worst_error:.1%}")
        if table.worst_error > WORRYING:
            context.reporter.say(
                f"the machine was busy or its speed changed: close other programs, delete {task.folder} and repeat the "
                "command"
            )
        if context.device.type == "cuda" and not timer.graphs:
            context.reporter.say("latency table: decoding can't be recorded as a CUDA graph and was timed without one")

    def read(self, task: Task) -> CostModel:
        """The costs of every level of every module."""
        from darwinlm.model.families.shapes import module_shapes
        from darwinlm.model.units.space import space_of
        from darwinlm.runtime.artifact import read_as
        from darwinlm.steps.latency.latency_table import LatencyTable
        from darwinlm.steps.latency.measure import table_costs

        space = space_of(task.settings(UnitsSettings), self.dense, module_shapes(self.dense))
        return table_costs(read_as(task.folder / TABLE, LatencyTable), space)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Alternating passes of two whole models, of which the second has half of the blocks on average."""
        from darwinlm.steps.workload import ALONE

        sizes, budget = load.sizes, load.settings(BudgetSettings)
        if not budget.timed:
            return None
        timed = TIMED * len({shape.kind for shape in sizes.cut})
        alone = timed * sizes.operations(min(budget.decode_tokens, 8) * ALONE, 0.75)
        work = timed * sizes.operations(budget.prefill_tokens, 0.75) + alone
        prompts = load.passes(budget.prefill_tokens, 0.75) * timed
        decoded = load.written(min(budget.decode_tokens, 8), 1, 0.75) * timed
        parts = {"timed passes": (prompts + decoded) * sizes.processes, "loading": load.loading(sizes.params)}
        held = load.passing | {"whole models": 2.0 * sizes.params * sizes.size}
        return Cost(work, held, parts=parts, alone=alone)
