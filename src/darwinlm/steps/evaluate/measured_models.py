"""Models measured on the same held-out text: the dense one, the uniform one, and those of the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of
from darwinlm.runtime.context import Context
from darwinlm.runtime.step import Task
from darwinlm.steps.evaluate.looking_back import all_copying, longest_sequence, measure_copying, number_of_lists
from darwinlm.steps.evaluate.metric import ModelSize, size_metrics, speed_metrics
from darwinlm.steps.evaluate.model_figures import DENSE, STITCHED, UNIFORM, LookingBackFigures, Measured, ModelFigures
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.evaluate.speed import continue_greedily, measure_speed, prompts_for
from darwinlm.steps.own_text.script import chat_parts
from darwinlm.steps.source.whole_model import load_whole, why_not_whole
from darwinlm.steps.stitch.stitch import stitched_blocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from darwinlm.model.units.space import Allocation
    from darwinlm.steps.database.step import Modules
    from darwinlm.steps.results import Corrected
    from darwinlm.steps.search.step import SearchResult
    from darwinlm.steps.stitch.step import Stitched


class MeasuredModel(Protocol):
    """A model to measure."""

    @property
    def identity(self) -> object:
        """What identifies it: plain values."""

    def read(self, tokens: Tensor) -> StreamedDecoder:
        """A decoder that reads the given tokens block by block; processes share the blocks."""


@dataclass(frozen=True)
class StoredModel:
    """A model in a folder."""

    context: Context
    checkpoint: Checkpoint

    @property
    def identity(self) -> str:
        """Digest of its weights and configuration."""
        return self.checkpoint.digest

    def read(self, tokens: Tensor) -> StreamedDecoder:
        """A decoder of its weights."""
        context = self.context
        return StreamedDecoder(
            self.checkpoint, tokens, dtype=context.dtype, device=context.device, owner=parallel.owner
        )


@dataclass(frozen=True)
class UniformModel:
    """The best uniform model at the same budget, cut from the database as it is read."""

    context: Context
    database: Modules
    allocation: Allocation

    @property
    def identity(self) -> tuple[str, Allocation]:
        """The database and the allocation."""
        return self.database.digest, self.allocation

    def read(self, tokens: Tensor) -> StreamedDecoder:
        """A decoder whose blocks are cut when they are needed."""
        checkpoint, weights = stitched_blocks(self.database.reader, self.allocation)

        def of_block(block: int) -> dict[str, Tensor]:
            cut = weights(block)
            self.database.reader.release()
            return cut

        context = self.context
        return StreamedDecoder(
            checkpoint,
            tokens,
            dtype=context.dtype,
            device=context.device,
            weights=of_block,
            owner=parallel.owner,
        )


@dataclass(frozen=True)
class Models:
    """The models to measure by name, the dense one first and the saved one last; these two are stored."""

    models: Mapping[str, MeasuredModel]

    @property
    def digest(self) -> str:
        """What identifies all of them."""
        return digest_of({name: model.identity for name, model in self.models.items()})

    @property
    def whole(self) -> dict[str, Checkpoint]:
        """The dense model and the saved one, which are used as a whole too."""
        dense, *_, last = self.models.items()
        return {name: model.checkpoint for name, model in (dense, last) if isinstance(model, StoredModel)}


def models_of_run(
    context: Context,
    dense: Checkpoint,
    database: Modules,
    search: SearchResult,
    stitched: Stitched,
    corrected: Corrected,
) -> Models:
    """The models that a run measures: the dense, the uniform and the stitched one, and the saved one if it differs.

    If all blocks are kept, the uniform model would be the stitched one and is left out.
    """
    models: dict[str, MeasuredModel] = {DENSE: StoredModel(context, dense)}
    if search.chose:
        models[UNIFORM] = UniformModel(context, database, search.uniform)
    models[STITCHED] = StoredModel(context, stitched.checkpoint)
    return Models({**models, corrected.name: StoredModel(context, corrected.exported.checkpoint)})


def measure_models(task: Task, dense: Checkpoint, models: Models, dtype: torch.dtype, tokens: Tensor) -> Measured:
    """Measure models on the same text [n, t], block by block; processes share it.

    Models compute in the run's element type; their sizes in bytes are those in `dtype`. Whole models are timed.
    """
    context = task.context
    tokenizer = dense.tokenizer()
    sequences, remarks = all_copying(
        tokenizer, tokens, longest_sequence(dense.config), lists=number_of_lists(tokens.numel())
    )
    read = torch.cat([tokens.flatten(), *(sequence.tokens.flatten() for sequence in sequences)])
    with parallel.agree():
        decoders = {name: model.read(read) for name, model in models.models.items()}
    for decoder in decoders.values():
        decoder.reserve(0, len(decoders))
    quality = measure_quality(
        decoders[DENSE],
        decoders,
        tokens,
        batch_tokens=context.batch_tokens,
        memory=HiddenMemory(task.folder),
        progress=context.reporter.advance,
    )
    copied = measure_copying(decoders, sequences, batch_tokens=context.batch_tokens)
    sizes = {
        name: ModelSize(int(decoder.params), block_parameters(decoder.model, dense.family.layers), dtype.itemsize)
        for name, decoder in decoders.items()
    }
    del decoders
    used = _use(task, models.whole, sum(sizes[name].params for name in models.whole), tokenizer, tokens[:1])
    untimed = _Used(dict.fromkeys(metric.name for metric in speed_metrics()), ())
    measured: Measured = {}
    for name in models.models:
        use = used.get(name, untimed)
        metrics = {metric.name: metric.of(sizes[name]) for metric in size_metrics()}
        measured[name] = ModelFigures(
            metrics={**metrics, **quality[name].values, **use.speeds},
            tokens=quality[name].tokens,
            continuations=use.continuations,
            looking_back=LookingBackFigures(copying=tuple(copied[name]), remarks=tuple(remarks)),
        )
    return measured


@dataclass(frozen=True)
class _Used:
    """A whole model in use: its speeds by metric, and what it writes."""

    speeds: dict[str, float | None]
    continuations: tuple[str, ...]


def _use(
    task: Task, models: Mapping[str, Checkpoint], params: int, tokenizer: PreTrainedTokenizerBase, prompt: Tensor
) -> dict[str, _Used]:
    """Speeds and continuations of models with so many parameters together.

    The first process measures while the others wait. On a GPU, the models must fit into half of the free memory.
    """
    context = task.context
    used: dict[str, _Used] = {}
    if tokenizer.chat_template and isinstance(reason := chat_parts(tokenizer), str):
        context.reporter.say(f"evaluate: answers continue text: {reason}")
    if reason := why_not_whole(task, params):
        context.reporter.say(f"evaluate: no speeds and continuations: {reason}")
    elif parallel.is_main():
        loaded = {name: load_whole(task, checkpoint) for name, checkpoint in models.items()}
        rounds = measure_speed(loaded, prompt)
        prompts = prompts_for(tokenizer)
        used = {
            name: _Used(
                {metric.name: metric.of(rounds[name]) for metric in speed_metrics()},
                tuple(continue_greedily(model, tokenizer, prompts)),
            )
            for name, model in loaded.items()
        }
    return parallel.broadcast(used)
