"""What every stage does: how many tokens pass through which model how often, and products besides.

Bytes moved per logit or parameter count each read and write of a float32 number in the code that is named; measured
stages agree (docs/notebook/speed.md, 2026-11-24).
"""

from __future__ import annotations

import math

from darwinlm.database.elimination import COMPACT_SHARE
from darwinlm.database.order import BLOCK
from darwinlm.evaluation import speed
from darwinlm.evaluation.looking_back import LIST_LENGTHS, PASSAGES, number_of_lists
from darwinlm.families.shapes import ModuleShape
from darwinlm.planning import memory
from darwinlm.planning.need import StageNeed
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS
from darwinlm.search.evaluate.training import STEP_TOKENS
from darwinlm.search.evolve import evolution
from darwinlm.stages.database import gradient_tokens
from darwinlm.stages.refit import STRENGTHS
from darwinlm.surgery.refit import RIDGES

REUSED = 0.55
"""Average share of the blocks that a candidate of the level switch runs, from its first changed block on, which lies
anywhere. Our estimate, 2026-11-24."""

IMPROVED = 0.5
"""Share of generations of the level switch that find a better allocation, whose block inputs are then recomputed. Our
estimate, 2026-11-24."""

CONFIRMED = 1.5
"""Average number of children that are evaluated on the whole text; at most two. Our estimate, 2026-11-25."""

ORDER = 8.0
"""Operations of a removal order in units of d³: an inverse (2), and updates of two shrinking matrices (2 · 3)."""

RECORDING = 30
"""Steps that take as long as recording one as a CUDA graph. Our estimate, 2026-11-27."""

KL_BYTES = 40
"""Bytes moved per logit of an evaluation: written, read as float32, exponentiated, multiplied with the dense one's."""

NORMALISER_BYTES = 12
"""The same if only the log-sum-exp is computed, for one part of the vocabulary at a time (`dense_side.py`)."""

GRADIENT_BYTES = 60
"""The same in training: log-softmax, loss and gradient (`chunked_loss`); twice of it with a dense model beside it."""

UPDATE_BYTES = 60
"""Bytes moved per parameter in a step: gradient norm and clipping, AdamW's two moments, the weight, zeroing."""

MICRO_BYTES = 18
"""Bytes moved per parameter for each accumulation of gradients: its copy in bfloat16, and the sum."""

TOKENISED = 4e5
"""Tokens that one core reads, tokenises and packs per second. Measured 2026-11-24."""

READING = 0.06
"""Share of that time outside the tokenizer, which alone uses all cores. Measured 2026-11-24."""

CORES = 8
"""Cores that tokenise on a machine with a GPU; our choice, 2026-11-27."""

ROUNDS = 2
"""Passes that time a model: a warm-up and one more. Only short ones are repeated (`SPEED_SECONDS`)."""

TRANSFER = 25e9
"""Bytes per second between a GPU and pinned memory; our choice, reached by PCI Express 4 with 16 lanes."""


def saliency(need: StageNeed) -> None:
    """Gradients of the loss at the outputs of modules; weights get none."""
    sizes, recipe = need.sizes, need.sizes.recipe
    need.tokens = sizes.whole(gradient_tokens(recipe.text.calibration_tokens))
    # Forward pass; then again with gradients of the stream.
    need.run(need.tokens, blocks=3, heads=2, logit_bytes=GRADIENT_BYTES)
    need.products["float32"] += 2.0 * need.tokens * sizes.width**2 * len(sizes.shapes)
    need.read = float(sizes.params * sizes.saved)


def database(need: StageNeed) -> None:
    """Second moments of inputs; removal order, Cholesky factor and target of every variant of every module."""
    sizes, r = need.sizes, float(need.sizes.width)
    need.tokens = sizes.recipe.text.calibration_tokens
    need.run(need.tokens)
    for shape in sizes.cut:
        d, orders = float(shape.width), memory.orders_of(sizes, shape)
        need.products["float32"] += 2 * need.tokens * d * d + orders * (ORDER * d**3 + 2 * d * d * r)
        need.products["float64"] += orders * (d**3 / 3 + 2 * d * d * r)
        need.steps += orders * (d / shape.head_dim + (0 if need.device.is_cpu else RECORDING * _recordings(shape)))
    # The checkpoint is hashed and read once.
    need.read = 2.0 * sizes.params * sizes.saved


def _recordings(shape: ModuleShape) -> float:
    """Number of recorded steps of a removal order on a GPU: one whenever its arrays become smaller."""
    if shape.head_dim > 1:
        return 0.0
    return max(math.log(shape.width / BLOCK) / -math.log(1 - COMPACT_SHARE), 0.0) + 1


def search(need: StageNeed) -> None:
    """Candidates on fitness text, the dense model's side, gradients at new best allocations, candidates' training."""
    sizes, settings = need.sizes, need.sizes.recipe.search
    guided, kept, times = settings.method == "gradient", sizes.kept, settings.generations
    kl = NORMALISER_BYTES if sizes.linear_head else KL_BYTES
    cut = [module for module in sizes.space.modules if len(module.levels) > 1]
    window, fitness = sizes.whole(settings.stages[0].tokens), sizes.whole(settings.fitness_needed)
    uniform = max((len(module.levels) for module in cut if module.kind == "attention"), default=1)
    need.run(fitness, heads=1, logit_bytes=kl)
    need.tokens = fitness
    # All uniform models on a quarter of the tokens, the best three on the others.
    quarter = sizes.whole(settings.stages[0].tokens // 4)
    for models, part in ((uniform, quarter), (min(uniform, 3), window - quarter)):
        need.run(part, kept, times=models, heads=1, logit_bytes=kl)
        need.tokens += models * part
    # One child is solved for each strength; the level switch adds children after two without improvement.
    first = count = float(min(len(evolution.STRENGTHS), settings.offspring) if guided else settings.offspring)
    before = 0
    for stage in settings.stages:
        # Losses of earlier rounds are stored by sequence, so only new text is run, unless candidates are trained.
        new = sizes.whole(stage.tokens) - (0 if stage.training_tokens else before)
        # Solved children move most modules, so they share few blocks with their parent.
        run = 1 if guided else REUSED
        need.run(new, kept, times=times * count, blocks=run, heads=1, logit_bytes=kl)
        need.tokens += times * count * new
        count, before = min(stage.survivors, CONFIRMED) if guided else stage.survivors, sizes.whole(stage.tokens)
    if guided:
        tokens = min(window, fitness)
        need.run(tokens, kept, times=times, blocks=3, heads=3)
        need.tokens += times * tokens
        # The product of a module's gradients and inputs, and one triangular solve for all of its widths.
        solves = sum(2.0 * tokens * shape.width + shape.width**2 for shape in sizes.shapes)
        need.products["float32"] += times * solves * sizes.width
    else:
        need.run(before, kept, times=times * IMPROVED)
    changed = times * (2 * len(cut) if guided else first * 3)
    squares = sum(float(shape.width) ** 2 for shape in sizes.shapes) / max(len(sizes.shapes), 1)
    need.products["float64"] += changed * squares * kept**2 * sizes.width
    need.moved += changed * squares * 4 * 3
    need.read = sizes.params * sizes.saved + memory.database_bytes(sizes)
    need.bound = 60 * settings.minutes if settings.minutes is not None else need.bound
    if settings.training_needed:
        _train_candidates(need)


def _train_candidates(need: StageNeed) -> None:
    """Training of candidates (`search/evaluate/training.py`); learnt text is repeated for states that found no room."""
    sizes, settings, recipe = need.sizes, need.sizes.recipe.search, need.sizes.recipe.search.training
    state, on_cpu, length = memory.candidate_state(sizes), need.device.is_cpu, sizes.recipe.text.sequence_length
    learning = [count + 1 for count in (settings.offspring, *(stage.survivors for stage in settings.stages[:-1]))]
    waiting, most = memory.waiting(need), max(learning[1:], default=0)
    tokens, again, moves, learnt = 0.0, 0.0, 0, 0
    for number, (count, stage) in enumerate(zip(learning, settings.stages, strict=True)):
        tokens += count * stage.training_tokens
        if number and not on_cpu:
            again += max(count - waiting, 0) * learnt
            moves += 2 * min(count, waiting)
        learnt += stage.training_tokens
    read = settings.generations * (tokens + again)
    # Forward and backward pass; on a GPU the inside of blocks and the dense model's logits once more.
    blocks, heads = (3, 2) if on_cpu else (4, 3)
    need.run(read, sizes.kept, blocks=blocks, heads=heads, logit_bytes=GRADIENT_BYTES, batch=max(LOGIT_TOKENS, length))
    need.run(learnt)
    if on_cpu:
        need.run(learnt, times=settings.generations, blocks=0, heads=1)
    need.tokens += read
    need.moved += read / max(STEP_TOKENS, length) * memory.trained(sizes, recipe.lora_rank) * UPDATE_BYTES
    need.host += settings.generations * moves * state / TRANSFER / sizes.processes
    if most:
        need.note = f"search: states of {waiting} of the {most} candidates that wait stay in RAM, "
        need.note += f"{state / 1e9:.3g} GB each"
    if again:
        need.note += f"; the others repeat their training, {again / tokens:.0%} more training tokens"


def refit(need: StageNeed) -> None:
    """Both models by block, fits of output projections, comparisons on validation text for the interpolation factor."""
    sizes, recipe = need.sizes, need.sizes.recipe
    held_out, strengths = recipe.text.validation_tokens, {0.0, *STRENGTHS}
    everything = recipe.refit.tokens + held_out
    # The smaller stream once for the inputs of each module and once to advance.
    need.run(everything)
    need.run(everything, sizes.kept, blocks=2)
    # The stream of the fitted weights exists already; each comparison recomputes the dense model's logits.
    again = len(strengths - {1.0})
    need.run(held_out, sizes.kept, times=again)
    need.run(held_out, times=len(strengths), blocks=0, heads=2)
    need.tokens = everything + again * held_out
    for shape in sizes.shapes:
        d, r = shape.width * sizes.kept, float(sizes.width)
        need.products["float32"] += everything * (2 * d * d + 2 * d * r)
        # Every process solves for the same weights.
        need.products["float64"] += need.processes * len(RIDGES) * (d**3 / 3 + 4 * d * d * r)
    need.read = float((sizes.params + sizes.small) * sizes.saved)


def recover(need: StageNeed) -> None:
    """Training of the smaller model, the dense one beside it, and evaluations."""
    sizes, recipe = need.sizes, need.sizes.recipe
    settings, held_out = recipe.recovery, recipe.text.validation_tokens
    tokens, distils, micro = float(settings.tokens), settings.distillation > 0, memory.micro_tokens(sizes)
    # The head keeps no activations: each piece of its logits is differentiated at once, or recomputed when sharded.
    whole_head = settings.embeddings and not settings.lora_rank
    heads = 2 + whole_head + (memory.shards(sizes) > 1)
    blocks = 3 + settings.gradient_checkpointing
    need.run(tokens, sizes.kept, blocks=blocks, heads=heads, logit_bytes=2 * GRADIENT_BYTES, batch=micro)
    if distils:
        unique = tokens / settings.epochs if settings.teacher_cache else tokens
        need.run(unique, heads=1 if settings.teacher_cache else 2, batch=micro)
    evaluations = 2 + settings.tokens // settings.save_every
    need.run(held_out, sizes.kept, times=evaluations, heads=1)
    if distils:  # the dense model's streams on this text are kept
        need.run(held_out)
        need.run(held_out, times=evaluations, blocks=0, heads=1)
    need.tokens = tokens
    steps = tokens / min(settings.batch_tokens, settings.tokens)
    need.moved += steps * memory.trained_in_recovery(sizes) * UPDATE_BYTES + tokens / micro * sizes.small * MICRO_BYTES
    several = 1 if need.device.is_cpu else READING + (1 - READING) / CORES
    need.host = tokens / settings.epochs / TOKENISED * several
    text = tokens / settings.epochs * (4 if sizes.vocabulary > 1 << 16 else 2)
    checkpoints = max(tokens / settings.save_every, 1) * memory.STATE_BYTES * memory.trained_in_recovery(sizes)
    need.replaced = text + checkpoints
    need.read = text + (sizes.small + (sizes.params if distils else 0)) * sizes.saved


def _copied(need: StageNeed) -> int:
    """Tokens of the lists and passages whose copying is measured."""
    recipe, length = need.sizes.recipe, need.sizes.recipe.text.sequence_length
    lists = number_of_lists(recipe.text.evaluation_tokens)
    passages = min(lists, recipe.text.evaluation_tokens // length)
    return lists * 2 * sum(LIST_LENGTHS) + passages * sum(2 * n + gap for n, gap in PASSAGES if n + gap < length)


def evaluate(need: StageNeed) -> None:
    """Every model on evaluation text, timed passes, and continuations, of which each token reads all weights."""
    sizes, recipe = need.sizes, need.sizes.recipe
    # The first process times the models while the others wait.
    smaller, runs = memory.smaller_models(recipe), ROUNDS * need.processes
    continued = speed.NEW_TOKENS * (ROUNDS - 1 + len(recipe.evaluation.prompts))
    decoded = need.processes * (speed.WARM_TOKENS + continued)
    for kept, models in ((1.0, 1), (sizes.kept, smaller)):
        need.run(recipe.text.evaluation_tokens, kept, times=models, heads=1, logit_bytes=KL_BYTES)
        need.run(recipe.text.sequence_length, kept, times=models * runs, heads=1)
        need.calls += models * decoded * sizes.depth
        need.run(_copied(need), kept, times=models)
    need.tokens = recipe.text.evaluation_tokens * (1 + smaller)
    need.moved += decoded * memory.model_bytes(sizes, smaller)
    # Two of the smaller models are stitched from the database: the evaluated uniform one, and the result.
    need.read = (sizes.params + smaller * sizes.small) * sizes.saved + memory.database_bytes(sizes)
