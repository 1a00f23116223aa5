"""Models measured on the same held-out text: the dense one, the uniform one, and those of the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

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
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.evaluate.speed import continue_greedily, measure_speed, prompts_for
from darwinlm.steps.evaluate.step import LookingBackFigures, ModelFigures, ModelKey
from darwinlm.steps.own_text.script import chat_parts
from darwinlm.steps.source.whole_model import load_whole, why_not_whole
from darwinlm.steps.stitch.stitch import stitched_blocks

if TYPE_CHECKING:
    from darwinlm.steps.database.step import PruningDatabase
    from darwinlm.steps.export.step import Exported
    from darwinlm.steps.recover.step import Recovered
    from darwinlm.steps.refit.step import Refitted
    from darwinlm.steps.search.step import SearchResult
    from darwinlm.steps.stitch.step import Stitched

Read = Callable[[Tensor], StreamedDecoder]
"""A model as a decoder that reads the given tokens block by block."""


@dataclass(frozen=True)
class Models:
    """The models to measure, the dense one first, with the digest that identifies them.

    Attributes:
        readers: How each is read.
        whole: The dense model and the saved one, by the same names; they are used as a whole too.
    """

    readers: dict[ModelKey, Read]
    whole: dict[ModelKey, Checkpoint]
    digest: str

    @classmethod
    def of(cls, context: Context, models: Mapping[ModelKey, Checkpoint | tuple[Read, Any]]) -> Models:
        """From stored models, or pairs of how one is read and what identifies it; the first and the last are stored."""
        how: dict[str, Any] = {"dtype": context.dtype, "device": context.device}
        readers, whole, digests = dict[ModelKey, Read](), dict[ModelKey, Checkpoint](), dict[str, Any]()
        for name, model in models.items():
            if isinstance(model, Checkpoint):
                readers[name], whole[name], digests[name] = partial(StreamedDecoder, model, **how), model, model.digest
            else:
                readers[name], digests[name] = model
        dense, *_, last = models
        return cls(readers, {name: whole[name] for name in (dense, last)}, digest_of(digests))


def models_of_run(
    context: Context,
    dense: Checkpoint,
    database: PruningDatabase,
    search: SearchResult,
    stitch: Stitched,
    refit: Refitted | None,
    recover: Recovered | None,
    export: Exported,
) -> Models:
    """The models that a run measures; of a trained one not the refit, which the training's first figure is of."""

    def uniform(tokens: Tensor) -> Any:
        """The best uniform model at the same budget."""
        checkpoint, weights = stitched_blocks(database.reader, search.uniform)

        def of(block: int) -> dict[str, Tensor]:
            cut = weights(block)
            database.reader.release()
            return cut

        return StreamedDecoder(checkpoint, tokens, dtype=context.dtype, device=context.device, weights=of)

    models: dict[ModelKey, Any] = {
        "dense": dense,
        "uniform": (uniform, [database.digest, search.uniform]),
        "stitched": export.checkpoint if refit is None and recover is None else stitch.checkpoint,
    }
    if refit is not None or recover is not None:
        models["refit" if recover is None else "recovered"] = export.checkpoint
    return Models.of(context, models)


def measure_models(
    task: Task, dense: Checkpoint, models: Models, dtype: torch.dtype, tokens: Tensor
) -> dict[ModelKey, ModelFigures]:
    """Measure models on the same text [n, t], block by block; processes share it.

    Models compute in the run's element type; their sizes in bytes are those in `dtype`. Whole models are timed.
    """
    context = task.context
    tokenizer = dense.tokenizer()
    sequences, remarks = all_copying(
        tokenizer, tokens, longest_sequence(dense.config), lists=number_of_lists(tokens.numel())
    )
    read = torch.cat([tokens.flatten(), *(each.tokens.flatten() for each in sequences)])
    with parallel.agree():
        decoders: dict[str, Any] = {str(name): reader(read) for name, reader in models.readers.items()}
    for decoder in decoders.values():
        decoder.reserve(0, len(decoders))
    quality = measure_quality(
        decoders["dense"],
        decoders,
        tokens,
        batch_tokens=context.batch_tokens,
        memory=HiddenMemory(task.folder),
        progress=context.reporter.advance,
    )
    copied = measure_copying(decoders, sequences, batch_tokens=context.batch_tokens)
    params = {name: int(decoders[name].params) for name in models.readers}
    in_blocks = {name: block_parameters(decoders[name].model, dense.family.layers) for name in models.readers}
    del decoders
    used = _use(task, models, params, tokenizer, tokens[:1])
    figures: dict[ModelKey, ModelFigures] = {}
    for name in models.readers:
        figures[name] = ModelFigures(
            params=params[name],
            block_params=in_blocks[name],
            bytes=params[name] * dtype.itemsize,
            looking_back=LookingBackFigures(copying=tuple(copied[name]), remarks=tuple(remarks)),
            **asdict(quality[name]),
            **used.get(name, {}),
        )
    return figures


def _use(
    task: Task, models: Models, params: Mapping[ModelKey, int], tokenizer: Any, prompt: Tensor
) -> dict[ModelKey, dict[str, Any]]:
    """Speeds and continuations of the dense model and of the saved one, as figures, by model.

    The first process measures while the others wait. On a GPU, both models must fit into half of the free memory.
    """
    context, figures = task.context, dict[ModelKey, dict[str, Any]]()
    if tokenizer.chat_template and isinstance(reason := chat_parts(tokenizer), str):
        context.reporter.say(f"evaluate: answers continue text: {reason}")
    if reason := why_not_whole(task, sum(params[name] for name in models.whole)):
        context.reporter.say(f"evaluate: no speeds and continuations: {reason}")
    elif parallel.is_main():
        held: dict[str, Any] = {name: load_whole(task, checkpoint) for name, checkpoint in models.whole.items()}
        speeds = measure_speed(held, prompt)
        prompts = prompts_for(tokenizer)
        for name in models.whole:
            continued = tuple(continue_greedily(held[name], tokenizer, prompts))
            figures[name] = {**speeds[name], "continuations": continued}
    return parallel.broadcast(figures)
