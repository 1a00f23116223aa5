"""Export of a model folder to a checked GGUF file."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from darwinlm.formats.gguf.engine import require_engine
from darwinlm.formats.gguf.engine_checks import ENGINE_ERROR, EngineCheck, LogitsCheck, OutputsCheck
from darwinlm.formats.gguf.file_writer import write_gguf
from darwinlm.formats.gguf.header import GgufHeader, file_type, read_header, rounding_error
from darwinlm.formats.gguf.process import quantise_file
from darwinlm.formats.gguf.rope import UnsupportedError
from darwinlm.formats.gguf.stock_layout import Layout, choose_layout
from darwinlm.formats.gguf.tensors import gguf_tensors
from darwinlm.formats.gguf.tokenizer_keys import (
    MODEL,
    TEMPLATE,
    TokenizerKeys,
    copy_tokenizer,
    read_tokenizer,
    rerank_template,
)
from darwinlm.formats.inputs import Inputs
from darwinlm.formats.logits_check import ExportReport, text_tokens
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.quantisation import LLAMA_CPP, QUANTISATIONS, WRITTEN
from darwinlm.model.surgery.reshape import Reshaper
from darwinlm.runtime.artifact import file_digest, write_json
from darwinlm.runtime.errors import ExportError, import_extra, storage_error

INTERMEDIATE = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def export_gguf(
    checkpoint: Checkpoint,
    out: Path,
    *,
    quantisation: str = "f16",
    tokenizer_from: Path | None = None,
    unchecked: bool = False,
    inputs: Inputs | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> ExportReport:
    """Write a model as a GGUF file for stock llama.cpp and check it, with a report next to it as `.export.json`.

    `out` appears by rename, after a successful check. See `WriteOptions` for the options.

    Raises:
        ExportError: No architecture supports the model, the quantisation doesn't fit, or the check fails.
        MissingExtraError: A required package isn't installed.
        StorageError: The disk is full.
    """
    quantisation = quantisation.lower()  # llama.cpp has its names in capitals
    if quantisation not in WRITTEN:
        raise ExportError(f"there is no quantisation '{quantisation}'; known are {', '.join(WRITTEN)}")
    import_extra("gguf", "gguf", "writing GGUF files")
    if QUANTISATIONS[quantisation].by == LLAMA_CPP:
        require_engine(LLAMA_CPP, f"quantising to {quantisation}")
    job = _job(checkpoint, out, quantisation, tokenizer_from, unchecked=unchecked, inputs=inputs)
    if not unchecked:
        require_engine(job.engine, "checking the file in llama.cpp (--unchecked leaves this out)")
    report = job.report
    temporary = out.with_name(f".{out.name}.partial")
    plain = _unrounded(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for file in (temporary, plain):
            file.unlink(missing_ok=True)
        say(f"writing {job.layout.architecture.name} as {quantisation}")
        _write(job, temporary, plain)
        say("checking")
        _check(job, temporary)
        report.bytes = temporary.stat().st_size
        report.files = {out.name: file_digest(temporary)}
        write_json(report_path(out), report.as_json())
        temporary.replace(out)
    except OSError as error:
        raise storage_error(out, error) from error
    finally:
        temporary.unlink(missing_ok=True)
        plain.unlink(missing_ok=True)
    return report


def check_gguf(checkpoint: Checkpoint, path: Path, inputs: Inputs | None = None) -> ExportReport:
    """Compare a GGUF file with the model that it was written from: tensors, tokenizer, and outputs in llama.cpp.

    `inputs` are those of a model that reads.

    Raises:
        ExportError: They differ, or the file is of no type that this package writes.
        CheckpointError: The file is damaged.
        MissingExtraError: A required package isn't installed.
        StorageError: The disk is full.
    """
    header = read_header(path)
    quantisation = file_type(header)
    if quantisation not in WRITTEN:
        raise ExportError(f"{path} is of the type {quantisation}, which darwinlm doesn't write; nothing is compared")
    job = _job(checkpoint, path, quantisation, path, inputs=inputs)
    require_engine(job.engine, "checking a file in llama.cpp")
    try:
        _check(job, path)
    except OSError as error:
        raise storage_error(path, error) from error
    finally:
        _unrounded(path).unlink(missing_ok=True)
    job.report.bytes = path.stat().st_size
    job.report.files = {path.name: file_digest(path)}
    return job.report


def _job(
    checkpoint: Checkpoint,
    path: Path,
    quantisation: str,
    tokenizer_from: Path | None,
    *,
    unchecked: bool = False,
    inputs: Inputs | None = None,
) -> _Job:
    """What is written to, or expected in, a file. Raises ExportError if llama.cpp doesn't support the model."""
    reshaper = Reshaper(checkpoint)
    try:
        layout = choose_layout(reshaper)
    except UnsupportedError as error:
        raise ExportError(
            f"no architecture of stock llama.cpp supports this {reshaper.family.key} model: {error}"
        ) from error
    vocabulary = int(checkpoint.config.vocab_size)
    tokenizer = (
        copy_tokenizer(tokenizer_from, vocabulary)
        if tokenizer_from is not None
        else read_tokenizer(checkpoint.folder, checkpoint.tokenizer(), vocabulary)
    )
    if layout.reading is not None and layout.reading.scores and inputs is not None and inputs.template is not None:
        tokenizer |= rerank_template(inputs.template)
    report = ExportReport("gguf", str(path), notes=[*layout.notes, *(inputs.remarks if inputs is not None else ())])
    if checkpoint.whole_config is not None:
        report.notes.append("the file holds the language model alone, without the parts around it")
    return _Job(reshaper, layout, tokenizer, tokenizer_from is not None, quantisation, report, unchecked, inputs)


def _unrounded(path: Path) -> Path:
    """Path of an unquantised file, next to the quantised one and checked before it."""
    return path.with_name(f".{path.name.removeprefix('.').removesuffix('.partial')}.plain.partial")


def report_path(file: Path) -> Path:
    """Path of the report of a GGUF file."""
    return file.with_name(f"{file.name}.export.json")


@dataclass(frozen=True)
class _Job:
    reshaper: Reshaper
    layout: Layout
    tokenizer: TokenizerKeys
    copied: bool
    quantisation: str
    report: ExportReport
    unchecked: bool = False
    inputs: Inputs | None = None

    @property
    def engine(self) -> str:
        """Name of the engine that runs the file."""
        return (LogitsCheck if self.layout.reading is None else OutputsCheck).engine


def _write(job: _Job, path: Path, plain: Path) -> None:
    if QUANTISATIONS[job.quantisation].by != LLAMA_CPP:
        write_gguf(path, job.reshaper, job.layout, job.tokenizer, job.quantisation)
        return
    intermediate = INTERMEDIATE.get(job.reshaper.checkpoint.dtype, "f32")
    write_gguf(plain, job.reshaper, job.layout, job.tokenizer, intermediate)
    quantise_file(plain, path, job.quantisation.upper(), torch.get_num_threads())
    plain.unlink()


def _check(job: _Job, path: Path) -> None:
    """Compare the file's tensors, then the outputs in llama.cpp of a file before quantisation and of the file."""
    reshaper, layout = job.reshaper, job.layout
    tokenizer, report = job.tokenizer, job.report
    checkpoint = reshaper.checkpoint
    file = read_header(path)
    report.details |= {
        "architecture": layout.architecture.name,
        "quantisation": job.quantisation,
        "tokenizer": " ".join(str(tokenizer[key]) for key in (MODEL, "tokenizer.ggml.pre") if key in tokenizer),
        "chat_template": TEMPLATE in tokenizer,
    }
    types = report.details["tensor_types"] = dict(_check_types(file, reshaper, layout))
    _note_fallbacks(types, job.quantisation, report)
    if job.unchecked:
        report.notes.append("not checked in llama.cpp")
        return
    check = _outputs_check(job) if layout.reading is not None else _logits_check(job)
    if job.quantisation not in ENGINE_ERROR:  # rounding would hide a mistake, so a plain file is checked first
        exact = "f32" if checkpoint.dtype == torch.float32 else "f16"
        unrounded = _unrounded(path)
        write_gguf(unrounded, reshaper, layout, tokenizer, exact)
        check(unrounded, exact)
        unrounded.unlink()
    check(path, job.quantisation)


def _logits_check(job: _Job) -> EngineCheck:
    """The check of a model that writes."""
    checkpoint, layout = job.reshaper.checkpoint, job.layout
    compared = checkpoint
    if layout.rope.rounded:
        config = copy.deepcopy(checkpoint.config)
        config.rope_parameters["truncate"] = True
        compared = replace(checkpoint, config=config)
        job.report.notes.append(
            "llama.cpp rounds the bounds of the rope scaling (yarn), here and in every GGUF file of this family: "
            "compared with a model of rounded bounds"
        )
    tokens = text_tokens(checkpoint)[: layout.context]
    return LogitsCheck(checkpoint, job.report, copied=job.copied, tokens=tokens, compared=compared)


def _outputs_check(job: _Job) -> EngineCheck:
    """The check of a model that reads."""
    assert job.inputs is not None
    assert job.layout.reading is not None
    reading, checkpoint = job.layout.reading, job.reshaper.checkpoint
    inputs = job.inputs.within(job.layout.context)
    return OutputsCheck(checkpoint, job.report, copied=job.copied, inputs=inputs, reading=reading)


def _check_types(file: GgufHeader, reshaper: Reshaper, layout: Layout) -> Counter[str]:
    types: Counter[str] = Counter()
    missing = set(file.tensors)
    for name, meant in gguf_tensors(reshaper, layout):
        if name not in missing or _trimmed(file.tensors[name]) != _trimmed(tuple(meant.shape)):
            raise ExportError(f"the export fails its check: {name} isn't in the file as expected; nothing was written")
        kind = file.types[name]
        types[kind] += 1
        error = float((file.numbers(name) - meant).norm() / meant.norm().clamp_min(1e-12))
        if not error <= rounding_error(kind):
            raise ExportError(
                f"the export fails its check: {name} differs by {error:.2g} from the expected tensor, more than "
                f"rounding to {kind} explains; nothing was written"
            )
        missing.discard(name)
    if missing:
        raise ExportError(f"the export fails its check: the file holds {sorted(missing)}, which weren't expected")
    return types


def _trimmed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without leading ones, which llama.cpp's quantiser leaves out."""
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


def _note_fallbacks(types: Mapping[str, int], quantisation: str, report: ExportReport) -> None:
    if QUANTISATIONS[quantisation].by != LLAMA_CPP:
        return
    fallbacks = {kind: count for kind, count in types.items() if kind != "F32" and not kind.endswith("_K")}
    if fallbacks:
        listed = ", ".join(f"{count} of {kind}" for kind, count in sorted(fallbacks.items()))
        report.notes.append(
            f"K-quants need rows that are multiples of 256: llama.cpp wrote {listed} instead for the tensors whose "
            "rows aren't"
        )
    if "F16" in fallbacks or "BF16" in fallbacks:
        raise ExportError(f"{quantisation} doesn't fit: llama.cpp left some matrices in 16 bits; use f16 or q8_0")
