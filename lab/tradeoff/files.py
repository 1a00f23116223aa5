"""The GGUF files of one model in a tradeoff, and their losses: kept, so that an interrupted command goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.formats.gguf.checked_file import export_gguf
from darwinlm.formats.gguf.engine import ENGINES
from darwinlm.formats.gguf.in_llama_cpp import open_in_llama_cpp
from darwinlm.formats.gguf.process import quantise_file
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.quantisation import LLAMA_CPP, QUANTISATIONS
from darwinlm.runtime.artifact import StageFolder, digest_of, file_digest, read_as, write_json
from darwinlm.runtime.console import Reporter
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.evaluate.step import Evaluate
from darwinlm.steps.export.step import Export
from lab.tradeoff.table import FileLoss

UNQUANTISED = "f16"
"""Type of the file that the others are quantised from, if none of its kind is asked for."""
LOSSES = "losses.json"


@dataclass(frozen=True)
class FileMaker:
    """Makes and measures the files of models, a folder in `out` for each model.

    Attributes:
        original: The model that KL is measured to.
        text: Tokens [n, t] of the held-out text.
        quantisations: Types of whole files.
        tokenizer_from: GGUF file that the original came in, or None.
    """

    out: Path
    original: Checkpoint
    text: Tensor
    quantisations: Sequence[str]
    tokenizer_from: Path | None
    threads: int
    reporter: Reporter

    def measure(self, checkpoint: Checkpoint, model: str) -> dict[Path, FileLoss]:
        """The files of one model and their losses. An earlier result for the same models, text and types is reused.

        Raises:
            EngineError, ExportError: llama.cpp can't run or quantise the model.
            ArtifactError: A file of the earlier result was changed.
        """
        folder = self.out / model
        stage = StageFolder(folder, self._key(checkpoint))
        if stage.is_complete():
            self.reporter.say(f"{model}: files and their losses: already done, reused")
        else:
            if why := stage.why_redone():
                self.reporter.say(f"{model}: files are made again: {why}")
            stage.begin()
            files = self._quantised(checkpoint, model, folder)
            write_json(folder / LOSSES, [loss.as_json() for loss in self._losses(model, files)])
            stage.finish()
        return {folder / loss.file: loss for loss in read_as(folder / LOSSES, list[FileLoss])}

    def _key(self, checkpoint: Checkpoint) -> dict[str, Any]:
        return {
            "code": {stage.name: stage.version for stage in (Export, Evaluate)},
            "engine": version(ENGINES[LLAMA_CPP].package),
            "models": [self.original.digest, checkpoint.digest],
            "text": digest_of(self.text.tolist()),
            "types": list(self.quantisations),
            "tokenizer_from": self.tokenizer_from and file_digest(self.tokenizer_from),
        }

    def _quantised(self, checkpoint: Checkpoint, model: str, folder: Path) -> dict[str, Path]:
        """One file is written and checked by us, and llama.cpp makes the others from it; missing ones only."""
        base = next((name for name in self.quantisations if QUANTISATIONS[name].columns == 1), UNQUANTISED)
        files = {name: folder / f"{model}-{name}.gguf" for name in self.quantisations}
        missing = [name for name, path in files.items() if not path.is_file()]
        if missing:
            self.reporter.say(f"{model}: writing {', '.join(missing)}")
            with _work(folder) as work:
                whole = work / "whole.gguf"
                export_gguf(checkpoint, whole, quantisation=base, tokenizer_from=self.tokenizer_from)
                for name in sorted(missing, key=lambda name: name == base):  # the file of that type comes last
                    made = whole
                    if name != base:
                        made = work / files[name].name
                        quantise_file(whole, made, name.upper(), self.threads)
                    made.replace(files[name])
        return files

    def _losses(self, model: str, files: Mapping[str, Path]) -> Iterator[FileLoss]:
        """KL and perplexity. All files are measured together, so the original runs once."""
        original = self.original.load(torch.float32)
        opened = {path.name: open_in_llama_cpp(path)[0] for path in files.values()}
        with self.reporter.stage(f"loss of {model}"):
            found = measure_quality(
                original, opened, self.text, batch_tokens=self.text.shape[1], progress=self.reporter.advance
            )
        for quantisation, path in files.items():
            opened[path.name].close()
            quality = found[path.name]
            yield FileLoss(
                model=model,
                quantisation=quantisation,
                file=path.name,
                bytes=path.stat().st_size,
                kl=quality.kl,
                perplexity=quality.perplexity,
            )


@contextmanager
def _work(folder: Path) -> Iterator[Path]:
    """A folder for unfinished files, on the same disk."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as work:
        yield Path(work)
