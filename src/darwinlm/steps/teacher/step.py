"""Teacher: for a recovery alone, the dense model with the tokens of the smaller model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.step import Step, Task

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint


@dataclass(frozen=True, eq=False)
class Teacher(Step["Checkpoint"]):
    """The original model with the tokens of a smaller one, from which that one learns."""

    name = "teacher"
    title = "dense model"
    writes = "the original model with the tokens of the smaller one"

    original: Checkpoint
    small: Checkpoint

    def work(self, task: Task) -> None:
        """Write the model, unless it has all of these tokens and more rows."""
        from darwinlm.model.surgery.fewer_tokens import cut_weights, rows_in

        original, small = self.original, self.small
        tokenizers = small.tokenizer(), original.tokenizer()
        rows = rows_in(*tokenizers, int(small.config.vocab_size), int(original.config.vocab_size))
        if rows is not None:
            cut_weights(original, rows, task.folder / "model")
            tokenizers[0].save_pretrained(task.folder / "model")

    def read(self, task: Task) -> Checkpoint:
        """The model that `work` wrote, or the unchanged one."""
        from darwinlm.model.families.checkpoint import Checkpoint

        cut = task.folder / "model"
        return Checkpoint.open(cut, self.original.source) if cut.is_dir() else self.original
