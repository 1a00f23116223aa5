"""Gradients of the loss, and the database: every module at every level, or a finished database."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from darwinlm.calibration.gradients import output_gradients
from darwinlm.database.block_moments import Saliency
from darwinlm.database.blocks import block_file
from darwinlm.database.build import build_database
from darwinlm.database.elimination import why_not_recorded
from darwinlm.database.expert_order import ROUNDS as FITS
from darwinlm.database.expert_order import steps
from darwinlm.database.finished import TEXT, VERSION, calibration_documents, check_fits, find_database
from darwinlm.database.lens import FITTED, HEAD_TOKENS, JUDGED, Lens
from darwinlm.database.levels import variants
from darwinlm.database.metrics import find_metric
from darwinlm.database.store import DatabaseReader
from darwinlm.execution.context import Context
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.parts import KINDS
from darwinlm.families.shapes import ModuleShape
from darwinlm.needs.need import Items, Need, largest
from darwinlm.needs.sizes import Sizes
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import StageFolder, read_tensors, write_json, write_tensors
from darwinlm.runtime.compute import exact_device
from darwinlm.runtime.errors import DataError
from darwinlm.runtime.memory import kept_memory
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.stream import BlockStream
from darwinlm.text import TokenSequences

GRADIENT_TOKENS, GRADIENT_SHARE = 8192, 8
"""Most calibration tokens for the gradients of the loss, and the part of the calibration text that they are: an eighth.
Measured databases have these amounts (docs/notebook/database.md)."""


def stream_of(
    context: Context, checkpoint: Checkpoint, tokens: Tensor, memory: HiddenMemory | None = None
) -> BlockStream:
    """The residual stream of a model on tokens [n, t], before the first block."""
    how: dict[str, Any] = {"dtype": context.dtype, "device": context.device, "batch_tokens": context.batch_tokens}
    return BlockStream(checkpoint, tokens, **how, memory=memory)


def gradient_tokens(calibration_tokens: int) -> int:
    """Number of calibration tokens for the gradients of the loss."""
    return min(max(calibration_tokens // GRADIENT_SHARE, 1), GRADIENT_TOKENS)


def _gradient_rows(calibration: TokenSequences) -> int:
    """Number of sequences for the gradients; each process needs one."""
    wanted = -(-gradient_tokens(calibration.n_tokens) // calibration.tokens.shape[1])
    return min(max(wanted, parallel.size()), len(calibration.tokens))


def _gradients_need(need: Need) -> None:
    """A forward pass, then blocks and head again with gradients of the stream; weights get none.

    In memory are the stream before every block, and the head or one block, as it is read and as it is used.
    """
    sizes = need.sizes
    need.tokens = sizes.whole(gradient_tokens(sizes.recipe.text.calibration_tokens))
    need.run(need.tokens, heads=2)
    need.run(need.tokens, blocks=2, kind="training")
    rows, head = need.ends(need.tokens)
    need.held = need.streams(need.tokens * sizes.width * (sizes.depth + 1))
    need.held |= rows | largest(head, need.a_pass(2, backward=True))
    if need.on_cpu:  # memory that forward passes freed stays with the process, in fragments between the streams
        need.held["fragments"] = sizes.pass_tokens * sizes.passes().peak
    need.files(sizes.params * sizes.saved, 4.0 * sizes.width**2 * len(sizes.shapes))


def orders_of(sizes: Sizes, shape: ModuleShape) -> int:
    """Number of removal orders of a module: one for each variant, and one more if heads are ranked first."""
    if shape.kind == "mlp":
        return max(shape.experts, 1)
    count = len(variants(shape, sizes.recipe.units))
    return count if count == 1 else count + 1


def database_bytes(sizes: Sizes) -> float:
    """Bytes of the database's files: a packed factor of each module, and columns and errors of each variant."""
    factors = (max(shape.experts, 1) * (float(shape.width) ** 2 + shape.width) / 2 * 4 for shape in sizes.cut)
    return sum(factors) + sum(orders_of(sizes, shape) * shape.width * 12 for shape in sizes.cut)


def _database_need(need: Need) -> None:
    """Second moments of inputs; removal order, Cholesky factor and target of every variant of every module.

    In memory are the stream, and a block while it runs or while its modules are factorised. On a CPU, moments are moved
    to files, and a module is factorised in the memory of one float64 matrix. It takes two if there are fewer tokens
    than columns and its order needs float64, and weights and their gradients' moments besides. Moments weight the
    weights in the type of the order. On a GPU, moments stay, and an inverse takes one matrix more.
    """
    sizes, r = need.sizes, float(need.sizes.width)
    tokens, moments, work = sizes.recipe.text.calibration_tokens, Counter[int](), 0.0
    weighted = find_metric(sizes.recipe.database.saliency).gradients
    ordered: Items = {}
    need.tokens = tokens
    need.run(tokens)
    for shape in sizes.cut:
        d, experts, orders = float(shape.width), max(shape.experts, 1), orders_of(sizes, shape)
        need.add("moments", 2 * tokens * d * d)
        need.add("removal", orders * 2 * d**3)
        need.add("solves", orders * 2 * d * d * r)
        # An inverse for the order, then a factor and the target.
        need.add("factors", orders * (d**3 + d**3 / 3 + 2 * d * d * r))
        moments[shape.block] += experts * shape.width**2 * 4
        double = tokens <= d
        matrices = (1 if need.on_cpu else 2) + double
        weights = (sizes.size + 16) if double and weighted else 8
        work = max(work, (8 * matrices + 4 * shape.experts) * d * d + weights * r * d + 12 * r * r)
        ordered = _order_experts(need, shape) if shape.experts else ordered
    of_a_block = {"second moments of one block": float(max(moments.values()))}
    passing = need.a_pass(1) | of_a_block | ordered
    factorising = {"factors of one module": work} | ({} if need.on_cpu else of_a_block)
    need.held = need.streams(tokens * r) | largest(passing, factorising)
    if ordered:
        rows, head = need.ends(tokens)
        need.held |= rows | head
    need.add("hashing", sizes.params * sizes.saved)
    # With experts, the model is read once more for the dense stream after the last block.
    need.files((2.0 if ordered else 1.0) * sizes.params * sizes.saved, database_bytes(sizes))


def _order_experts(need: Need, shape: ModuleShape) -> Items:
    """Trials without some experts of a block: fits, the rest of the block, and the head; returns what they hold."""
    sizes, d, r = need.sizes, float(shape.width), float(need.sizes.width)
    share = min(1.0, sizes.recipe.text.calibration_tokens / (FITTED + JUDGED))
    fitted, judged = share * FITTED, share * JUDGED
    counts = list(steps(shape.experts, shape.chosen if shape.droppable else shape.experts))
    need.run(fitted + 2 * judged, 1 / sizes.depth)
    for remaining, _, tried in counts:
        own = fitted * (shape.chosen + 1) / remaining
        side = min(own, d)
        fit = 2 * own * d * side + side**3 / 3 + 2 * side**2 * r + 4 * own * d * r
        need.add("solves", (1 + tried) * remaining * FITS * (fit + 2 * own * judged / fitted * d * r))
        need.run((1 + tried) * judged, 1 / sizes.depth, heads=1)
    most = 1 + max(tried for _, _, tried in counts)
    return {
        "outputs of experts for the removal order": (fitted + judged) * (shape.chosen + 1) * (d + r) * 4,
        "streams of trials": most * judged * r * sizes.size,
        "logits of one piece": float(min(HEAD_TOKENS, judged) * sizes.vocabulary * (sizes.size + 12)),
    }


def _gradients(task: Task, dense: Checkpoint, calibration: TokenSequences) -> None:
    """Second moments of output gradients on the beginning of the calibration text, a file for each block."""
    context, rows = task.context, _gradient_rows(calibration)
    tokens = calibration.tokens[:rows][parallel.place() :: parallel.size()]
    memory, total = HiddenMemory(task.folder), dense.n_blocks
    with kept_memory(context.device):
        stream = stream_of(context, dense, tokens, memory)
        for block, moments in output_gradients(stream, tokens, memory):
            parallel.in_main(write_tensors, task.folder / block_file(block), moments)
            context.reporter.advance(total - block, total)


@dataclass(frozen=True)
class OutputGradients:
    """Second moments of the gradients at the outputs of all modules, in files."""

    folder: Path
    context: Context

    def __call__(self, block: int) -> dict[Any, Tensor]:
        """Those of a block, [r, r] each, on the device."""
        moments = read_tensors(self.folder / block_file(block))
        return {kind: moments[kind].to(self.context.device) for kind in KINDS if kind in moments}


SALIENCY: Stage[Saliency | None] = Stage(
    "saliency",
    lambda task, dense, calibration: OutputGradients(task.folder, task.context),
    work=_gradients,
    version=4,
    title="output gradients",
    writes="second moments of output gradients",
    key=lambda task, calibration: {"rows": _gradient_rows(calibration)},
    arithmetic=True,
    together=True,
    wanted=lambda recipe: find_metric(recipe.database.saliency).gradients and recipe.database.folder is None,
    need=_gradients_need,
)


@dataclass(frozen=True)
class PruningDatabase:
    """A finished database and its folder."""

    stage: StageFolder
    reader: DatabaseReader

    @property
    def digest(self) -> str:
        """Hash of everything that it depends on."""
        return self.stage.digest


def _build(task: Task, dense: Checkpoint, calibration: TokenSequences, saliency: Saliency | None) -> None:
    """Calibrate and factorise every module, block by block."""
    context, tokens = task.context, calibration.tokens
    if len(tokens) < parallel.size():
        raise DataError(
            f"text.calibration_tokens: {len(tokens)} sequences can't be shared by {parallel.size()} processes"
        )
    memory = HiddenMemory(task.folder)
    with parallel.agree():
        stream = stream_of(context, dense, tokens[parallel.place() :: parallel.size()], memory)
        mixture = dense.family.mlp.experts is not None
        orders = Lens(partial(stream_of, context, dense), tokens).order if mixture else None
    metric, weights = find_metric(task.recipe.database.saliency), saliency or (lambda block: {})
    build_database(task.stage, stream, task.recipe.units, weights, orders, context.reporter.advance, metric.order)
    if reason := why_not_recorded():
        context.reporter.say(
            f"removal order: its steps can't be recorded as a CUDA graph ({reason}) and took longer, with the same "
            "results"
        )
    about = {
        "source": calibration.source,
        "tokens": calibration.n_tokens,
        "documents": list(calibration.document_hashes),
    }
    parallel.in_main(write_json, task.folder / TEXT, about)


def _opened(task: Task, dense: Checkpoint, stage: StageFolder) -> PruningDatabase:
    reader = DatabaseReader(stage.folder, dense, task.recipe.units, device=exact_device(task.context.device))
    return PruningDatabase(stage, reader)


def _finished(task: Task, dense: Checkpoint, text: dict[str, TokenSequences]) -> PruningDatabase:
    """The database that the recipe names."""
    assert task.recipe.database.folder is not None
    path = Path(task.recipe.database.folder)
    with parallel.agree():
        stage = find_database(path)
        check_fits(stage, path, model=dense.digest, source=dense.source, units=task.recipe.units.attention)
        calibrated = calibration_documents(stage)
        for purpose, part in text.items():
            shared = calibrated & set(part.document_hashes) if purpose != "calibration" else set()
            if shared:
                raise DataError(
                    f"the database in {path} was calibrated on {len(shared)} documents that are now {purpose} text: "
                    "use other text, or the text settings and the seed of the database"
                )
    task.context.reporter.say(f"calibration and database: using {path}")
    return _opened(task, dense, stage)


DATABASE: Stage[PruningDatabase] = Stage(
    "database",
    lambda task, dense: _opened(task, dense, task.stage),
    work=_build,
    version=VERSION,
    title="calibration and database",
    writes="order, factor and errors of every module",
    settings=("database.saliency", "database.folder", "units.attention"),
    arithmetic=True,
    together=True,
    wanted=lambda recipe: recipe.database.folder is None,
    otherwise=_finished,
    need=_database_need,
)
"""Every module at every level."""
