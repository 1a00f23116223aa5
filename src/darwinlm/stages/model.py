"""The models that a run starts from: the one that is pruned, and the original for distillation and comparisons."""

from __future__ import annotations

from pathlib import Path

from darwinlm.execution.output import guarded
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.models.resolve import resolve_model
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of, read_json, write_json
from darwinlm.stages.vocabulary import CutVocabulary
from darwinlm.vocabulary.cut import cut_weights, rows_in

RECORD = "rows.json"


def resolved_model(task: Task) -> Checkpoint:
    """The model that the recipe names. Raises ModelError, CheckpointError, FamilyError."""
    assert task.recipe.model is not None
    return _resolved(task, task.recipe.model, "model")


def _original(task: Task, source: Checkpoint) -> Checkpoint:
    teacher = task.recipe.teacher
    return source if teacher is None or teacher == task.recipe.model else _resolved(task, teacher, "teacher")


def _resolved(task: Task, model: str, title: str) -> Checkpoint:
    """A model, opened; a GGUF file is dequantised into the output folder first, which is then marked as ours."""
    folder = task.folder
    with parallel.main_first():
        if Path(model).suffix != ".gguf":
            return resolve_model(model, folder, allow_remote_code=task.context.allow_remote_code)
        with guarded(folder), task.context.reporter.stage(title):
            return resolve_model(model, folder, say=task.context.reporter.say)


SOURCE = Stage("source", resolved_model, settings=("model",))
"""The model that is pruned."""
ORIGINAL = Stage("original", _original, settings=("model", "teacher"))
"""The dense model for distillation and comparisons."""


def _dense(task: Task, source: Checkpoint, vocabulary: CutVocabulary | None) -> Checkpoint:
    return source if vocabulary is None else vocabulary.checkpoint


DENSE = Stage("dense", _dense)
"""The dense model of all later stages, which has the smaller vocabulary if there is one."""


def cut_to(task: Task, original: Checkpoint, dense: Checkpoint) -> None:
    """Write the original model with the tokens of a smaller one, unless it has all of these and more rows."""
    tokenizers = dense.tokenizer(), original.tokenizer()
    rows = rows_in(*tokenizers, int(dense.config.vocab_size), int(original.config.vocab_size))
    if rows is not None:
        cut_weights(original, rows, task.folder / "model")
        tokenizers[0].save_pretrained(task.folder / "model")
    write_json(task.folder / RECORD, {"rows": None if rows is None else digest_of(rows)})


def read_cut(task: Task, original: Checkpoint, dense: Checkpoint) -> Checkpoint:
    """The model that `cut_to` wrote, or the unchanged one."""
    if read_json(task.folder / RECORD)["rows"] is None:
        return original
    return Checkpoint.open(task.folder / "model", original.source)


TEACHER = Stage(
    "teacher",
    read_cut,
    work=cut_to,
    title="vocabulary of the dense model",
    writes="the original model with the tokens of the dense one",
    wanted=lambda recipe: recipe.teacher not in (None, recipe.model),
    otherwise=lambda task, dense: dense,
)
"""The original model with the tokens of the dense one."""
