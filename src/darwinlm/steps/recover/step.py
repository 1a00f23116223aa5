"""Recover: train the smaller model from its refitted weights, by distillation from the original dense one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import check_no_link, read_json, read_record, write_json
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.folders import remove
from darwinlm.runtime.step import Stage, Task
from darwinlm.steps.recover.checks import check_length, check_teacher
from darwinlm.steps.recover.losses import needs_dense
from darwinlm.steps.recover.schedule import Steps, plan_steps
from darwinlm.steps.refit.step import Refitted
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.text.packed import PackedText, pack_documents
from darwinlm.steps.text.packing import added_bos
from darwinlm.steps.text.repeats import ordinary_tokens, with_repeats
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.sources import read_documents
from darwinlm.steps.text.text_source import check_source, fingerprint, given_source, with_own_text

RECORD, MARKER = "record.json", "key.json"
SCRATCH = "recover-work"
"""Folder of checkpoints and packed text beside those of the stages; it is deleted after the training."""


@dataclass(frozen=True)
class Recovered(Stitched):
    """The trained model, with the record of its training."""

    record: dict[str, Any]


def check_recovery(context: Context, recipe: Recipe, teacher: Checkpoint, dense: Checkpoint) -> Steps:
    """Check everything that can be checked before training: `dense` has the tokens of the model to train.

    Returns the division of the text into steps.

    Raises:
        RecipeError: Sequences are too long, or a step can't be divided.
        ModelError: The dense model has another vocabulary or tokenizer.
        DataError: The text belongs to a benchmark.
    """
    settings, text = recipe.recovery, recipe.text
    check_length(text.sequence_length, dense, *([teacher] if needs_dense(settings) else []))
    source = settings.text or text.source
    if source is not None:
        check_source(source)
    if needs_dense(settings) and teacher is not dense:
        check_teacher(teacher, dense, dense.tokenizer())
    return plan_steps(settings, text.sequence_length, context.batch_tokens, parallel.size())


def _recover(
    task: Task,
    dense: Checkpoint,
    teacher: Checkpoint,
    start: Stitched | Refitted,
    validation: TokenSequences,
    reserved: tuple[str, ...],
    own_text: Path | None,
) -> None:
    """Train the refitted or stitched model, in one process or several."""
    from darwinlm.steps.recover.sharding import load_teacher, sharding_mesh
    from darwinlm.steps.recover.train import Training

    recipe, context, small = task.recipe, task.context, start.checkpoint
    ends = working_time() + task.left(RECOVER.name)
    settings, tokenizer, seed = recipe.recovery, dense.tokenizer(), recipe.text.seed
    source = with_own_text(settings.text or given_source(recipe), own_text)
    scratch = context.path(SCRATCH)
    if parallel.broadcast((task.folder / RECORD).exists()):  # killed between the training and the manifest
        parallel.in_main(_end, scratch)
        return
    with parallel.agree():
        steps = check_recovery(context, recipe, teacher, dense)
    parallel.in_main(_begin, scratch, task.stage.digest)
    pack_documents(
        _documents(source, seed, tokenizer),
        scratch / "text",
        steps.sequences * steps.length,
        tokenizer,
        reserved=reserved,
        vocabulary=int(small.config.vocab_size),
        source=source,
        progress=context.reporter.advance,
    )
    mesh = sharding_mesh(settings.sharding, context.device)
    with parallel.agree():
        repeats = partial(with_repeats, share=recipe.text.looking_back, seed=seed, ordinary=ordinary_tokens(tokenizer))
        bos = added_bos(tokenizer)
        text = PackedText(scratch / "text", steps.length, steps.sequences, bos, repeats=repeats)
        reference = load_teacher(teacher, context.dtype, context.device, mesh) if needs_dense(settings) else None
    with parallel.agree():
        model, record = Training(
            start.model,
            reference,
            text,
            validation.tokens,
            steps,
            settings,
            scratch / "training",
            {"key": task.stage.digest, "steps": steps.count},
            device=context.device,
            dtype=context.dtype,
            mesh=mesh,
            ends=ends,
            say=context.reporter.say,
            progress=context.reporter.advance,
        ).train()
    parallel.in_main(lambda: save_model(model, task.folder / "model", tokenizer=tokenizer))
    parallel.in_main(write_json, task.folder / RECORD, record)
    parallel.in_main(_end, scratch)


def _documents(source: str, seed: int, tokenizer: Any) -> Iterator[str]:
    """The documents of a source; nothing is opened before the first one is read, in the process that reads it."""
    yield from read_documents(source, seed=seed, tokenizer=tokenizer)


def _read(task: Task) -> Recovered:
    scratch = task.context.path(SCRATCH)
    if parallel.is_main() and not scratch.parent.is_symlink():
        remove(scratch)
    return Recovered(Checkpoint.open(task.folder / "model"), read_record(task.folder / RECORD))


def _key(task: Task, dense: Checkpoint) -> dict[str, Any]:
    settings = task.recipe.recovery
    return {
        "text": fingerprint(settings.text or given_source(task.recipe)),
        "blocks_begin_with": added_bos(dense.tokenizer()),
    }


RECOVER = Stage(
    "recover",
    _recover,
    _read,
    version=11,
    title="recovery",
    writes="the trained model, and the record of the training",
    settings=("recovery", "time", "text.sequence_length", "text.looking_back", "text.seed"),
    ignored=("recovery.sharding",),
    key=_key,
    arithmetic=True,
    together=True,
)
"""The model after training. Its key depends neither on the number of processes nor on the division of work."""


def _begin(scratch: Path, digest: str) -> None:
    """Mark the folder as of a training; that of another one is deleted. Raises ArtifactError if it has begun."""
    marker = scratch / MARKER
    check_no_link(scratch, scratch.parent)
    if scratch.exists() and not marker.exists():  # the training has ended
        shutil.rmtree(scratch, ignore_errors=True)
    elif marker.exists() and read_json(marker) != digest:
        begun = sorted((scratch / "training").glob("checkpoint-*"))
        if begun:
            raise ArtifactError(
                f"{begun[-1]} belongs to an unfinished recovery with other settings, text or weights: resume with "
                f"those, choose another output folder, or delete {scratch} to discard it"
            )
        shutil.rmtree(scratch)
    write_json(marker, digest)


def _end(scratch: Path) -> None:
    """Mark the folder as of a training that has ended."""
    (scratch / MARKER).unlink(missing_ok=True)
