"""A recovery from its text to the trained model: checks, packed text, training, and the folder that it resumes from."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.objective.chosen import objective_of
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import check_no_link, read_json, write_json
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.context import Context
from darwinlm.runtime.errors import ArtifactError, RecipeError
from darwinlm.runtime.folders import remove
from darwinlm.runtime.step import Task
from darwinlm.steps.recover.checks import check_teacher
from darwinlm.steps.recover.item_text import PackedItems, pack_items
from darwinlm.steps.recover.packed_text import PackedText, pack_documents
from darwinlm.steps.recover.recovery_losses import ForwardKL
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.recover.schedule import Steps, plan_steps
from darwinlm.steps.recover.sharding import load_teacher, sharding_mesh
from darwinlm.steps.recover.train import Training
from darwinlm.steps.text.packing import added_bos
from darwinlm.steps.text.reading import encoder_of, length_of
from darwinlm.steps.text.repeats import ordinary_tokens, with_repeats
from darwinlm.steps.text.samples import read_samples
from darwinlm.steps.text.sources import read_documents
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.text.text_source import check_length, check_source, given_source, with_own_text

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset
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
    if objective_of(dense).reads and (settings.distillation < 1 or type(settings.loss) is not ForwardKL):
        raise RecipeError(
            f"recovery trains {dense.source} to give what the dense model gives, by its own distance: leave out "
            "recovery.loss and recovery.distillation, or train the saved model on labels with the trainers of "
            "sentence-transformers (docs/trainers.md)"
        )
    source = settings.text or text.source
    if source is not None:
        check_source(source)
    if settings.needs_dense and teacher is not dense:
        check_teacher(teacher, dense, dense.tokenizer())
    return plan_steps(settings, length_of(dense, text), context.batch_tokens, parallel.size())


@parallel.communicating()
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
    context = task.context
    settings, text_settings = task.settings(RecoverySettings), task.settings(TextSettings)
    ends = working_time() + seconds
    tokenizer = dense.tokenizer()
    source = with_own_text(settings.text or given_source(text_settings), own_text)
    scratch = context.path(SCRATCH)
    if parallel.broadcast((task.folder / RECORD).exists()):  # killed between the training and the manifest
        parallel.in_main(_end, scratch)
        return
    with parallel.agree():
        steps = check_recovery(context, settings, text_settings, teacher, dense)
    parallel.in_main(_begin, scratch, task.stage.digest)
    text = _text(source, dense, steps, text_settings, reserved, scratch / "text", context)
    mesh = sharding_mesh(settings.sharding, context.device)
    with parallel.agree():
        reference = None
        if settings.needs_dense:
            reference = load_teacher(teacher, context.dtype, context.device, mesh)
    # Not inside `agree`: processes communicate in every step, so that one which fails must end the others.
    model, record = Training(
        start.model,
        reference,
        text,
        validation.tokens,
        steps,
        settings,
        scratch / "training",
        {"key": task.stage.digest, "steps": steps.count},
        objective_of(dense),
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


def _text(
    source: str,
    dense: Checkpoint,
    steps: Steps,
    settings: TextSettings,
    reserved: tuple[str, ...],
    folder: Path,
    context: Context,
) -> Dataset[dict[str, Tensor]]:
    """The training text, packed into a folder. Raises DataError, StorageError."""
    if objective_of(dense).reads:
        samples = read_samples(source, seed=settings.seed)
        pack_items(samples, folder, steps.sequences, encoder_of(dense, settings), reserved=reserved, source=source)
        with parallel.agree():
            return PackedItems(folder)
    tokenizer = dense.tokenizer()
    pack_documents(
        _documents(source, settings.seed, tokenizer, context.reporter.say),
        folder,
        steps.sequences * steps.length,
        tokenizer,
        reserved=reserved,
        vocabulary=int(dense.config.vocab_size),
        source=source,
        progress=context.reporter.advance,
    )
    with parallel.agree():
        ordinary = ordinary_tokens(tokenizer)
        repeats = partial(with_repeats, share=settings.looking_back, seed=settings.seed, ordinary=ordinary)
        return PackedText(folder, steps.length, steps.sequences, added_bos(tokenizer), repeats=repeats)


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
