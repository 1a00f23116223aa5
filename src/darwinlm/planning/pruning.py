"""Stages that compute without training: which tokens pass through which model, other products, memory, and files."""

from __future__ import annotations

from collections import Counter

from darwinlm.database.expert_order import ROUNDS as FITS
from darwinlm.database.expert_order import steps
from darwinlm.database.lens import FITTED, JUDGED
from darwinlm.database.lens import HEAD_TOKENS as LENS_TOKENS
from darwinlm.database.levels import variants
from darwinlm.evaluation import speed
from darwinlm.evaluation.looking_back import LIST_LENGTHS, PASSAGES, number_of_lists
from darwinlm.evaluation.quality import HEAD_TOKENS as PIECE
from darwinlm.families.shapes import ModuleShape
from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Items, StageNeed, largest
from darwinlm.planning.training import TRANSFER, train_candidates
from darwinlm.recipe import Recipe
from darwinlm.sampling.sampler import CPU_ROWS, GPU_ROWS
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS
from darwinlm.search.evolve import evolution
from darwinlm.search.search import BLOCKS, PRODUCTS
from darwinlm.stages.corpus import amount_for_pruning, amount_for_recovery
from darwinlm.stages.database import gradient_tokens
from darwinlm.stages.refit import HEAD_TOKENS, STRENGTHS
from darwinlm.streaming.streamed import SHARE
from darwinlm.surgery.refit import RIDGES

REUSED = 0.55
"""Average share of the blocks that a candidate of the level switch runs, from its first changed block on, which lies
anywhere. Our estimate, 2026-11-24."""

CONFIRMED = 1.5
"""Average number of children that are evaluated on the whole text; at most two. Our estimate, 2026-11-25."""

ORDER = 8.0
"""Operations of a removal order in units of d³: an inverse (2), and updates of two shrinking matrices (2 · 3)."""

STREAMS = 2 << 30
"""Bytes of residual streams that count as device memory. Larger ones are there too if they fit into a quarter of its
free memory, but they are counted as files, which need no memory."""

CHARACTERS_PER_TOKEN = 6.0
"""Bytes of a file of records for each token."""

CACHES = 1 << 30
"""Bytes for modules, and half of those for factors, while candidates are trained; in a run they use what is free."""


def a_pass(sizes: Sizes, copies: float = 0, *, backward: bool = False) -> Items:
    """A pass through a block, with copies of its weights in the type of the passes."""
    activations = {"activations of one pass": sizes.pass_tokens * sizes.passes(backward=backward).peak}
    return activations | ({"weights of one block": copies * sizes.block * sizes.size} if copies else {})


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


def streams(need: StageNeed, count: float) -> Items:
    """Residual streams with this number of elements for all processes: on the device, or in a file."""
    size = count * need.sizes.size
    if size / need.processes <= STREAMS:
        return {"residual streams": size / need.processes}
    need.scratch = size
    return {}


def own_tokens(recipe: Recipe) -> int:
    """Tokens that the dense model writes itself."""
    return amount_for_pruning(recipe) + amount_for_recovery(recipe)


def corpus(need: StageNeed) -> None:
    """Text that the dense model writes; each step reads all weights and adds a token to every row."""
    sizes = need.sizes
    need.tokens = own_tokens(sizes.recipe)
    need.run(need.tokens, heads=1, batch=CPU_ROWS if need.device.is_cpu else GPU_ROWS)
    need.held = {"dense model": float((sizes.blocks + sizes.outside) * sizes.size)}
    need.read, need.disk = float(sizes.params * sizes.saved), CHARACTERS_PER_TOKEN * need.tokens


def saliency(need: StageNeed) -> None:
    """Gradients of the loss at the outputs of modules; weights get none.

    In memory are the stream before every block, and the head or one block, as it is read and as it is used.
    """
    sizes = need.sizes
    need.tokens = sizes.whole(gradient_tokens(sizes.recipe.text.calibration_tokens))
    need.run(need.tokens, blocks=3, heads=2)  # forward pass; then again with gradients of the stream
    need.held = streams(need, need.tokens * sizes.width * (sizes.depth + 1)) | largest(
        {"embedding and head": float(sizes.outside * sizes.size)}, a_pass(sizes, 2, backward=True)
    )
    if need.device.is_cpu:  # memory that forward passes freed stays with the process, in fragments between the streams
        need.held["fragments"] = sizes.pass_tokens * sizes.passes().peak
    need.read, need.disk = float(sizes.params * sizes.saved), 4.0 * sizes.width**2 * len(sizes.shapes)


def database(need: StageNeed) -> None:
    """Second moments of inputs; removal order, Cholesky factor and target of every variant of every module.

    In memory are the stream, and a block while it runs or while its modules are factorised. On a CPU, moments are moved
    to files, and a module is factorised in the memory of one float64 matrix. It takes two if there are fewer tokens
    than columns and its order needs float64. On a GPU, moments stay, and matrix, factor and inverse are separate.
    """
    sizes, r = need.sizes, float(need.sizes.width)
    tokens, moments, work = sizes.recipe.text.calibration_tokens, Counter[int](), 0.0
    ordered: Items = {}
    need.tokens = tokens
    need.run(tokens)
    for shape in sizes.cut:
        d, experts, orders = float(shape.width), max(shape.experts, 1), orders_of(sizes, shape)
        need.multiply("float32", 2 * tokens * d * d + orders * (ORDER * d**3 + 2 * d * d * r))
        need.multiply("float64", orders * (d**3 / 3 + 2 * d * d * r))
        need.times["steps"] += orders * d / shape.head_dim * need.device.step_seconds
        moments[shape.block] += experts * shape.width**2 * 4
        matrices = (1 if need.device.is_cpu else 3) + (tokens <= d)
        work = max(work, (8 * matrices + 4 * shape.experts) * d * d)
        ordered = _order_experts(need, shape) if shape.experts else ordered
    of_a_block = {"second moments of one block": float(max(moments.values()))}
    passing = a_pass(sizes, 1) | of_a_block | ordered
    factorising = {"factors of one module": work} | ({} if need.device.is_cpu else of_a_block)
    need.held = streams(need, tokens * r) | largest(passing, factorising)
    if ordered:
        need.held["embedding and head"] = float(sizes.outside * sizes.size)
    # The checkpoint is hashed and read once, and once more for the dense stream after the last block.
    need.read, need.disk = (3.0 if ordered else 2.0) * sizes.params * sizes.saved, database_bytes(sizes)


def _order_experts(need: StageNeed, shape: ModuleShape) -> Items:
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
        need.multiply("float32", (1 + tried) * remaining * FITS * (fit + 2 * own * judged / fitted * d * r))
        need.run((1 + tried) * judged, 1 / sizes.depth, heads=1)
    most = 1 + max(tried for _, _, tried in counts)
    return {
        "outputs of experts for the removal order": (fitted + judged) * (shape.chosen + 1) * (d + r) * 4,
        "streams of trials": most * judged * r * sizes.size,
        "logits of one piece": float(min(LENS_TOKENS, judged) * sizes.vocabulary * (sizes.size + 12)),
    }


def search(need: StageNeed) -> None:
    """Candidates on fitness text, the dense model's side, gradients at new best allocations, candidates' training.

    In memory are the head, the present and the next block with a candidate's modules, and a module's factors with the
    products of its slopes. Blocks that don't stay are copied again for every walk. With training there is the whole
    dense model, and one candidate in training, or all of them on a CPU.
    """
    sizes, settings = need.sizes, need.sizes.recipe.search
    guided, training = settings.method == "gradient", settings.training_needed
    fitness = sizes.whole(settings.fitness_needed)
    _evaluate_candidates(need, fitness)
    capped = getattr(sizes.checkpoint.config, "final_logit_softcapping", None)
    need.held = {"dense model's distributions": 4.0 * fitness * (sizes.vocabulary if capped else sizes.width)}
    stream, widest = float(fitness * sizes.width * sizes.size), max(shape.width for shape in sizes.shapes)
    factors = 4.0 * widest * (widest + PRODUCTS * sizes.width)
    if training:
        need.held |= {
            "dense model": float(sizes.params * sizes.size),
            "block inputs of the dense model and the parent": 2 * stream,
            "current and cached modules": min(CACHES, 4.0 * sizes.blocks * sizes.size),
            "cached factors": min(CACHES / 2, sum(8.0 * shape.width**2 for shape in sizes.shapes)),
        }
    else:
        need.held |= {
            "head": float(sizes.vocabulary * sizes.width * sizes.size),
            "blocks and a candidate's modules": float(BLOCKS * sizes.block * sizes.size),
            "streams": min((settings.offspring + 2) * stream, float(STREAMS)),
            "factors of one module": factors,
        }
    passing = a_pass(sizes, backward=guided) | {"logits": 10.0 * LOGIT_TOKENS * sizes.vocabulary}
    need.read = sizes.params * sizes.saved + database_bytes(sizes)
    need.bound = 60 * settings.minutes if settings.minutes is not None else need.bound
    need.held |= train_candidates(need, passing) if training else passing
    if not training and not need.device.is_cpu:
        staying = SHARE * max(need.room - need.device_bytes, 0)
        walks = settings.generations * (len(settings.stages) + 2 * guided)
        need.times["transfers"] += walks * max(sizes.blocks * sizes.size - staying, 0) / TRANSFER


def _evaluate_candidates(need: StageNeed, fitness: int) -> None:
    sizes, settings = need.sizes, need.sizes.recipe.search
    guided, times = settings.method == "gradient", settings.generations
    cut = [module for module in sizes.space.modules if len(module.levels) > 1]
    window = sizes.whole(settings.stages[0].tokens)
    # All uniform models on a quarter of the tokens, the best three on the others.
    uniform = max((len(module.levels) for module in cut if module.kind == "attention"), default=1)
    quarter = sizes.whole(window // 4)
    evaluated = float(uniform * quarter + min(uniform, 3) * (window - quarter))
    # One child is solved for each strength; the level switch adds children after two without improvement.
    first = count = float(min(len(evolution.STRENGTHS), settings.offspring) if guided else settings.offspring)
    before = 0
    for stage in settings.stages:
        # Losses of earlier rounds are stored by sequence, so only new text is run, unless candidates are trained.
        evaluated += times * count * (sizes.whole(stage.tokens) - (0 if stage.training_tokens else before))
        count, before = min(stage.survivors, CONFIRMED) if guided else stage.survivors, sizes.whole(stage.tokens)
    # Solved children move most modules, so they share few blocks with their parent.
    batch = min(window, sizes.pass_tokens)
    need.run(evaluated, sizes.kept, blocks=1 if guided else REUSED, heads=1, batch=batch)
    need.run(fitness, heads=1)
    need.tokens = evaluated + fitness
    if guided:
        need.run(times * window, sizes.kept, blocks=3, heads=3)
        need.tokens += times * window
        # The product of a module's gradients and inputs, and one triangular solve for all of its widths.
        solves = sum(2.0 * window * shape.width + shape.width**2 for shape in sizes.shapes)
        need.multiply("float32", times * solves * sizes.width)
    changed = times * (2 * len(cut) if guided else first * 3)
    squares = sum(float(shape.width) ** 2 for shape in sizes.shapes) / len(sizes.shapes)
    need.multiply("float32", changed * squares * sizes.kept**2 * sizes.width)


def refit(need: StageNeed) -> None:
    """Both models by block, fits of output projections, comparisons on validation text for the interpolation factor.

    In memory are the streams, and a block of both models for each text and the moments of a module, or the heads.
    """
    sizes, recipe, size, r = need.sizes, need.sizes.recipe, need.sizes.size, float(need.sizes.width)
    held_out, widths = recipe.text.validation_tokens, [shape.width * sizes.kept for shape in sizes.shapes]
    everything = recipe.refit.tokens + held_out
    # The smaller stream once for the inputs of each module and once to advance.
    need.run(everything)
    need.run(everything, sizes.kept, blocks=2)
    # Without the fit and with each strength but the whole one, whose stream exists; dense logits each time.
    compared = len(STRENGTHS) * held_out
    need.run(compared, sizes.kept, heads=2)
    need.tokens = everything + compared
    for d in widths:
        need.multiply("float32", everything * (2 * d * d + 2 * d * r))
        # Every process solves for the same weights.
        need.multiply("float64", need.processes * len(RIDGES) * (d**3 / 3 + 4 * d * d * r))
    own, d = everything / need.processes, max(widths)
    need.held = {"residual streams, dense, smaller and target": 4.0 * own * r * size} | largest(
        a_pass(sizes, 2 + 2 * sizes.kept) | {"moments of one module": (2 * d * d + d * r) * 4 + d * d * 16},
        {
            "heads: dense, smaller": 2.0 * sizes.vocabulary * r * size,
            "logits of one piece": float(HEAD_TOKENS * sizes.vocabulary * (4 + 2 * size)),
        },
    )
    need.read, need.disk = float((sizes.params + sizes.small) * sizes.saved), sum(r * d * 4 for d in widths)


def evaluate(need: StageNeed) -> None:
    """Every model on evaluation text, timed passes, and continuations, of which each token reads all weights.

    In memory are a block and a head while models are read, then whole models where two fit into half of the memory.
    """
    sizes, recipe = need.sizes, need.sizes.recipe
    tokens, length = recipe.text.evaluation_tokens, recipe.text.sequence_length
    copied = number_of_lists(tokens) * (2 * sum(LIST_LENGTHS) + sum(2 * n + gap for n, gap in PASSAGES))
    # The first process times the models while the others wait: a warm-up, and one round more.
    timed = 2 * length * need.processes
    prompts = speed.prompts_for(None, recipe.evaluation.prompts)
    decoded = need.processes * (speed.WARM_TOKENS + speed.NEW_TOKENS * (1 + len(prompts)))
    # Uniform, searched, refitted, recovered.
    smaller = 2 + bool(recipe.refit.tokens) + bool(recipe.recovery.tokens)
    for kept, models in ((1.0, 1), (sizes.kept, smaller)):
        need.run(models * (tokens + timed), kept, heads=1)
        need.run(models * copied, kept)
        need.run(models * decoded, kept, batch=1)
    need.tokens = tokens * (1 + smaller)
    head = float(sizes.vocabulary * sizes.width * sizes.size)
    reading = a_pass(sizes, 2) | {"heads": 2 * head, "logits of one piece": 16.0 * PIECE * sizes.vocabulary}
    reading |= streams(need, tokens * sizes.width * (1 + smaller))
    whole, room = (sizes.params + sizes.small) * sizes.size, need.room / 2
    timing: Items = {}
    if whole <= room:
        timing = {"whole models": min(float((sizes.params + smaller * sizes.small) * sizes.size), room)}
        if not need.device.is_cpu:
            in_float32 = recipe.refit.tokens and recipe.recovery.tokens
            need.ram["a model while it is loaded"] = float(sizes.small * (4 if in_float32 else sizes.saved))
    need.held = largest(reading, timing)
    # Two of the smaller models are stitched from the database: the evaluated uniform one, and the result.
    need.read = (sizes.params + smaller * sizes.small) * sizes.saved + database_bytes(sizes)
    need.disk = 2.0 * sizes.small * sizes.saved
