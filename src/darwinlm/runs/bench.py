"""Speed of a model in an engine, optionally alternating with another model so that drift affects both."""

from __future__ import annotations

import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from darwinlm.engines.process import EngineProcess, Timing, require_engine
from darwinlm.engines.resolve import resolve_finished
from darwinlm.export.gguf import export_gguf
from darwinlm.families.config import read_config
from darwinlm.gguf.header import read_header
from darwinlm.recipe.quantisation import WRITTEN
from darwinlm.runtime.compute import DTYPES
from darwinlm.runtime.errors import EngineError


@dataclass(frozen=True)
class Spread:
    """Repetitions of one figure."""

    median: float
    low: float
    high: float
    runs: tuple[float, ...]


def _spread(runs: Sequence[float]) -> Spread:
    return Spread(statistics.median(runs), min(runs), max(runs), tuple(runs))


@dataclass(frozen=True)
class EngineSpeed:
    """One model in one engine: bytes of its weights on disk and of the process's peak memory with libraries.

    Rates of `prompt` and `decode` (after the first token) are in tokens per second, `first_token` is in milliseconds.
    """

    name: str
    file_bytes: int
    peak_memory: int
    prompt: Spread
    first_token: Spread
    decode: Spread


@dataclass(frozen=True)
class SpeedReport:
    """A whole measurement; `engine` has its version.

    `ratios` are of the first model to the second for prompt, decode and first_token (inverted, since it is a time),
    from pairs of consecutive runs.
    """

    engine: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    models: tuple[EngineSpeed, ...]
    ratios: dict[str, Spread]


def run_bench(
    model: str,
    against: str | None = None,
    *,
    engine: str | None = None,
    prompt_tokens: int = 512,
    new_tokens: int = 64,
    runs: int = 5,
    threads: int = 1,
    dtype: str | None = None,
    quantisation: str | None = None,
    allow_remote_code: bool = False,
    say: Callable[[str], None] = lambda message: None,
) -> SpeedReport:
    """Measure one model, or two alternately: a warm-up, then `runs` rounds over both.

    A model is a folder, finished run, hub id or GGUF file. Without an `engine`, a GGUF file runs in llama.cpp, anything
    else in PyTorch. llama.cpp converts models to `quantisation` first; by default it leaves a GGUF file unchanged and
    converts folders to f16. Raises MissingExtraError, EngineError, ModelError, ExportError.
    """
    engine = engine or ("llama.cpp" if model.endswith(".gguf") else "torch")
    require_engine(engine, f"measuring speed in {engine}")
    _check_options(engine, dtype, quantisation)
    names = [model] if against is None else [model, against]
    options = {"threads": threads, "context": prompt_tokens + new_tokens + 8, "dtype": dtype, "beside": len(names)}
    with tempfile.TemporaryDirectory(prefix="darwinlm-bench-") as work, ExitStack() as stack:
        paths = []
        for number, name in enumerate(names):
            say(f"preparing {name}")
            room = Path(work, str(number))
            paths.append(_prepare(name, engine, quantisation, room, threads, allow=allow_remote_code))
        # An artificial prompt, since speed doesn't depend on the tokens.
        vocabulary, generator = min(_vocabulary(path) for path in paths), torch.Generator().manual_seed(0)
        tokens = torch.randint(vocabulary, (prompt_tokens,), generator=generator).tolist()
        say("loading")
        engines = [
            stack.enter_context(EngineProcess(engine, path, allow_remote_code=allow_remote_code, **options))
            for path in paths
        ]
        rounds: list[list[Timing]] = []
        for number in range(runs + 1):
            say(f"round {number} of {runs}" if number else "warming up")
            rounds.append([process.time(tokens, new_tokens) for process in engines])
        facts = [process.facts() for process in engines]
        measured = []
        for i, (name, path) in enumerate(zip(names, paths, strict=True)):
            timings = [row[i] for row in rounds[1:]]
            weights = [path] if path.is_file() else list(path.glob("*.safetensors"))
            measured.append(
                EngineSpeed(
                    name=name,
                    file_bytes=sum(file.stat().st_size for file in weights),
                    peak_memory=int(facts[i]["peak_memory"]),
                    prompt=_spread([prompt_tokens / timing.first for timing in timings]),
                    first_token=_spread([1000 * timing.first for timing in timings]),
                    decode=_spread([new_tokens / timing.decode for timing in timings]),
                )
            )
    return SpeedReport(
        engine=f"{engine} ({facts[0]['version']})",
        settings={
            "prompt_tokens": prompt_tokens,
            "new_tokens": new_tokens,
            "runs": runs,
            "threads": threads,
            "dtype": dtype,
            "quantisation": quantisation or ("f16" if engine == "llama.cpp" and not model.endswith(".gguf") else None),
        },
        machine={"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        models=tuple(measured),
        ratios=_ratios(measured) if against is not None else {},
    )


def _check_options(engine: str, dtype: str | None, quantisation: str | None) -> None:
    if quantisation is not None and engine != "llama.cpp":
        raise EngineError(f"--quant {quantisation}: only the engine llama.cpp takes it; {engine} takes --dtype")
    if quantisation is not None and quantisation.lower() not in WRITTEN:
        raise EngineError(f"there is no quantisation '{quantisation}'; known are {', '.join(WRITTEN)}")
    if dtype is not None and engine == "llama.cpp":
        raise EngineError(f"--dtype {dtype}: the engine llama.cpp takes --quant")
    if dtype is not None and dtype not in DTYPES:
        raise EngineError(f"--dtype {dtype}: the types are {', '.join(DTYPES)}")


def _prepare(name: str, engine: str, quantisation: str | None, work: Path, threads: int, *, allow: bool) -> Path:
    """Path that the engine can load: a folder, or a GGUF file."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and path.is_file() and engine == "llama.cpp" and quantisation is None:
        return path
    checkpoint = resolve_finished(name, work / "source", allow_remote_code=allow)
    if engine != "llama.cpp":
        return checkpoint.folder
    copied = path if path.suffix == ".gguf" else None
    file = work / "model.gguf"
    export_gguf(checkpoint, file, quantisation=quantisation or "f16", tokenizer_from=copied, threads=threads)
    return file


def _vocabulary(path: Path) -> int:
    if path.is_dir():
        return int(read_config(path / "config.json")["vocab_size"])
    return read_header(path).tensors["token_embd.weight"][0]


def _ratios(measured: Sequence[EngineSpeed]) -> dict[str, Spread]:
    left, right = measured
    pairs = {"prompt": (left.prompt, right.prompt), "decode": (left.decode, right.decode)}
    pairs["first_token"] = right.first_token, left.first_token
    return {name: _spread([a / b for a, b in zip(x.runs, y.runs, strict=True)]) for name, (x, y) in pairs.items()}
