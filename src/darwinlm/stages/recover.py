"""Recover: train the smaller model from its refitted weights, by distillation from the original dense one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from darwinlm.data import Shuffle, check_not_evaluation_text, read_documents
from darwinlm.data.looking_back import ordinary_tokens, with_repeats
from darwinlm.data.packed import PackedText, pack_documents
from darwinlm.data.packing import added_bos
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recovery.checks import check_length, check_packages, check_sharding, check_teacher
from darwinlm.recovery.schedule import Steps, plan_steps
from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import MANIFEST, STAGES, StageFolder, digest_of, read_json, write_json
from darwinlm.runtime.errors import ArtifactError
from darwinlm.stages.refit import Refitted
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import Texts, fingerprint

if TYPE_CHECKING:
    from darwinlm.recovery.cache import CachedText

RECORD = "record.json"


@dataclass(frozen=True)
class Recovered(Stitched):
    """The trained model, with the record of its training."""

    record: dict[str, Any]


def recover_stage(run: Run, texts: Texts, stitched: Stitched, refitted: Refitted | None) -> Recovered | None:
    """Train the refitted (or stitched) model, as `recover_model`; None if the recipe skips recovery."""
    if not run.recipe.recovery.tokens:
        return None
    before = {"stitched": stitched.stage.digest, "refit": refitted.stage.digest if refitted else None}
    described = stitched.checkpoint, run.checkpoint.tokenizer()
    return recover_model(run, texts, described, (refitted or stitched).model, before)


def check_recovery(run: Run, described: tuple[Checkpoint, Any] | None = None) -> Steps:
    """Check everything that can be checked before training or pruning.

    `described` is the model to train and its tokenizer; None if it will be pruned from the run's model. Returns the
    division of the text into steps.

    Raises:
        RecipeError: Sequences are too long, a step can't be divided, or weights can't be sharded.
        ModelError: The dense model has another vocabulary or tokenizer.
        DataError: The text belongs to a benchmark.
        MissingExtraError: A package isn't installed.
    """
    settings, text, teacher = run.recipe.recovery, run.recipe.text, run.teacher
    small, tokenizer = described or (run.checkpoint, run.checkpoint.tokenizer())
    check_packages(settings)
    check_sharding(settings)
    check_length(text.sequence_length, small, *([teacher] if settings.distillation else []))
    source = settings.text or text.source
    if source is not None:
        check_not_evaluation_text(source, allow_benchmark_text=text.allow_benchmark_text)
    if settings.distillation and teacher is not small:
        check_teacher(teacher, small, tokenizer)
    return plan_steps(settings, text.sequence_length, run.batch_tokens, parallel.size())


def recover_model(
    run: Run,
    texts: Texts,
    described: tuple[Checkpoint, Any],
    student: Callable[[], Any],
    before: dict[str, Any],
) -> Recovered:
    """Train a model, in one process or several, as the stage `recover`.

    `described` is the smaller model, for its configuration, and its tokenizer; `student` builds it in float32. `before`
    holds digests of the initial weights.

    Raises:
        ModelError: The dense model has another vocabulary or tokenizer.
        RecipeError: Sequences are too long, or a step can't be divided.
        DataError: There is too little text.
        NumericsError: The loss isn't finite or diverges.
        StorageError: The disk is full.
        ArtifactError: A checkpoint belongs to another run.
        MissingExtraError: A package isn't installed.
    """
    settings, (small, tokenizer) = run.recipe.recovery, described
    with parallel.agree():
        steps = check_recovery(run, described)
    source = settings.text or run.recipe.text.source
    assert source is not None, "the text stage checks this"
    reserved = sorted({hashed for part in texts.values() for hashed in part.document_hashes})
    # The key doesn't depend on the number of processes or the division of work.
    without_effect = {"sharding", "log_to", "teacher_cache"}
    without_effect |= {"minutes"} if settings.minutes is None else set()
    how = settings.model_dump(exclude=without_effect) | {"cached": settings.teacher_cache is not None}
    key = {
        **before,
        "teacher": run.teacher.digest if settings.distillation else None,
        "recovery": how,
        "length": steps.length,
        "source": fingerprint(source),
        "seed": run.recipe.search.seed,
        "reserved": digest_of(reserved),
        "held_out": texts["validation"].digest,
        "arithmetic": run.arithmetic,
        "blocks_begin_with": added_bos(tokenizer),
    }
    if run.recipe.text.looking_back:
        key["looking_back"] = run.recipe.text.looking_back
    if run.skipped_tokens:
        key["skipped"] = run.skipped_tokens
    scratch = run.folder / STAGES / "recover-work"  # checkpoints and packed text, deleted after the training
    if parallel.is_main() and (run.path("recover") / MANIFEST).exists():
        shutil.rmtree(scratch, ignore_errors=True)  # left by a training that was killed at its end
    with run.stage("recover", key, "recovery", shared=True) as (stage, work):
        if work:
            with parallel.main_first():
                if parallel.is_main():
                    _begin(scratch, stage.digest)
                    pack_documents(
                        read_documents(source, shuffle=Shuffle(run.recipe.search.seed), tokenizer=tokenizer),
                        scratch / "text",
                        run.skipped_tokens + steps.blocks * steps.length,
                        tokenizer,
                        reserved=reserved,
                        vocabulary=int(small.config.vocab_size),
                        source=source,
                        progress=run.reporter.advance,
                    )
            _train(run, stage, scratch, texts, tokenizer, student, steps)
    if parallel.is_main():
        shutil.rmtree(scratch, ignore_errors=True)
    return Recovered(stage, Checkpoint.open(stage.folder / "model"), read_json(stage.folder / RECORD))


def _train(
    run: Run, stage: StageFolder, scratch: Path, texts: Texts, tokenizer: Any, student: Callable[[], Any], steps: Steps
) -> None:
    """Train on the packed text, and save the model and the record."""
    from darwinlm.recovery.cache import cached_text
    from darwinlm.recovery.train import Training

    settings, looking_back, seed = run.recipe.recovery, run.recipe.text.looking_back, run.recipe.search.seed
    with parallel.agree():
        repeats = partial(with_repeats, share=looking_back, seed=seed, ordinary=ordinary_tokens(tokenizer))
        bos = added_bos(tokenizer)
        text: PackedText | CachedText = PackedText(
            scratch / "text", steps.length, steps.blocks, run.skipped_tokens, bos, repeats=repeats
        )
        dense = run.teacher.load(run.dtype, run.device) if settings.distillation else None
    if settings.teacher_cache is not None:
        text = cached_text(
            text,
            dense,
            Path(settings.teacher_cache).expanduser(),
            {"teacher": run.teacher.digest, "dtype": run.recipe.compute.dtype},
            batch_rows=steps.rows,
            say=run.reporter.say,
            progress=run.reporter.advance,
        )
    with parallel.agree():
        trained = Training(
            student,
            dense,
            text,
            texts["validation"].tokens,
            steps,
            settings,
            scratch / "training",
            {"key": stage.digest, "steps": steps.count},
            device=run.device,
            dtype=run.dtype,
            logs=stage.folder / "logs",
            say=run.reporter.say,
            progress=run.reporter.advance,
        ).train()
    parallel.in_main(lambda: save_model(trained.model, stage.folder / "model", tokenizer=tokenizer))
    parallel.in_main(write_json, stage.folder / RECORD, trained.record)


def _begin(scratch: Path, digest: str) -> None:
    """Mark the folder as of a training; that of another one is deleted. Raises ArtifactError if it has begun."""
    marker = scratch / "key.json"
    if marker.exists() and read_json(marker) != digest:
        begun = sorted((scratch / "training").glob("checkpoint-*"))
        if begun:
            raise ArtifactError(
                f"{begun[-1]} belongs to an unfinished recovery with other settings, text or weights: resume with "
                f"those, choose another output folder, or delete {scratch} to discard it"
            )
        shutil.rmtree(scratch)
    write_json(marker, digest)
