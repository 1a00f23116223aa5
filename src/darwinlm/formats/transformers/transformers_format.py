"""Folders of transformers behind the four verbs of formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from darwinlm.formats.format import DEFAULT, Format, Say, WriteOptions, silent
from darwinlm.formats.inputs import Inputs
from darwinlm.formats.logits_check import REPORT, ExportReport, text_tokens
from darwinlm.formats.transformers.saved import check_saved, save_model, saved_bytes, saved_digests, unchecked
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.layer_sizes import BlockSizes
from darwinlm.runtime.artifact import write_json


class Transformers(Format):
    """A folder with config.json, safetensors and, if layers differ, the modelling file."""

    name: ClassVar[str] = "transformers"
    title: ClassVar[str] = "a model"
    folder: ClassVar[bool] = True

    def holds(self, path: Path) -> bool:
        """Whether a path is a folder."""
        return path.is_dir()

    def wrote(self, path: Path) -> bool:
        """Whether a folder has a config.json."""
        return (path / "config.json").is_file()

    def describe(self, path: Path, source: str) -> Checkpoint:
        """A model's configuration."""
        return Checkpoint.describe(path, source)

    def read(self, path: Path, source: str, work: Path, say: Say = silent) -> Checkpoint:
        """The model as it lies in its folder; nothing is converted."""
        del work, say
        return Checkpoint.open(path, source)

    def write(
        self, checkpoint: Checkpoint, out: Path, options: WriteOptions = DEFAULT, say: Say = silent
    ) -> ExportReport:
        """Save a model in the type of its weights, with a report inside."""
        return write_folder(checkpoint, out, ExportReport(self.name, str(out)), check=not options.unchecked, say=say)

    def refusal(self, checkpoint: Checkpoint, sizes: Sequence[BlockSizes] | None = None) -> str | None:
        """None: any model that can be read or cut can be saved."""
        del checkpoint, sizes
        return None

    def predict(self, checkpoint: Checkpoint) -> dict[str, int]:
        """Bytes of the weights in their own type; some stay in float32, and tied ones are saved once."""
        name = str(checkpoint.dtype).removeprefix("torch.")
        parameters = checkpoint.outline.named_parameters()
        weights = sum(checkpoint.cast(name, tensor, checkpoint.dtype).nbytes for name, tensor in parameters)
        return {name: weights + checkpoint.buffer_bytes}

    def check(self, checkpoint: Checkpoint, path: Path, inputs: Inputs | None = None) -> ExportReport:
        """Load a folder as transformers does and compare its weights and logits with the model's."""
        check_saved(checkpoint.load(checkpoint.dtype), path, text_tokens(checkpoint)[None])
        files = {name: digest for name, digest in saved_digests(path).items() if name != REPORT}
        return ExportReport(self.name, str(path), saved_bytes(path), files)


def write_folder(
    checkpoint: Checkpoint, out: Path, report: ExportReport, *, check: bool = True, say: Say = silent
) -> ExportReport:
    """Save a model with a report inside. Raises as `Format.write`."""
    model = checkpoint.load(checkpoint.dtype)
    with unchecked(out) as temporary:
        save_model(model, temporary, tokenizer=checkpoint.tokenizer())
        if check:
            say("checking")
            check_saved(model, temporary, text_tokens(checkpoint)[None])
        else:
            report.notes.append("not checked in transformers")
        report.bytes, report.files = saved_bytes(temporary), saved_digests(temporary)
        write_json(temporary / REPORT, report.as_json())
    return report


TRANSFORMERS = Transformers()
