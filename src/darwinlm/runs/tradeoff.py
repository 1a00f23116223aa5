"""Prune, quantise, or both: `darwinlm tradeoff` measures GGUF files of a model and of smaller ones in llama.cpp.

The original is quantised first, so that a type, a text or an engine that fails ends the command before any pruning.
The runs end with their models: every figure of the table comes from a file.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.engines.process import EngineProcess, Timing, quantise_file, require_engine
from darwinlm.evaluation.quality import Quality, measure_quality
from darwinlm.evaluation.text import pack
from darwinlm.execution.output import claim, mark
from darwinlm.export.gguf import export_gguf
from darwinlm.export.run import losses_on
from darwinlm.export.tensor_types import FileSize
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.gguf.write import BY_LIBRARY, PLAIN, UNBLOCKED
from darwinlm.models.in_llama_cpp import open_in_llama_cpp
from darwinlm.models.resolve import resolve_model
from darwinlm.recipe import Recipe
from darwinlm.recipe.quantisation import MIXED
from darwinlm.report.tradeoff import HEADINGS, FileRow, Rate, Tradeoff, cells, remarks, tradeoff_page
from darwinlm.runs.sweep import member_name, prune_sweep
from darwinlm.runtime import amounts, tables
from darwinlm.runtime.artifact import write_json, write_text
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import BudgetError, ExportError, RecipeError
from darwinlm.runtime.places import check_output
from darwinlm.stages.export import EXPORT
from darwinlm.stages.text_source import SELF, named_parts

ENGINE = "llama.cpp"
FILES, SIZES, PAGE = "files", "sizes", "index.html"
UNQUANTISED = "f16"
"""Type of the file that the others are quantised from, if none of its kind is asked for."""
WARM_UP = 32
"""Tokens of a prompt before each timed one, which brings the file into memory."""


@dataclass(frozen=True)
class Timed:
    """How speed is measured: tokens of the prompt and after it, rounds over all files, and threads."""

    prompt_tokens: int = 256
    new_tokens: int = 32
    rounds: int = 5
    threads: int = 1


@dataclass
class _File:
    model: str
    quantisation: str
    path: Path
    quality: Quality | None = None
    timings: list[Timing] = field(default_factory=list)


def measure_tradeoff(
    recipes: Sequence[Recipe],
    quantisations: Sequence[str],
    held_out: str,
    out: Path,
    *,
    sizes: Sequence[int] = (),
    tokens: int = 8192,
    timed: Timed = Timed(),
    reporter: Reporter | None = None,
) -> Tradeoff:
    """Quantise a model and its pruned sizes, and measure loss, size and speed of every file.

    `recipes` are those of `prune_sweep`, `held_out` is the source of the text for the loss, of which `tokens` are read.
    Each model also gets a file of every one of the `sizes` in bytes that its tensors' own types can reach.
    `out` gets the pruned models (`sizes/`), the files, the page, and tradeoff.json.

    Raises:
        ExportError, EngineError, MissingExtraError: A type isn't known, or llama.cpp can't run or quantise the model.
        DataError: The text is missing or too short.
        DarwinLMError: See `prune_sweep`.
    """
    reporter, first = reporter or Reporter(), recipes[0]
    _check(quantisations)
    if len({amounts.size(size) for size in sizes}) < len(sizes):
        raise ExportError("--sizes: name each size once")
    if sizes and SELF in named_parts(str(first.text.source)):
        raise RecipeError("--sizes: types of tensors are chosen on a text: name it with --text")
    check_output(out, "--out", (), (held_out,))
    lock = claim(out, first, reporter)
    mark(out)
    dense = resolve_model(str(first.model), out / "dense", allow_remote_code=first.allow_remote_code)
    sequence_length = first.text.sequence_length
    text = pack(held_out, dense.tokenizer(), sequence_length=sequence_length, max_tokens=tokens)
    given = Path(str(first.model)).expanduser()
    like = given if given.suffix == ".gguf" else None
    write = partial(_quantised, quantisations, sizes, str(first.text.source), out, timed.threads, reporter, like)
    files = write(dense, "dense")
    prune_sweep(recipes, out / SIZES, until=EXPORT.name, reporter=reporter)
    for name in (member_name(recipe.budget) for recipe in recipes):
        files += write(Checkpoint.open(out / SIZES / name / "model"), name)
    _measure_loss(dense, files, text, reporter)
    engine = _measure_speed(files, text, timed, reporter)
    rows = [_row(each, out, timed) for each in files]
    tradeoff = Tradeoff(
        model=str(first.model),
        calibration=first.text.source,
        text=held_out,
        tokens=text.numel(),
        seed=first.search.seed,
        engine=engine,
        settings=asdict(timed),
        rows=tuple(rows),
    )
    write_json(out / "tradeoff.json", tradeoff.as_json())
    write_text(out / "tradeoff.md", tables.markdown(HEADINGS, cells(tradeoff), remarks(tradeoff)))
    write_text(out / PAGE, tradeoff_page(tradeoff))
    if lock is not None:
        lock.release()
    return tradeoff


def _check(quantisations: Sequence[str]) -> None:
    known = (*UNBLOCKED, "q8_0", *BY_LIBRARY)
    unknown = [name for name in quantisations if name not in known]
    if unknown:
        raise ExportError(f"--quant {unknown[0]}: llama.cpp quantises to {', '.join(sorted(known))}")
    if len(set(quantisations)) < len(quantisations) or not quantisations:
        raise ExportError(f"--quant {','.join(quantisations)}: name each type once")
    require_engine(ENGINE, "measuring GGUF files")


def _quantised(
    quantisations: Sequence[str],
    sizes: Sequence[int],
    source: str,
    out: Path,
    threads: int,
    reporter: Reporter,
    tokenizer_from: Path | None,
    checkpoint: Checkpoint,
    model: str,
) -> list[_File]:
    """The files of one model: one that is written and checked by us, and those that llama.cpp makes from it."""
    folder = out / FILES
    folder.mkdir(parents=True, exist_ok=True)
    base = next((name for name in quantisations if name in UNBLOCKED), UNQUANTISED)
    files = [_File(model, name, folder / f"{model}-{name}.gguf") for name in quantisations]
    reporter.say(f"{model}: writing {', '.join(quantisations)}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as work:
        whole = Path(work) / "whole.gguf"
        export_gguf(checkpoint, whole, quantisation=base, tokenizer_from=tokenizer_from, threads=threads)
        for file in sorted(files, key=lambda file: file.quantisation == base):  # the file of that type comes last
            made = whole
            if file.quantisation != base:
                made = Path(work) / file.path.name
                quantise_file(whole, made, {**PLAIN, **BY_LIBRARY}[file.quantisation], threads)
            made.replace(file.path)
    losses = cache(partial(losses_on, checkpoint, source, folder, threads))
    for size in sizes:
        words = amounts.size(size)
        file = _File(model, MIXED, folder / f"{model}-{words.replace(' ', '')}.gguf")
        reporter.say(f"{model}: a type for each tensor within {words}")
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as work:
            made, bound = Path(work) / file.path.name, FileSize(size, losses)
            try:
                export_gguf(checkpoint, made, size=bound, tokenizer_from=tokenizer_from, threads=threads)
            except BudgetError as error:
                reporter.say(f"{model}: left out: {error}")
                continue
            made.replace(file.path)
            files.append(file)
    return files


def _measure_loss(dense: Checkpoint, files: Sequence[_File], text: Tensor, reporter: Reporter) -> None:
    """KL and perplexity; the files of one model are measured together, so the original runs once for each model."""
    original = dense.load(torch.float32)
    for model in dict.fromkeys(file.model for file in files):
        own = [file for file in files if file.model == model]
        opened = {file.path.name: open_in_llama_cpp(file.path)[0] for file in own}
        with reporter.stage(f"loss of {model}"):
            found = measure_quality(original, opened, text, batch_tokens=text.shape[1], progress=reporter.advance)
        for file in own:
            file.quality = found[file.path.name]
            opened[file.path.name].close()


def _measure_speed(files: Sequence[_File], text: Tensor, timed: Timed, reporter: Reporter) -> str:
    """Time all files in turn, so that a change of the machine's load reaches all of them; returns the engine's version.

    One file is loaded at a time.
    """
    prompt = text.flatten()[: timed.prompt_tokens].tolist()
    options = {"threads": timed.threads, "context": len(prompt) + timed.new_tokens + 8}
    version = ""
    with reporter.stage("speed"):
        for number in range(timed.rounds):
            for place, file in enumerate(files):
                with EngineProcess(ENGINE, file.path, **options) as process:
                    process.time(prompt[:WARM_UP], 1)
                    file.timings.append(process.time(prompt, timed.new_tokens))
                    version = version or f"{ENGINE} ({process.facts()['version']})"
                reporter.advance(number * len(files) + place + 1, timed.rounds * len(files))
    return version


def _row(file: _File, out: Path, timed: Timed) -> FileRow:
    assert file.quality is not None
    return FileRow(
        model=file.model,
        quantisation=file.quantisation,
        file=str(file.path.relative_to(out)),
        bytes=file.path.stat().st_size,
        kl=file.quality.kl,
        perplexity=file.quality.perplexity,
        prompt=_rate([timed.prompt_tokens / timing.first for timing in file.timings]),
        decode=_rate([timed.new_tokens / timing.decode for timing in file.timings]),
    )


def _rate(runs: Sequence[float]) -> Rate:
    return Rate(median=statistics.median(runs), low=min(runs), high=max(runs))
