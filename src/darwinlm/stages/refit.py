"""Refit: output projections corrected toward the dense residual stream."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from darwinlm.artifact import StageFolder, read_json, read_tensors, write_json
from darwinlm.calibration.stream import BlockStream
from darwinlm.data import TokenBlocks
from darwinlm.run import Run
from darwinlm.stages.database import stream_of
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import Texts
from darwinlm.surgery.refit import Streams, refit


@dataclass(frozen=True)
class Refitted:
    """What the refit changed.

    Attributes:
        stage: holds it.
        choices: what was decided for each module.
    """

    stage: StageFolder
    choices: list[dict[str, Any]]

    def weights(self, checkpoint: Any) -> dict[str, Tensor]:
        """The corrected output projections by tensor name."""
        found: dict[str, Tensor] = {}
        for path in sorted(self.stage.folder.glob("block_*.safetensors")):
            block = int(path.stem.removeprefix("block_"))
            for kind, weight in read_tensors(path).items():
                part = checkpoint.family.attention if kind == "attention" else checkpoint.family.mlp
                found[f"{checkpoint.block_prefix(block)}{part.name}.{part.output}.weight"] = weight
        return found


def refit_stage(run: Run, texts: Texts, stitched: Stitched) -> Refitted | None:
    """Refit the stitched model; None when the recipe leaves it out.

    Raises:
        NumericsError: values aren't finite.
        StorageError: the disk is full.
    """
    settings = run.recipe.refit
    if not settings.enabled:
        return None
    key = {
        "stitched": stitched.stage.digest,
        "calibration": texts["calibration"].digest,
        "validation": texts["validation"].digest,
        "refit": settings.model_dump(exclude={"input_memory"}),
        "arithmetic": run.arithmetic,
    }

    def streams(text: TokenBlocks, n_tokens: int | None) -> Streams:
        dense = stream_of(run, text, n_tokens)
        rows = sum(len(hidden) for hidden in dense.hidden)
        small = BlockStream(
            stitched.checkpoint,
            text.tokens[:rows],
            dtype=run.dtype,
            device=run.device,
            batch_tokens=run.batch_tokens,
        )
        return Streams(dense, small)

    with run.stage("refit", key, "refit") as (stage, work):
        if work:
            choices = refit(
                stage,
                streams(texts["calibration"], settings.tokens),
                streams(texts["validation"], None),
                settings.ridges,
                memory=int(settings.input_memory * 2**30),
                progress=run.reporter.advance,
            )
            write_json(stage.folder / "choices.json", [asdict(choice) for choice in choices])
        made = read_json(stage.folder / "choices.json")
    return Refitted(stage, made)
