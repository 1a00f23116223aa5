"""File: the saved model in the GGUF file that the budget bounds, and the dense model quantised to the same bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.step import Cost, Step, Task, Uses
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.kinds import File
from darwinlm.steps.file.file_figures import BoundedFileFigures
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.export.step import Exported
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

RECORD = "file.json"
ENGINE = 3.0
"""Time of an operation of llama.cpp with a quantised file, relative to one of passes; measured for Q3_K_M."""
TOKENS = 8192
"""Maximum number of evaluation tokens that the files are measured on."""


@dataclass(frozen=True, eq=False)
class BoundedFile(Step[BoundedFileFigures]):
    """The file that `budget.file` bounds, `model-QUANTISATION.gguf` of the output folder."""

    name = "file"
    version = 2
    writes = "sizes and losses of the GGUF files"
    Figures = BoundedFileFigures
    text_use = (("evaluation", "losses of the GGUF files"),)
    settings = (Uses(BudgetSettings, only=("bound",)), Uses(UnitsSettings, only=("quantisation",)))

    dense: Checkpoint
    exported: Exported
    evaluation: TokenSequences

    def work(self, task: Task) -> None:
        """Write and measure the files."""
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.file.bounded_file import write_bounded_file

        tokens = self.evaluation.tokens[: max(1, TOKENS // self.evaluation.tokens.shape[1])]
        bound, kind = task.settings(BudgetSettings).bound, task.settings(UnitsSettings).quantisation
        assert isinstance(bound, File), "the budget is a file"
        assert kind is not None, "a bounded file has a type"
        small, folder = self.exported.checkpoint, task.context.folder
        figures = write_bounded_file(self.dense, small, bound.value, kind, tokens, folder, task.folder)
        write_json(task.folder / RECORD, figures.as_json())

    def read(self, task: Task) -> BoundedFileFigures:
        """Sizes and losses of the files."""
        from darwinlm.runtime.artifact import read_as

        return read_as(task.folder / RECORD, BoundedFileFigures)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """The dense model in float32, and both files in llama.cpp, on the same text. None without such a budget."""
        from darwinlm.steps.workload import EXACT

        sizes, bound = load.sizes, load.settings(BudgetSettings).bound
        if not isinstance(bound, File):
            return None
        tokens = min(TOKENS, load.settings(TextSettings).evaluation_tokens)
        in_float32 = EXACT[sizes.size] / EXACT[4]
        work = sizes.operations(tokens * in_float32, heads=1)
        work += sizes.operations(tokens * ENGINE, 1 + sizes.kept, heads=2)
        memory = {"whole models": 4.0 * sizes.params, "logits": load.compared}
        unrounded = float(sizes.params * sizes.saved)
        return Cost(work, memory, disk=bound.value, scratch=bound.value + unrounded)

    def figures(self, task: Task, result: BoundedFileFigures) -> BoundedFileFigures:
        """Sizes and losses of the files."""
        return result
