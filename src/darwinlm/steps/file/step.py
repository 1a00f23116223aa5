"""File: the saved model in the GGUF file that the budget bounds, and the dense model quantised to the same bound."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.amounts import nats, size
from darwinlm.runtime.figures import Figures, StepFigures
from darwinlm.runtime.step import Step, Task, Uses
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.budget.kinds import File

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.export.step import Exported
    from darwinlm.steps.text.sequences import TokenSequences

RECORD = "file.json"
TOKENS = 8192
"""Maximum number of evaluation tokens that the files are measured on."""


class QuantisedFile(Figures):
    """One GGUF file of a quantisation; KL(dense ‖ file) is in nats per token, as llama.cpp runs it."""

    quantisation: str
    bytes: int
    kl: float


class BoundedFileFigures(StepFigures):
    """The file that a budget bounds, measured on `tokens`, and the dense `model` quantised to the same bound.

    `dense` is None if no quantisation makes the dense model that small.
    """

    lasting: ClassVar[bool] = False

    model: str
    file: str
    tokens: int
    saved: QuantisedFile
    dense: QuantisedFile | None = None

    def lines(self) -> tuple[tuple[str, str], ...]:
        """Both files."""
        return (("file", self.note()),)

    def note(self) -> str:
        """The file compared with the quantised dense model, and which one to use."""
        saved, dense = self.saved, self.dense
        sentence = (
            f"{self.file} has {size(saved.bytes)} and KL {nats(saved.kl)} on {self.tokens:,} tokens of the evaluation "
            "text in llama.cpp."
        )
        if dense is None:
            return f"{sentence} No type makes the dense model that small."
        quantised = f"the dense model as {dense.quantisation} has {size(dense.bytes)} and KL {nats(dense.kl)}"
        if dense.kl > saved.kl:
            return f"{sentence} It loses less than quantising alone: {quantised}."
        command = f"darwinlm export {shlex.quote(self.model)} --quant {dense.quantisation} --out model.gguf"
        return f"{sentence} Quantising alone loses less: {quantised}. Use that instead: {command}."


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

    def figures(self, task: Task, result: BoundedFileFigures) -> BoundedFileFigures:
        """Sizes and losses of the files."""
        return result
