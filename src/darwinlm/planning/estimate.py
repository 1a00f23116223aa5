"""Memory, operations and time of every stage, counted from sizes.

Times are operations divided by the device's throughput, bytes divided by its bandwidth, and the minimum time of a pass
through a block. Operations, tokens and bytes moved are totals of all processes; memory is that of one process. Several
processes share database, search and recovery.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from darwinlm.calibration.stream import ORDER_TOKENS
from darwinlm.families.shapes import ModuleShape
from darwinlm.planning.candidates import train_candidates, without_blocks
from darwinlm.planning.devices import Device
from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Item, StageNeed
from darwinlm.planning.passes import batches, forward_type, logit_items, pass_items, pass_tokens
from darwinlm.planning.refit import refit_need
from darwinlm.planning.training import LOSS_BYTES, recovery_need, saved

REUSED = 0.55
"""Average share of the blocks that a candidate runs, from its first changed block on."""

KL_BYTES = 40
"""Bytes moved per logit of a model: written, read as float32, exponentiated, multiplied with the dense distribution."""

NORMALISER_BYTES = 12
"""The same if only the log-sum-exp is computed, for one part of the vocabulary at a time, within the caches."""

ORDER = 8.0
"""Operations of a removal order in units of d³: an inverse (2), and updates of two shrinking matrices (2 · 3)."""

LIBRARIES = 0.45e9
"""Memory of Python, PyTorch and transformers without a model; measured, see docs/notebook/speed.md."""

IMPROVED = 0.5
"""Share of generations without gradients that find a better allocation, whose block inputs are then recomputed."""

SOLVED = 3
"""Solved children of a generation with gradients; the level switch adds children after two without improvement."""

CONFIRMED = 1.5
"""Average number of children that are evaluated on the whole text; at most two."""

STREAMS = 2 << 30
"""Maximum bytes of residual streams that count as device memory. Larger ones are there too if they fit into a quarter
of its free memory, but they are counted as files, which need no memory."""

GRADIENT_TOKENS = 128
"""Tokens whose logits the output gradients compute at once."""

HEAD_TOKENS = 512
"""Tokens whose logits the search computes at once."""


def estimate(sizes: Sizes, device: Device, ram: float | None = None) -> list[StageNeed]:
    """Needs of the stages with work, in order.

    Args:
        sizes: Sizes of model and recipe.
        device: Device of the stages.
        ram: Bytes of the machine's memory, for states that wait there; None means enough.
    """

    def search(sizes: Sizes) -> StageNeed:
        return _search(sizes, device, ram)

    makers: list[Callable[[Sizes], StageNeed]] = [_database, search]
    if sizes.recipe.database.saliency == "loss":
        makers.insert(0, _gradients)
    if sizes.recipe.refit.tokens:
        makers.append(refit_need)
    if sizes.recipe.recovery.tokens:
        makers.append(recovery_need)
    makers.append(_evaluate)
    needs = [make(sizes) for make in makers]
    for need in needs:
        need.ram.append(Item("libraries", LIBRARIES))
    return needs


def _gradients(sizes: Sizes) -> StageNeed:
    """Gradients of the loss at the outputs of modules: a forward pass, then a backward pass with recomputed blocks."""
    recipe = sizes.recipe
    kind, size = forward_type(sizes)
    length, width = recipe.text.sequence_length, sizes.width
    wanted = min(recipe.database.saliency_tokens, recipe.text.calibration_tokens)
    tokens = -(-wanted // length) * length
    # Weights get no gradients, so the backward pass costs as much as the forward pass.
    need = StageNeed("saliency", tokens, tokens * (3 * sizes.forward + 2 * sizes.head), kind)
    need.calls, need.processes = 3 * batches(sizes, tokens) * sizes.depth, sizes.processes
    outputs = len(sizes.shapes)
    need.operations = {"float32": 2.0 * tokens * width**2 * outputs}
    need.moved = tokens * sizes.vocabulary * float(LOSS_BYTES) / 2 + 2.0 * sizes.params * sizes.element
    need.disk = 4.0 * width**2 * outputs
    streams = tokens * width * size * (sizes.depth + 1) / sizes.processes
    if streams > STREAMS:
        need.scratch = Item("residual streams before every block", streams * sizes.processes)
        streams = 0.0
    batch = pass_tokens(sizes)
    # The head is released before the backward pass through the blocks. On a CPU, memory freed by earlier passes stays
    # with the process, in fragments between the streams.
    freed = sum(item.bytes for item in pass_items(sizes, size))
    at_the_head = [
        Item("freed activations of earlier passes", freed, "compute.batch_tokens", batch, on_gpu=-freed),
        Item("embedding and head", float(sizes.outside * size)),
        Item("logits of one piece", float(min(GRADIENT_TOKENS, batch) * sizes.vocabulary * (size + 12))),
    ]
    in_a_block = [
        Item("weights of one block", sizes.block * (size + sizes.element)),
        Item(
            "activations of the backward pass",
            batch * saved(sizes, size, size, kept=1.0) / max(sizes.depth, 1),
            "compute.batch_tokens",
            batch,
        ),
        Item("second moments of one block", 2 * 4.0 * width**2),
    ]
    need.device = [
        Item("residual streams before every block", streams, "database.saliency_tokens", tokens),
        *max(at_the_head, in_a_block, key=lambda items: sum(item.bytes for item in items)),
    ]
    return need


def _database(sizes: Sizes) -> StageNeed:
    recipe = sizes.recipe
    kind, size = forward_type(sizes)
    tokens = recipe.text.calibration_tokens
    need = StageNeed(
        "database", tokens=tokens, passes=tokens * sizes.forward, kind=kind, operations={"float32": 0.0, "float64": 0.0}
    )
    need.calls = batches(sizes, tokens) * sizes.checkpoint.n_blocks
    need.processes = sizes.processes
    cut = [shape for shape in sizes.shapes if sizes.is_cut(shape)]
    for shape in cut:
        d, r = float(shape.width), float(sizes.width)
        experts, count = max(shape.experts, 1), sizes.factor_count(shape)
        # Second moment; removal orders; Cholesky factor and target of every order, in float64.
        need.operations["float32"] += 2 * tokens * d * d + count * (ORDER * d**3 + 2 * d * d * r)
        need.operations["float64"] += count * (d**3 / 3 + 2 * d * d * r)
        need.steps += count * (d if shape.kind == "mlp" else d / shape.head_dim)
        need.disk += experts * d * (d + 1) / 2 * 4 + count * d * 12
    stream = tokens * sizes.width * size / sizes.processes
    if stream > STREAMS:
        need.scratch = Item("residual stream of the calibration text", stream * sizes.processes)
        stream = 0.0
    need.device = [
        Item("residual stream of the calibration text", stream, "text.calibration_tokens", tokens),
        *_block_items(sizes, cut, size),
    ]
    # The checkpoint is hashed and read once.
    need.moved = 2.0 * sizes.params * sizes.element
    return need


def _block_items(sizes: Sizes, cut: list[ModuleShape], size: int) -> list[Item]:
    """Memory of a block while it runs or while its modules are factorised, whichever is more.

    On a CPU, moments are moved to files, and a module is factorised in the memory of one float64 matrix. It takes two
    if there are fewer tokens than columns and its order needs float64. On a GPU, moments stay, and matrix, factor and
    inverse are separate.
    """
    tokens, r = sizes.recipe.text.calibration_tokens, sizes.width
    inside: dict[int, list[ModuleShape]] = {}
    for shape in cut:
        inside.setdefault(shape.block, []).append(shape)
    largest = max(inside.values(), key=lambda extra: sum(max(each.experts, 1) * each.width**2 for each in extra))
    moments, outputs, work, squares = 0.0, 0.0, 0.0, 0.0
    for shape in largest:
        d, experts = shape.width, max(shape.experts, 1)
        moments += experts * d * d * 4
        outputs += experts * r * d * sizes.element
        squares = max(squares, d * d)
        # Packed factors of experts, separate and joined; float64 copies of moment, weights and target of each variant.
        extra = (4 * experts if shape.experts else 0) * d * d + (0 if tokens > d else 8 * d * d)
        extra += 8 * d * d if sizes.factor_count(shape) == experts else 16 * d * d + 24 * r * d
        work = max(work, extra)
    read = sizes.block * sizes.element
    ordered = max((min(tokens, ORDER_TOKENS) * (shape.chosen + 2) * r * 4 for shape in cut if shape.experts), default=0)
    passing = [
        Item("weights of one block", sizes.block * size if size == sizes.element else sizes.block * size + read),
        Item("second moments of one block", moments),
        *pass_items(sizes, size),
        *([Item("outputs of experts for the removal order", float(ordered))] if ordered else []),
    ]
    factorising = [Item("output projections of one block", outputs), Item("factors of one module", work)]
    passes, factors = (sum(item.bytes for item in items) for items in (passing, factorising))
    chosen = passing if passes > factors else factorising
    more = max(0.0, factors + moments + 16 * squares - max(passes, factors))
    return [chosen[0], replace(chosen[1], on_gpu=more), *chosen[2:]]


def _search(sizes: Sizes, device: Device, ram: float | None) -> StageNeed:
    recipe = sizes.recipe
    settings = recipe.search
    kind, size = forward_type(sizes)
    length = recipe.text.sequence_length

    def whole(tokens: int) -> int:
        return -(-tokens // length) * length

    cut = [module for module in sizes.space.modules if len(module.levels) > 1]
    attention = {len(module.levels) for module in cut if module.kind == "attention"}
    window = whole(settings.stages[0].tokens)
    uniform = max(attention, default=1) * window
    guided = settings.method == "gradient"
    trained = any(stage.training_tokens for stage in settings.stages)
    first = min(SOLVED, settings.offspring) if guided else settings.offspring
    a_generation, runs, last, before = 0.0, 0.0, float(first), 0
    for stage in settings.stages:
        # Losses of earlier rounds are stored by sequence, so only new text is run, unless candidates are trained.
        new = whole(stage.tokens) if stage.training_tokens else whole(stage.tokens) - before
        a_generation += last * new
        runs += last * batches(sizes, new)
        last, before = min(stage.survivors, CONFIRMED) if guided else stage.survivors, whole(stage.tokens)
    # The parent's losses are known; its block inputs are recomputed after a change.
    fitness = whole(settings.fitness_needed)
    evolution = settings.generations * a_generation
    tokens = uniform + evolution + fitness
    # Solved children move most modules, so they share few blocks with their parent.
    reused = 1.0 if guided else REUSED
    bases = 0.0 if guided else settings.generations * IMPROVED * before * sizes.kept
    blocks = (evolution * reused + uniform) * sizes.kept
    operations = (blocks + bases) * sizes.forward + tokens * sizes.head + fitness * sizes.forward
    calls = settings.generations * runs * reused * sizes.depth
    if not guided:
        calls += settings.generations * IMPROVED * batches(sizes, before) * sizes.depth
    changed = settings.generations * (2 * len(cut) if guided else first * 3)
    cuts = sum((shape.width * sizes.kept) ** 2 * sizes.width for shape in sizes.shapes) / max(len(sizes.shapes), 1)
    reads = sum(4.0 * shape.width**2 for shape in sizes.shapes) / max(len(sizes.shapes), 1)
    need = StageNeed("search", tokens, operations, kind, {"float64": changed * cuts}, calls=calls)
    need.processes, need.bound = sizes.processes, settings.minutes
    need.moved = tokens * _kl_bytes(sizes) + changed * reads * 3
    kept = sizes.width + 4 if sizes.linear_head else sizes.vocabulary
    # Where candidates are trained, no parent's block inputs are kept, and caches leave the room to training.
    inputs, cache = (1, 1 << 30) if trained else (sizes.checkpoint.n_blocks, 2 << 30)
    passing = [*pass_items(sizes, size), Item("logits", 10.0 * HEAD_TOKENS * sizes.vocabulary)]
    need.device = [
        Item("dense model", float(sizes.params * size)),
        Item("dense model's distributions", fitness * kept * 4.0, "text.fitness_tokens", fitness),
        Item(
            "block inputs of the parent",
            float(fitness * sizes.width * inputs * size),
            "text.fitness_tokens",
            fitness,
        ),
        Item("current and cached modules", min(2.0 * cache, sizes.blocks * size * 4.0)),
        Item("cached factors", min(float(cache), sum(8.0 * shape.width**2 for shape in sizes.shapes))),
    ]
    if guided:
        _slopes(sizes, need, min(window, fitness), settings.generations)
    if not trained:
        need.device += passing
        return need
    training = train_candidates(sizes, need, size, device, ram)
    if device.is_cpu:
        need.device += [*passing, *training]
    else:
        # One candidate's own passes come after its gradients are gone.
        own, *back = training
        need.device += [own, *max(passing, back, key=lambda items: sum(item.bytes for item in items))]
        without_blocks(sizes, need, size, device)
    return need


def _kl_bytes(sizes: Sizes) -> float:
    """Bytes moved per token for the loss of a candidate."""
    return float(sizes.vocabulary) * (NORMALISER_BYTES if sizes.linear_head else KL_BYTES)


def _slopes(sizes: Sizes, need: StageNeed, tokens: int, times: float) -> None:
    """Gradients at new best allocations: two forward passes, a backward pass, and passes of dense modules."""
    need.tokens += times * tokens
    need.passes += times * tokens * ((3 * sizes.kept + 1) * sizes.forward + 3 * sizes.head)
    # The product of a module's gradients and inputs, and one triangular solve for all of its widths.
    products = sum(2.0 * tokens * shape.width + shape.width**2 for shape in sizes.shapes) * sizes.width
    need.operations["float32"] = need.operations.get("float32", 0.0) + times * products
    need.calls += times * 4 * batches(sizes, tokens) * sizes.depth
    depth = sizes.checkpoint.n_blocks
    need.device.append(Item("block inputs in the backward pass", float(pass_tokens(sizes)) * sizes.width * depth * 2))


def _evaluate(sizes: Sizes) -> StageNeed:
    recipe = sizes.recipe
    kind, size = forward_type(sizes)
    tokens = recipe.text.evaluation_tokens
    smaller = 2 + bool(recipe.refit.tokens) + bool(recipe.recovery.tokens)
    models = 1 + smaller * sizes.kept
    need = StageNeed("evaluate", tokens * (1 + smaller), kind=kind)
    need.passes = tokens * (models * sizes.forward + (1 + smaller) * sizes.head)
    runs = recipe.evaluation.speed_runs + 1
    need.passes += runs * recipe.text.sequence_length * (models * sizes.forward + (1 + smaller) * sizes.head)
    # Every decoded token reads all weights.
    decoded = recipe.evaluation.new_tokens * (runs + len(recipe.evaluation.prompts))
    weights = (models * sizes.blocks + (1 + smaller) * sizes.outside) * size
    pair = ((1 + sizes.kept) * sizes.blocks + 2 * sizes.outside) * size
    need.calls = (1 + smaller) * sizes.depth * (batches(sizes, tokens) + runs + decoded)
    need.moved = tokens * (1 + smaller) * sizes.vocabulary * float(KL_BYTES) + decoded * weights
    need.device = [
        Item("dense model and one other model", pair),
        *pass_items(sizes, size),
        *logit_items(sizes),
        *logit_items(sizes),
    ]
    need.ram = [Item("the other models", weights - pair)]
    need.disk = 2 * (sizes.kept_blocks[1] + sizes.outside) * float(sizes.element)
    return need
