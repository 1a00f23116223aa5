"""A recovery from its text to the trained model: checks, packed text, training, and the folder that it resumes from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import check_no_link, read_json, write_json
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.folders import remove
from darwinlm.runtime.step import Task
from darwinlm.steps.recover.checks import check_teacher
from darwinlm.steps.recover.packed_text import PackedText, pack_documents
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.recover.schedule import Steps, plan_steps
from darwinlm.steps.recover.sharding import load_teacher, sharding_mesh
from darwinlm.steps.recover.train import Training
from darwinlm.steps.text.packing import added_bos
from darwinlm.steps.text.repeats import ordinary_tokens, with_repeats
from darwinlm.steps.text.sources import read_documents
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.text.text_source import check_length, check_source, given_source, with_own_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from darwinlm.steps.own_text.documents import Documents
    from darwinlm.steps.stitch.step import Stitched
    from darwinlm.steps.text.sequences import TokenSequences


RECORD = "record.json"
MARKER = "key.json"
SCRATCH = "recover-work"
"""Folder of checkpoints and packed text beside those of the steps; it is deleted after the training."""


def check_recovery(
    context: Context, settings: RecoverySettings, text: TextSettings, teacher: Checkpoint, dense: Checkpoint
) -> Steps:
    """Check everything that can be checked before training: `dense` has the tokens of the model to train.

    Returns the division of the text into steps.

    Raises:
        RecipeError: Sequences are too long, or a step can't be divided.
        ModelError: The dense model has another vocabulary or tokenizer.
        DataError: The text belongs to a benchmark.
    """
    check_length(text.sequence_length, dense, *([teacher] if settings.needs_dense else []))
    source = settings.text or text.source
    if source is not None:
        check_source(source)
    if settings.needs_dense and teacher is not dense:
        check_teacher(teacher, dense, dense.tokenizer())
    return plan_steps(settings, text.sequence_length, context.batch_tokens, parallel.size())


def run_recovery(
    task: Task,
    start: Stitched,
    dense: Checkpoint,
    teacher: Checkpoint,
    validation: TokenSequences,
    *,
    reserved: tuple[str, ...],
    own_text: Documents | None,
    seconds: float,
) -> None:
    """Train the refitted or stitched model, in one process or several.

    Args:
        task: Settings, and the folder for the trained model and its record.
        start: The model to train.
        dense: The dense model with the tokens of the smaller one.
        teacher: The dense model from which it learns.
        validation: Text for the held-out loss.
        reserved: Hashes of documents that aren't trained on.
        own_text: Text that the dense model wrote for the training, if it is one of the sources.
        seconds: Time after which the training ends.
    """
    context, small = task.context, start.checkpoint
    settings, text_settings = task.settings(RecoverySettings), task.settings(TextSettings)
    ends = working_time() + seconds
    tokenizer, seed = dense.tokenizer(), text_settings.seed
    source = with_own_text(settings.text or given_source(text_settings), own_text)
    scratch = context.path(SCRATCH)
    if parallel.broadcast((task.folder / RECORD).exists()):  # killed between the training and the manifest
        parallel.in_main(_end, scratch)
        return
    with parallel.agree():
        steps = check_recovery(context, settings, text_settings, teacher, dense)
    parallel.in_main(_begin, scratch, task.stage.digest)
    pack_documents(
        _documents(source, seed, tokenizer, context.reporter.say),
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
        repeats = partial(
            with_repeats, share=text_settings.looking_back, seed=seed, ordinary=ordinary_tokens(tokenizer)
        )
        bos = added_bos(tokenizer)
        text = PackedText(scratch / "text", steps.length, steps.sequences, bos, repeats=repeats)
        reference = None
        if settings.needs_dense:
            reference = load_teacher(teacher, context.dtype, context.device, mesh)
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
            measured=context.reporter.measured,
        ).train()
    parallel.in_main(lambda: save_model(model, task.folder / "model", tokenizer=tokenizer))
    parallel.in_main(write_json, task.folder / RECORD, record)
    parallel.in_main(_end, scratch)


def remove_scratch(context: Context) -> None:
    """Delete the folder of a training that has ended."""
    scratch = context.path(SCRATCH)
    if parallel.is_main() and not scratch.parent.is_symlink():
        remove(scratch)


def _documents(
    source: str, seed: int, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], object]
) -> Iterator[str]:
    """The documents of a source; nothing is opened before the first one is read, in the process that reads it."""
    yield from read_documents(source, seed=seed, tokenizer=tokenizer, say=say)


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
