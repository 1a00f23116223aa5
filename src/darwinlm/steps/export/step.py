"""Export: save the final model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Work
from darwinlm.steps.export.export_figures import ExportFigures
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.stitch.step import Stitched
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

FILES = "export.json"
"""Hashes of the files in `model/`, which is outside of the step's folder."""
MODEL = "model"
CHECKED = (2, 128)
"""Sequences, and tokens in each, on which the saved model is compared with the one in memory."""


@dataclass(frozen=True)
class Exported:
    """The final model."""

    checkpoint: Checkpoint
    dtype: torch.dtype
    custom_code: bool
    digest: str

    @property
    def folder(self) -> Path:
        """Where the model lies."""
        return self.checkpoint.folder


@dataclass(frozen=True, eq=False)
class Export(Step[Exported]):
    """The final model in `model/` of the output folder.

    Attributes:
        dense: The dense model with the tokens of the final one.
        original: The dense model whose other files are carried along.
        final: The model to save.
        validation: Text on which the saved model is checked.
    """

    name = "export"
    version = 4
    writes = "hashes of the files in model/"
    Figures = ExportFigures
    text_use = (("validation", "check of the saved model"),)

    dense: Checkpoint
    original: Checkpoint
    final: Stitched
    validation: TokenSequences

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Validation text, for the check."""
        return {"validation": recipe.section(TextSettings).validation_tokens}

    def work(self, task: Task) -> None:
        """Save the model."""
        from darwinlm.runtime.artifact import write_json
        from darwinlm.runtime.published import without_folders
        from darwinlm.steps.export.exported import save_final

        sequences, length = CHECKED
        files = save_final(
            self.final,
            self.dense,
            self.original,
            self.validation.tokens[:sequences, :length],
            task.context.folder / MODEL,
            task.folder,
            without_folders(task.recipe.model_dump(mode="json")),
            task.context.device,
        )
        write_json(task.folder / FILES, {"files": files})

    def read(self, task: Task) -> Exported:
        """The saved model."""
        from darwinlm.model.families.checkpoint import Checkpoint
        from darwinlm.model.families.family import is_custom

        checkpoint = Checkpoint.open(task.context.folder / MODEL)
        return Exported(checkpoint, self.dense.dtype, is_custom(checkpoint.config), task.stage.digest)

    def figures(self, task: Task, result: Exported) -> ExportFigures:
        """What the saved model is."""
        from darwinlm.model.families.sentence_transformers import is_sentence_transformer
        from darwinlm.model.families.whole import is_whole

        return ExportFigures(
            folder=result.folder.name,
            custom_code=result.custom_code,
            dtype=str(result.dtype).removeprefix("torch."),
            whole=is_whole(result.folder),
            gives="scores" if self.dense.answers else result.checkpoint.family.ending,
            modules=is_sentence_transformer(result.folder),
        )

    @classmethod
    def cost(cls, load: Workload) -> Cost:
        """The model on the disk, and once more while it is put together."""
        model = float(load.sizes.saved_params * load.sizes.saved)
        return Cost(0.0, {}, disk=model, scratch=model, parts={"writing": Work(read=2 * model, written=model)})

    def spoiled(self, task: Task) -> str | None:
        """The first file of the model that isn't as recorded."""
        from darwinlm.steps.export.exported import what_differs

        return what_differs(task.folder / FILES, task.context.folder / MODEL)
