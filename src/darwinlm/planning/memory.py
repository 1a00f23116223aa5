"""What must be in memory at once in every stage, and what it leaves on the disk."""

from __future__ import annotations

from torch import nn

from darwinlm.calibration.gradients import HEAD_TOKENS as GRADIENT_TOKENS
from darwinlm.calibration.stream import ORDER_TOKENS
from darwinlm.database.levels import variants
from darwinlm.families.shapes import ModuleShape
from darwinlm.planning.model import Sizes
from darwinlm.planning.need import StageNeed
from darwinlm.recipe import Recipe
from darwinlm.recovery.cache import bytes_per_token
from darwinlm.recovery.checkpoints import KEPT
from darwinlm.recovery.model import LOGIT_CHUNK
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS
from darwinlm.search.evaluate.student import PART
from darwinlm.search.evaluate.training import HOST_SHARE, LOGIT_BYTES
from darwinlm.stages.refit import HEAD_TOKENS as REFIT_TOKENS

STREAMS = 2 << 30
"""Bytes of residual streams that count as device memory. Larger ones are there too if they fit into a quarter of its
free memory, but they are counted as files, which need no memory."""

INPUTS = 4.0 * 2**30
"""Bytes of cached inputs of a module in the refit; in a run they use free memory, and others are computed twice."""

CACHES, CACHES_IN_TRAINING = 2 << 30, 1 << 30
"""Bytes for factors, and half of those for modules, in the search; in a run they use what is free."""

STATE_BYTES = 12
"""Bytes of one weight's state: float32 master weight, AdamW's two moments."""

RECOVERY_LOGIT_BYTES = 30
"""Peak bytes per logit in recovery: logits of both models, their float32 log-softmax, and gradients."""


Items = dict[str, float]
"""Bytes by name."""


def a_pass(sizes: Sizes) -> Items:
    """Activations of a pass through a block."""
    return {"activations of one pass": sizes.pass_tokens * sizes.passes().peak}


def largest(*alternatives: Items) -> Items:
    """The items that need the most memory together, of those that are never in memory at once."""
    return max(alternatives, key=lambda items: sum(items.values()))


def orders_of(sizes: Sizes, shape: ModuleShape) -> int:
    """Number of removal orders of a module: one for each variant, and one more if heads are ranked first."""
    if shape.kind == "mlp":
        return max(shape.experts, 1)
    count = len(variants(shape, sizes.recipe.units))
    return count if count == 1 else count + 1


def streams(need: StageNeed, name: str, count: float) -> Items:
    """Residual streams with this number of elements for all processes: on the device, or in a file."""
    size = count * need.sizes.size
    if size / need.processes <= STREAMS:
        return {name: size / need.processes}
    need.scratch = size
    return {}


def saliency(need: StageNeed) -> None:
    """The stream before every block, and the head or one block."""
    sizes, batch, square = need.sizes, need.sizes.pass_tokens, float(need.sizes.width) ** 2
    at_the_head = {
        "embedding and head": float(sizes.outside * sizes.size),
        "logits of one piece": float(min(GRADIENT_TOKENS, batch) * sizes.vocabulary * (sizes.size + 12)),
    }
    in_a_block = {
        "weights of one block": float(sizes.block * (sizes.size + sizes.saved)),
        "activations of the backward pass": batch * sizes.passes(backward=True).peak,
        "second moments of one block": 8 * square,
    }
    need.held = streams(need, "residual streams before every block", need.tokens * sizes.width * (sizes.depth + 1))
    need.held |= largest(at_the_head, in_a_block)
    if need.device.is_cpu:  # memory freed by earlier passes stays with the process, in fragments between the streams
        need.held |= a_pass(sizes)
    need.disk = 4.0 * square * len(sizes.shapes)


def database(need: StageNeed) -> None:
    """The stream, and a block while it runs or while its modules are factorised.

    On a CPU, moments are moved to files, and a module is factorised in the memory of one float64 matrix. It takes two
    if there are fewer tokens than columns and its order needs float64. On a GPU, moments stay, and matrix, factor and
    inverse are separate.
    """
    sizes, tokens, r = need.sizes, int(need.tokens), float(need.sizes.width)
    moments: dict[int, float] = {}
    outputs: dict[int, float] = {}
    work = squares = ordered = 0.0
    for shape in sizes.cut:
        square, experts, orders = float(shape.width) ** 2, max(shape.experts, 1), orders_of(sizes, shape)
        moments[shape.block] = moments.get(shape.block, 0) + experts * square * 4
        outputs[shape.block] = outputs.get(shape.block, 0) + experts * r * shape.width * sizes.saved
        # Packed factors of experts, separate and joined; float64 copies of moment, weights and target of each variant.
        own = (4 * experts if shape.experts else 0) * square + (0 if tokens > shape.width else 8 * square)
        own += 8 * square if orders == experts else 16 * square + 24 * r * shape.width
        work, squares = max(work, own), max(squares, square)
        ordered = max(ordered, min(tokens, ORDER_TOKENS) * (shape.chosen + 2) * r * 4 if shape.experts else 0)
    need.disk = database_bytes(sizes)
    read = 0 if sizes.size == sizes.saved else sizes.block * sizes.saved
    passing = a_pass(sizes) | {
        "weights of one block": float(sizes.block * sizes.size + read),
        "second moments of one block": max(moments.values()),
        "outputs of experts for the removal order": ordered,
    }
    factorising = {"output projections of one block": max(outputs.values()), "factors of one module": work}
    if not need.device.is_cpu:
        factorising |= {"second moments of one block": max(moments.values()), "inverses": 16 * squares}
    need.held = streams(need, "residual stream of the calibration text", tokens * r) | largest(passing, factorising)


def database_bytes(sizes: Sizes) -> float:
    """Bytes of the database's files: a packed factor of each module, and columns and errors of each variant."""
    factors = (max(shape.experts, 1) * (float(shape.width) ** 2 + shape.width) / 2 * 4 for shape in sizes.cut)
    return sum(factors) + sum(orders_of(sizes, shape) * shape.width * 12 for shape in sizes.cut)


def search(need: StageNeed) -> None:
    """The dense model, caches, and a pass; one candidate in training, or all of them on a CPU."""
    sizes, settings = need.sizes, need.sizes.recipe.search
    fitness, training = sizes.whole(settings.fitness_needed), settings.training_needed
    # Where candidates are trained, no parent's block inputs are kept, and caches leave the room to training.
    inputs, cache = (1, CACHES_IN_TRAINING) if training else (sizes.depth, CACHES)
    own = 0.0 if training else sizes.kept * sizes.blocks * sizes.size
    rows = 4.0 * fitness * (sizes.width + 4 if sizes.linear_head else sizes.vocabulary)
    need.held = {
        "dense model": float(sizes.params * sizes.size),
        "dense model's distributions": rows,
        "dense model's streams": float(fitness * sizes.width * sizes.size),
        "block inputs of the parent": float(fitness * sizes.width * inputs * sizes.size),
        "current and cached modules": max(min(2.0 * cache, 4.0 * sizes.blocks * sizes.size), own),
        "cached factors": min(float(cache), sum(8.0 * shape.width**2 for shape in sizes.shapes)),
    }
    if settings.method == "gradient":
        need.held["block inputs in the backward pass"] = float(sizes.pass_tokens) * sizes.width * sizes.depth * 2
    passing = a_pass(sizes) | {"logits": 10.0 * LOGIT_TOKENS * sizes.vocabulary}
    if training:
        _candidates(need, passing)
    else:
        need.held |= passing


def candidate_state(sizes: Sizes) -> float:
    """Bytes of a candidate's state."""
    return STATE_BYTES * trained(sizes, sizes.recipe.search.training.lora_rank)


def waiting(need: StageNeed) -> int:
    """Number of candidates whose state waits in main memory for its next round."""
    most = max((stage.survivors + 1 for stage in need.sizes.recipe.search.stages[:-1]), default=0)
    if need.device.is_cpu or need.machine is None:
        return 0 if need.device.is_cpu else most
    processes = need.sizes.processes
    return min(most, int(HOST_SHARE * need.machine / processes // candidate_state(need.sizes)) * processes)


def _candidates(need: StageNeed, passing: Items) -> None:
    """Candidates of a round train together on a CPU, and one at a time elsewhere."""
    sizes, settings, rank = need.sizes, need.sizes.recipe.search, need.sizes.recipe.search.training.lora_rank
    piece, weights = max(LOGIT_TOKENS, sizes.recipe.text.sequence_length), trained(sizes, rank)
    learnt = sum(stage.training_tokens for stage in settings.stages)
    text = {"dense model's stream of the training text": float(learnt * sizes.width * sizes.size)}
    activations = piece * sizes.activations(sizes.kept, checkpointing=not need.device.is_cpu)
    back = {
        "activations of the backward pass": activations,
        "logits of training": float(LOGIT_BYTES * LOGIT_TOKENS * sizes.vocabulary),
    }
    # Weights and gradients in the type of the passes, and the state.
    own = (STATE_BYTES + 2.0 * sizes.size) * weights + (sizes.size * sizes.kept * sizes.blocks if rank else 0)
    if need.device.is_cpu:
        here = -(-(settings.offspring + 1) // sizes.processes)
        need.held |= passing | back | text | {f"{here} candidates in training": here * own}
        return
    need.ram |= text
    if here := -(-waiting(need) // sizes.processes):
        need.ram[f"states of {here} candidates that wait"] = here * candidate_state(sizes)
    # One candidate's own passes come after its gradients are gone.
    back["float32 gradients of a part of it"] = 4.0 * min(PART, weights)
    need.held |= {"one candidate in training": own} | largest(passing, back)
    if not rank and need.device_bytes > need.room:
        need.held["dense model"] = float(sizes.outside * sizes.size)
        need.ram["blocks of the dense model"] = float(sizes.blocks * sizes.size)


def trained(sizes: Sizes, rank: int) -> float:
    """Number of trained parameters in the smaller blocks: all, or those of adapters of a rank on every projection."""
    if not rank:
        return sizes.kept * sizes.blocks
    blocks = sizes.skeleton.get_submodule(sizes.checkpoint.family.layers)
    linear = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
    # One side of each is the residual stream, which keeps its width.
    cut = sum(module.in_features + module.out_features - sizes.width for module in linear)
    return rank * (len(linear) * sizes.width + sizes.kept * cut)


def refit(need: StageNeed) -> None:
    """Four streams; and a block with the moments of a module, or the heads at the end."""
    sizes, recipe, size, r = need.sizes, need.sizes.recipe, need.sizes.size, float(need.sizes.width)
    held_out, widths = recipe.text.validation_tokens, [shape.width * sizes.kept for shape in sizes.shapes]
    held_out = -(-held_out // need.processes)
    everything = -(-recipe.refit.tokens // need.processes) + held_out
    in_a_block = a_pass(sizes) | {
        "weights of one block, dense and smaller": sizes.block * (1 + sizes.kept) * (size + sizes.saved),
        "moments of one module": max((2 * d * d + d * r) * 4 + d * d * 16 for d in widths),
        "projection inputs": min(everything * max(widths) * size, INPUTS),
    }
    at_the_end = {
        "residual stream of an interpolation": held_out * r * size,
        "heads: dense, smaller": 2.0 * sizes.vocabulary * r * size,
        "logits of one piece": float(REFIT_TOKENS * sizes.vocabulary * (4 + 2 * size)),
    }
    need.held = {"residual streams, dense, smaller and target": 4.0 * everything * r * size}
    need.held |= largest(in_a_block, at_the_end)
    need.disk = sum(r * d * 4 for d in widths)


def micro_tokens(sizes: Sizes) -> int:
    """Tokens in one pass of recovery."""
    settings = sizes.recipe.recovery
    return min(sizes.pass_tokens, settings.batch_tokens, settings.tokens)


def shards(sizes: Sizes) -> int:
    """Number of processes over which recovery's weights are spread."""
    return sizes.processes if sizes.recipe.recovery.sharding == "fsdp" else 1


def trained_in_recovery(sizes: Sizes) -> float:
    """Number of parameters that recovery trains."""
    settings = sizes.recipe.recovery
    if settings.lora_rank:
        return trained(sizes, settings.lora_rank)
    return float(sizes.small if settings.embeddings else sizes.small - sizes.outside + sizes.width)


def recover(need: StageNeed) -> None:
    """Weights, gradients and moments, the dense model, and the activations of one pass. Fused AdamW needs no copies."""
    sizes, settings, weights = need.sizes, need.sizes.recipe.recovery, trained_in_recovery(need.sizes)
    micro, count, size, small = micro_tokens(sizes), shards(sizes), sizes.size, float(sizes.small)
    each = sizes.activations(sizes.kept, recovery=True, checkpointing=settings.gradient_checkpointing)
    need.held = {
        "weights of the smaller model, float32": 4.0 * small / count,
        "gradients": 4.0 * weights / count,
        "AdamW's two moments": 8.0 * weights / count,
        "activations of the backward pass": micro * each,
        "logits of one piece": float(min(LOGIT_CHUNK, micro) * sizes.vocabulary * RECOVERY_LOGIT_BYTES),
    }
    if size == 2:
        once = sizes.kept * (sizes.blocks if count == 1 else sizes.block)
        need.held["its weights in bfloat16"] = 2.0 * (once + sizes.outside)
    if settings.embeddings and not settings.lora_rank and count == 1:
        # Without tying it exists besides the accumulated gradients until the end of the backward pass.
        need.held["gradient of the head"] = 4.0 * sizes.vocabulary * sizes.width
    if settings.distillation:
        need.held["dense model"] = (sizes.blocks / count + sizes.outside) * size
        need.ram["dense model's streams on validation text"] = sizes.recipe.text.validation_tokens * sizes.width * size
    need.ram["both models during loading"] = 4.0 * small + (sizes.params * size if settings.distillation else 0)
    wide = sizes.vocabulary > 1 << 16
    unique = settings.tokens / settings.epochs
    # One checkpoint more is being written.
    need.scratch = (KEPT + 1) * STATE_BYTES * weights + unique * (4 if wide else 2)
    need.disk = 4.0 * small
    if settings.teacher_cache:
        need.disk += unique * bytes_per_token(sizes.vocabulary)


def smaller_models(recipe: Recipe) -> int:
    """Number of smaller models that are evaluated: uniform, searched, refitted, recovered."""
    return 2 + bool(recipe.refit.tokens) + bool(recipe.recovery.tokens)


def model_bytes(sizes: Sizes, smaller: int) -> float:
    """Bytes of the dense and of some smaller models."""
    return ((1 + smaller * sizes.kept) * sizes.blocks + (1 + smaller) * sizes.outside) * sizes.size


def evaluate(need: StageNeed) -> None:
    """Two models, and a pass with its logits; the others wait."""
    sizes, two = need.sizes, model_bytes(need.sizes, 1)
    need.held = a_pass(sizes) | {
        "dense model and one other model": two,
        "logits of one pass": 2 * 4.0 * sizes.pass_tokens * sizes.vocabulary,
    }
    if need.device.is_cpu:
        need.ram["the other models"] = model_bytes(sizes, smaller_models(sizes.recipe)) - two
    else:
        in_float32 = sizes.recipe.refit.tokens and sizes.recipe.recovery.tokens
        need.ram["a model while it is loaded"] = float(sizes.small * (4 if in_float32 else sizes.saved))
    need.disk = 2.0 * sizes.small * sizes.saved
