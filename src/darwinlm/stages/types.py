"""Types and price: what every element type of GGUF files costs in every tensor, and the best price of a byte."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch

from darwinlm.calibration.rounding import Losses
from darwinlm.data import TokenSequences
from darwinlm.database.levels import Level, ModuleLevels
from darwinlm.database.metrics import find_metric
from darwinlm.engines.process import require_engine
from darwinlm.execution.stage import Stage, Task
from darwinlm.export.tensor_types import LOSS_TOKENS, UNKNOWN, tensor_bytes, type_losses
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.shapes import module_shapes
from darwinlm.gguf.quantise import all_types
from darwinlm.gguf.sizes import file_tensors, header_bytes, module_tensors
from darwinlm.needs.need import Need
from darwinlm.runtime.amounts import size
from darwinlm.runtime.artifact import read_json, write_json
from darwinlm.runtime.errors import BudgetError, RecipeError
from darwinlm.search.predict.file_types import Types, file_costs
from darwinlm.search.predict.module_losses import estimated_losses
from darwinlm.search.problem.cost import CostModel
from darwinlm.search.problem.problem import space_of
from darwinlm.stages.corpus import CORPUS, DOCUMENTS
from darwinlm.stages.database import PruningDatabase
from darwinlm.stages.text_source import SELF, named_parts

LOSSES, COSTS = "losses.json", "costs.json"
WORTH = 0.9
"""Predicted loss, relative to that of types alone, below which pruning is worth its time; predictions have an error."""
NO_LOSSES = "budget.file: types are chosen by losses: use database.saliency=loss, or name one with --for"
KINDS = 6
"""Types in which a tensor is tried, for the plan."""


def losses_in(task: Task, checkpoint: Checkpoint, calibration: TokenSequences, *, narrower: bool = False) -> Losses:
    """`type_losses` of a model of the run, on the beginning of the calibration text."""
    context, tokens = task.context, calibration.tokens
    return type_losses(
        checkpoint,
        tokens[: max(1, LOSS_TOKENS // tokens.shape[1])],
        task.folder,
        dtype=context.dtype,
        device=context.device,
        batch_tokens=context.batch_tokens,
        threads=torch.get_num_threads(),
        progress=context.reporter.advance,
        narrower=narrower,
    )


def _header(checkpoint: Checkpoint) -> int:
    came = Path(checkpoint.source)
    return header_bytes(checkpoint, came if came.suffix == ".gguf" and came.is_file() else None)


def _check(task: Task, original: Checkpoint) -> None:
    """Raise RecipeError or MissingExtraError before the first stage if types can't be chosen for this model."""
    if task.recipe.chooses_types:
        require_engine("llama.cpp", "a budget of a GGUF file")
        if not find_metric(task.recipe.database.saliency).gradients:
            raise RecipeError(NO_LOSSES)


def _outside(checkpoint: Checkpoint) -> dict[str, tuple[int, ...]]:
    """Shapes of the file's tensors outside all modules, by name."""
    shapes = {name: tuple(each.shape) for name, each in checkpoint.outline.named_parameters()}
    inside = {
        checkpoint.block_prefix(shape.block) + name for shape in module_shapes(checkpoint) for name in shape.tensors
    }
    return {name: shape for name, shape in file_tensors(checkpoint, shapes).items() if name not in inside}


def _estimate(task: Task, dense: Checkpoint, calibration: TokenSequences) -> None:
    write_json(task.folder / LOSSES, losses_in(task, dense, calibration, narrower=True))


def _choose(task: Task, dense: Checkpoint, types: Losses, database: PruningDatabase) -> None:
    """Write the costs of every level in the best types. Raises BudgetError if types alone are enough, or nothing is."""
    recipe, bound = task.recipe, int(task.recipe.budget.file or 0)
    shapes = module_shapes(dense)
    space = space_of(recipe, dense, shapes)
    alone = estimated_losses(space, database.reader)
    if alone is None:
        raise RecipeError(NO_LOSSES)
    by_place = {(shape.block, shape.kind): shape for shape in shapes}
    losses = _by_weight(types)

    def in_types(module: ModuleLevels, level: Level) -> list[Types]:
        shape = by_place[module.block, module.kind]
        return _types(losses, module_tensors(dense, shape, level.groups, level.width, level.experts or None), dense)

    tensors = [[in_types(module, level) for level in module.levels] for module in space.modules]
    found = file_costs(alone, tensors, _types(losses, _outside(dense), dense), _header(dense), bound)
    if found is None:
        raise BudgetError(f"budget.file: {size(bound)} requested, less than the smallest model in the smallest types")
    if found.alone is not None and WORTH * found.alone <= found.kl:
        source = str(recipe.text.source)
        text = str(task.context.path(CORPUS.name) / DOCUMENTS) if SELF in named_parts(source) else source
        model, words = shlex.quote(str(recipe.model)), shlex.quote(text)
        raise BudgetError(
            f"budget.file: {size(bound)} needs no pruning: with a type for each tensor the whole model loses about "
            f"{found.alone:.2g} nats per token. Write that file: darwinlm export {model} --to gguf --file {bound} "
            f"--text {words} --out model.gguf"
        )
    without = "which types alone can't reach" if found.alone is None else f"{found.alone:.2g} with types alone"
    task.context.reporter.say(f"types: a loss of about {found.kl:.2g} nats per token before the search, {without}")
    record = {"costs": found.costs, "fixed": found.fixed, "kl": found.kl, "alone": found.alone}
    write_json(task.folder / COSTS, record)


def _by_weight(losses: Losses) -> Losses:
    """Losses by name of the weight. The parts of a fused one of experts count as one; the file has each alone."""
    found: Losses = {}
    for name, row in losses.items():
        weight, _, part = name.rpartition(".")
        known = found.setdefault(weight if part.isdigit() else name, dict.fromkeys(row, 0.0))
        for kind, loss in row.items():
            known[kind] += loss
    return found


def _types(losses: Losses, tensors: Mapping[str, tuple[int, ...]], dense: Checkpoint) -> list[Types]:
    """For each tensor, its bytes and its loss in every type; a part of a matrix has a part of its loss."""
    whole = {name: tuple(each.shape) for name, each in dense.outline.named_parameters()}
    experts = dense.family.mlp.experts
    router = None if experts is None else f".{experts.router}."
    found: list[Types] = []
    for name, shape in tensors.items():
        known = losses.get(name) or (losses.get(f"{dense.family.embedding}.weight", {}) if name not in whole else {})
        turned = experts is not None and experts.transposed and f".{experts.name}." in name
        kinds = [kind for kind in all_types(shape[-2 if turned else -1]) if kind in known] if len(shape) > 1 else []
        if len(shape) == 1 or (router is not None and router in name):
            kinds = ["F32"]
        share = prod(shape) / prod(whole.get(name, shape))
        found.append({kind: (tensor_bytes(shape, kind), share * known.get(kind, 0.0)) for kind in kinds or (UNKNOWN,)})
    return found


def types_need(need: Need) -> None:
    """Forward and backward passes, and a product for every type.

    A block in all types is in memory, but of experts one tensor in one type: in float32, rounded, and as read.
    """
    sizes = need.sizes
    need.tokens = sizes.whole(LOSS_TOKENS)
    need.run(need.tokens, blocks=1 + KINDS, heads=1 + KINDS)
    need.run(need.tokens, blocks=2, heads=2, kind="training")
    rows, head = need.ends(need.tokens)
    mixture, experts = sizes.checkpoint.family.mlp.experts, 0
    if mixture is not None:
        experts = max(shape.experts * shape.width for shape in sizes.shapes) * sizes.width
    others = sizes.block - (0 if mixture is None else 1 + len(mixture.inputs)) * experts
    matrices = max(others, sizes.vocabulary * sizes.width)
    need.held = need.streams(need.tokens * sizes.width * (sizes.depth + 1)) | rows | head
    need.held |= {"matrices in every type": float(KINDS * matrices * sizes.size)} | need.a_pass(2, backward=True)
    if experts:
        need.held["a tensor of experts"] = float((8 + sizes.size) * experts)
    need.files(sizes.params * sizes.saved, 12.0 * KINDS * sizes.depth)


def _read(task: Task) -> CostModel:
    costs = read_json(task.folder / COSTS)
    return CostModel("bytes", tuple(map(tuple, costs["costs"])), costs["fixed"])


TYPES: Stage[Losses | None] = Stage(
    "types",
    lambda task: read_json(task.folder / LOSSES),
    work=_estimate,
    title="losses of types",
    writes="loss of every tensor in every type of GGUF files",
    arithmetic=True,
    wanted=lambda recipe: recipe.chooses_types,
    check=_check,
    need=types_need,
)
"""What types cost, if the recipe bounds a file and names no type for it."""

PRICE: Stage[CostModel | None] = Stage(
    "price",
    _read,
    work=_choose,
    title="price of a byte",
    writes="bytes of every module at every level in the best types",
    settings=("budget.file", "units"),
    wanted=lambda recipe: recipe.chooses_types,
)
"""Costs in bytes of all levels in these types."""
