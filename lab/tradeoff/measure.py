"""Prune, quantise, or both: `python -m lab tradeoff` measures GGUF files of a model and of smaller ones in llama.cpp.

The original is quantised first, so that a type, a text or an engine that fails ends the command before any pruning.
The runs end with their models: every figure of the table comes from a file.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from darwinlm.evaluation.evaluation_text import pack
from darwinlm.formats.gguf.engine import Generated, require_engine
from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.formats.resolve import resolve_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.quantisation import LLAMA_CPP, WRITTEN
from darwinlm.recipe import Recipe
from darwinlm.runs.opening import check_inputs
from darwinlm.runs.sweep import member_name, prune_sweep
from darwinlm.runtime import tables
from darwinlm.runtime.artifact import write_json, write_text
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ExportError
from darwinlm.runtime.output import claim, mark
from darwinlm.runtime.places import check_output
from darwinlm.steps.export.step import Export
from lab.tradeoff.files import FileMaker
from lab.tradeoff.table import FileLoss, FileRow, Rate, Tradeoff, draw_by_size, draw_by_speed, tradeoff_table

FILES, SIZES = "files", "sizes"
WARM_UP = 32
"""Tokens of a prompt before each timed one, which brings the file into memory."""


@dataclass(frozen=True)
class Timed:
    """How speed is measured: tokens of the prompt and after it, rounds over all files, and threads."""

    prompt_tokens: int = 256
    new_tokens: int = 32
    rounds: int = 5
    threads: int = 1


def measure_tradeoff(
    recipes: Sequence[Recipe],
    quantisations: Sequence[str],
    held_out: str,
    out: Path,
    *,
    tokens: int = 8192,
    timed: Timed = Timed(),
    reporter: Reporter | None = None,
) -> Tradeoff:
    """Quantise a model and its pruned sizes, and measure loss, size and speed of every file.

    `recipes` are those of `prune_sweep`, `held_out` is the source of the text for the loss, of which `tokens` are read.
    `out` gets the pruned models (`sizes/`), the files, a table with two pictures, and tradeoff.json.

    Raises:
        ExportError, EngineError, MissingExtraError: A type isn't known, or llama.cpp can't run or quantise the model.
        DataError: The text is missing or too short.
        DarwinLMError: See `prune_sweep`.
    """
    reporter, first = reporter or Reporter(), recipes[0]
    _check(quantisations)
    check_output(out, (), (held_out,))
    check_inputs(out, first)
    lock = claim(out)
    mark(out)
    dense = resolve_model(str(first.model), out / "dense")
    sequence_length = first.text.sequence_length
    text = pack(held_out, dense.tokenizer(), sequence_length=sequence_length, max_tokens=tokens).tokens
    given = Path(str(first.model)).expanduser()
    like = given if given.suffix == ".gguf" else None
    maker = FileMaker(out / FILES, dense, text, quantisations, like, timed.threads, reporter)
    losses = maker.measure(dense, "dense")
    prune_sweep(recipes, out / SIZES, until=Export.name, reporter=reporter)
    for name in (member_name(recipe.budget) for recipe in recipes):
        losses |= maker.measure(Checkpoint.open(out / SIZES / name / "model"), name)
    timings, engine = _measure_speed(list(losses), text, timed, reporter)
    rows = [_row(loss, path.relative_to(out), timings[path], timed) for path, loss in losses.items()]
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
    draw_by_size(tradeoff, out / "size.svg")
    draw_by_speed(tradeoff, out / "speed.svg")
    table = tables.markdown(tradeoff_table(tradeoff))
    write_text(out / "tradeoff.md", f"{table}\n![KL against size](size.svg)\n\n![KL against speed](speed.svg)\n")
    if lock is not None:
        lock.release()
    return tradeoff


def _check(quantisations: Sequence[str]) -> None:
    known = {*WRITTEN} - {"q4_0"}
    unknown = [name for name in quantisations if name not in known]
    if unknown:
        raise ExportError(f"--quant {unknown[0]}: llama.cpp quantises to {', '.join(sorted(known))}")
    if len(set(quantisations)) < len(quantisations) or not quantisations:
        raise ExportError(f"--quant {','.join(quantisations)}: name each type once")
    require_engine(LLAMA_CPP, "measuring GGUF files")


def _measure_speed(
    files: Sequence[Path], text: Tensor, timed: Timed, reporter: Reporter
) -> tuple[dict[Path, list[Generated]], str]:
    """Time all files in turn, so that a change of the machine's load reaches all of them; and the engine's version.

    One file is loaded at a time.
    """
    prompt = text.flatten()[: timed.prompt_tokens].tolist()
    options = {"threads": timed.threads, "context": len(prompt) + timed.new_tokens + 8}
    version, timings = "", {file: list[Generated]() for file in files}
    with reporter.stage("speed"):
        for number in range(timed.rounds):
            for place, file in enumerate(files):
                with EngineProcess(LLAMA_CPP, file, **options) as process:
                    process.generate(prompt[:WARM_UP], 2)
                    timings[file].append(process.generate(prompt, timed.new_tokens + 1))
                    version = version or f"{LLAMA_CPP} ({process.version()})"
                reporter.advance(number * len(files) + place + 1, timed.rounds * len(files))
    return timings, version


def _row(loss: FileLoss, path: Path, timings: Sequence[Generated], timed: Timed) -> FileRow:
    return FileRow(
        **{**loss.as_json(), "file": path.as_posix()},
        prompt=_rate([timed.prompt_tokens / first for _, first, _ in timings]),
        decode=_rate([timed.new_tokens / decode for *_, decode in timings]),
    )


def _rate(runs: Sequence[float]) -> Rate:
    return Rate(median=statistics.median(runs), low=min(runs), high=max(runs))
