"""File: the saved model in the GGUF file that the budget bounds, and the dense model quantised to the same bound."""

from __future__ import annotations

from pathlib import Path

import torch

from darwinlm.formats.gguf.checked_file import ENGINE, export_gguf
from darwinlm.formats.gguf.file_sizes import largest_type
from darwinlm.formats.gguf.in_llama_cpp import open_in_llama_cpp
from darwinlm.formats.gguf.process import require_engine
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.runtime.artifact import read_as, write_json
from darwinlm.runtime.errors import BudgetError, import_extra
from darwinlm.runtime.figures import FileChoice, QuantisedFile
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.export.step import Exported
from darwinlm.steps.text.sequences import TokenSequences

RECORD = "file.json"
TOKENS = 8192
"""Maximum number of evaluation tokens that the files are measured on."""
EXCESS = 1.01
"""Bytes of the file relative to the bound that the prediction may be wrong by."""


def check_file(recipe: Recipe) -> None:
    """Raise MissingExtraError before the first stage if the file can't be written or measured."""
    if recipe.budget.kind == "file":
        import_extra("gguf", "gguf", "a budget of a GGUF file")
        require_engine(ENGINE, "a budget of a GGUF file")


def _write(task: Task, dense: Checkpoint, export: Exported, evaluation: TokenSequences) -> None:
    """Write both files, measure them in llama.cpp, and delete that of the dense model."""
    bound, small = int(task.recipe.budget.file or 0), export.checkpoint
    kind = str(task.recipe.units.quantisation)
    path, beside = task.context.folder / f"model-{kind}.gguf", task.folder / "dense.gguf"
    came = Path(dense.source)
    tokenizer = came if came.suffix == ".gguf" and dense.config.vocab_size == small.config.vocab_size else None

    wanted = {"saved": (small, kind, path)}
    if (fits := largest_type(dense, bound)) is not None:
        wanted["dense"] = dense, fits[0], beside
    for checkpoint, quantisation, file in wanted.values():
        export_gguf(checkpoint, file, quantisation=quantisation, tokenizer_from=tokenizer)
    if (size := path.stat().st_size) > EXCESS * bound:
        raise BudgetError(f"the file has {size:,} bytes, more than the {bound:,} of budget.file: please report this")
    tokens = evaluation.tokens[: max(1, TOKENS // evaluation.tokens.shape[1])]
    opened = {name: open_in_llama_cpp(file)[0] for name, (*_, file) in wanted.items()}
    found = measure_quality(dense.load(torch.float32), opened, tokens, batch_tokens=tokens.shape[1])
    record = {
        name: QuantisedFile(quantisation=each, bytes=file.stat().st_size, kl=found[name].kl).as_json()
        for name, (_, each, file) in wanted.items()
    }
    for model in opened.values():
        model.close()
    beside.unlink(missing_ok=True)
    write_json(task.folder / RECORD, {"file": path.name, "tokens": tokens.numel(), **record})


FILE = Stage(
    "file",
    _write,
    lambda task: read_as(task.folder / RECORD, FileChoice),
    writes="sizes and losses of the GGUF files",
    settings=("budget.file", "units.quantisation"),
)
"""The file that `budget.file` bounds, `model-QUANTISATION.gguf` of the output folder; None for other budgets."""
