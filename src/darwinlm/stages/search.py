"""Search: the stage that finds the allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darwinlm.database import store
from darwinlm.execution.stage import Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.needs.need import Items, Need, largest
from darwinlm.needs.training import STATE_BYTES, add_updates, trained
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import size
from darwinlm.runtime.artifact import StageFolder, read_json, write_json
from darwinlm.search.evaluate import modules
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS, head_bytes
from darwinlm.search.evaluate.fitness import CPU_TOKENS
from darwinlm.search.evaluate.training import LOGIT_BYTES, STEP_TOKENS
from darwinlm.search.evolve import evolution
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation
from darwinlm.search.search import BLOCKS, PRODUCTS, search
from darwinlm.stages.database import PruningDatabase, database_bytes
from darwinlm.streaming.decoder import Decoder
from darwinlm.streaming.hidden import STREAMS
from darwinlm.streaming.streamed import SHARE, StreamedDecoder
from darwinlm.text import TokenSequences

RESULT = "result.json"

REUSED = 0.55
"""Average share of the blocks that a candidate of the level switch runs, from its first changed block on, which lies
anywhere. Our estimate, 2026-11-24."""

CONFIRMED = 1.5
"""Average number of children that are evaluated on the whole text; at most two. Our estimate, 2026-11-25."""

CACHES = 1 << 30
"""Bytes for modules, and half of those for factors, while candidates are trained; in a run they use what is free."""


@dataclass(frozen=True)
class SearchResult:
    """Best allocation, best uniform one at the same budget, and the record: start, history and figures."""

    stage: StageFolder
    allocation: Allocation
    uniform: Allocation
    record: dict[str, Any]


def _search(
    task: Task,
    dense: Checkpoint,
    database: PruningDatabase,
    plan: Problem,
    fitness: TokenSequences,
    training: TokenSequences | None,
    neighbour: Allocation | None,
) -> None:
    """Find the allocation, from the `neighbour` at another budget with the same database if that is better."""
    context = task.context
    texts = {"fitness": fitness.tokens} | ({} if training is None else {"training": training.tokens})
    model: Decoder
    if task.recipe.search.training_needed:  # candidates in training are whole models
        model = Decoder(dense.load(context.dtype, context.device), dense.family)
    else:
        model = StreamedDecoder(dense, fitness.tokens, dtype=context.dtype, device=context.device)
    result = search(
        model,
        database.reader,
        plan,
        texts,
        task.recipe.search,
        task.folder,
        context.reporter,
        batch_tokens=context.batch_tokens,
        neighbour=neighbour,
    )
    parallel.in_main(write_json, task.folder / RESULT, result)


def _need(need: Need) -> None:
    """Candidates on fitness text, the dense model's side, gradients at new best allocations, candidates' training.

    In memory are the head, the present and the next block with a candidate's modules, and a module's factors with the
    products of its slopes. Blocks that don't stay are read again for every walk. With training there is the whole
    dense model, and one candidate in training, or all of them on a CPU.
    """
    sizes, settings = need.sizes, need.sizes.recipe.search
    guided, training = settings.method == "gradient", settings.training_needed
    fitness = sizes.whole(settings.fitness_needed)
    _evaluations(need, fitness)
    capped = getattr(sizes.checkpoint.config, "final_logit_softcapping", None)
    need.held = {"dense model's distributions": 4.0 * fitness * (sizes.vocabulary if capped else sizes.width)}
    stream, widest = float(fitness * sizes.width * sizes.size), max(shape.width for shape in sizes.shapes)
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
            "factors of one module": 4.0 * widest * (widest + PRODUCTS * sizes.width),
        }
    passing = need.a_pass(backward=guided) | {"logits": float(head_bytes(sizes.vocabulary, on_cpu=need.on_cpu))}
    need.files(sizes.params * sizes.saved + database_bytes(sizes))
    need.bound = 60 * settings.minutes if settings.minutes is not None else need.bound
    need.held |= _training(need, passing) if training else passing
    if not training:
        free = max(need.room - need.device_bytes, 0)
        _recomputed(need, free)
        staying = SHARE * free
        walks = settings.generations * (len(settings.rounds) + 2 * guided)
        need.add("disk" if need.on_cpu else "transfers", walks * max(sizes.blocks * sizes.size - staying, 0))


def _recomputed(need: Need, free: float) -> None:
    """Modules that are computed again for each walk, and targets of factors that have no room in so much memory."""
    sizes, settings = need.sizes, need.sizes.recipe.search
    columns = sum(shape.width for shape in sizes.shapes)
    squares = sum(float(shape.width) ** 2 for shape in sizes.shapes)
    walks = settings.generations * (len(settings.rounds) + 2 * (settings.method == "gradient"))
    outputs = max(sizes.kept * columns * sizes.width * sizes.size, 1)
    again = walks * max(1 - modules.SHARE * free / outputs, 0)
    need.add("solves", again * squares * sizes.kept**2 * sizes.width)
    gone = max(1 - store.DEVICE_SHARE * free / (4.0 * (squares + columns * sizes.width)), 0)
    if need.on_cpu:  # which keeps them in files
        targets = gone * 4.0 * columns * sizes.width
        need.scratch += need.processes * targets
        need.add("disk", (1 + again + 2 * settings.generations) * targets)
    times = 1 if need.on_cpu else again + 2 * settings.generations
    need.add("solves", gone * times * squares * sizes.width)


def _evaluations(need: Need, fitness: int) -> None:
    sizes, settings = need.sizes, need.sizes.recipe.search
    guided, times = settings.method == "gradient", settings.generations
    cut = [module for module in sizes.space.modules if len(module.levels) > 1]
    window = sizes.whole(settings.rounds[0].tokens)
    # All uniform models on a quarter of the tokens, the best three on the others.
    uniform = max((len(module.levels) for module in cut if module.kind == "attention"), default=1)
    quarter = sizes.whole(window // 4)
    evaluated = float(uniform * quarter + min(uniform, 3) * (window - quarter))
    # One child is solved for each strength; the level switch adds children after two without improvement.
    first = count = float(min(len(evolution.STRENGTHS), settings.offspring) if guided else settings.offspring)
    before = 0
    for each in settings.rounds:
        # Losses of earlier rounds are stored by sequence, so only new text is run, unless candidates are trained.
        evaluated += times * count * (sizes.whole(each.tokens) - (0 if each.training_tokens else before))
        count, before = min(each.survivors, CONFIRMED) if guided else each.survivors, sizes.whole(each.tokens)
    # Solved children move most modules, so they share few blocks with their parent.
    batch = min(window, sizes.pass_tokens)
    need.run(evaluated, sizes.kept, blocks=1 if guided else REUSED, heads=1, batch=batch)
    need.run(fitness, heads=1)
    need.tokens = evaluated + fitness
    if guided:
        need.run(times * window, sizes.kept, blocks=3, heads=3, kind="training")
        need.tokens += times * window
        # Products of a module's gradients with inputs or targets, and one triangular solve for all of its widths.
        piece = min(window, sizes.pass_tokens, CPU_TOKENS if need.on_cpu else window)
        rows = window / piece * min(piece, sizes.width)
        solves = sum(2.0 * window * shape.width * sizes.width + rows * shape.width**2 for shape in sizes.shapes)
        need.add("solves", times * solves)
    changed = times * (2 * len(cut) if guided else first * 3)
    squares = sum(float(shape.width) ** 2 for shape in sizes.shapes) / len(sizes.shapes)
    need.add("solves", changed * squares * sizes.kept**2 * sizes.width)


def _training(need: Need, passing: Items) -> Items:
    """Training of candidates (`search/evaluate/training.py`), together on a CPU, and one at a time elsewhere.

    States of candidates that survive a round wait in free main memory. Those that find no room there repeat their
    training, which takes about as long as the transfers. Returns what is in memory at once: the items of an evaluation,
    `passing`, or those of a backward pass, or both.
    """
    sizes, settings, length = need.sizes, need.sizes.recipe.search, need.sizes.recipe.text.sequence_length
    rank, on_cpu, learnt = settings.training.lora_rank, need.on_cpu, settings.training_needed
    weights = trained(sizes, rank)
    # The parent learns in every round too.
    learning = [count + 1 for count in (settings.offspring, *(each.survivors for each in settings.rounds[:-1]))]
    rounds = zip(learning, settings.rounds, strict=True)
    read = settings.generations * sum(count * each.training_tokens for count, each in rounds)
    # Forward and backward pass; on a GPU the inside of blocks and the dense model's logits once more.
    piece = max(LOGIT_TOKENS, length)
    need.run(read, sizes.kept, blocks=3 if on_cpu else 4, heads=2 if on_cpu else 3, batch=piece, kind="training")
    need.run(learnt)
    need.tokens += read
    add_updates(need, read / max(STEP_TOKENS, length), weights)
    # Weights and gradients in the type of the passes, and the state.
    own = (STATE_BYTES + 2.0 * sizes.size) * weights + (sizes.size * sizes.kept * sizes.blocks if rank else 0)
    back = {
        "activations of the backward pass": piece * sizes.activations(0 if on_cpu else sizes.size),
        "logits of training": float(LOGIT_BYTES * LOGIT_TOKENS * sizes.vocabulary),
    }
    text = {"dense model's stream of the training text": float(learnt * sizes.width * sizes.size)}
    if on_cpu:
        need.run(settings.generations * learnt, blocks=0, heads=1)
        here = -(-(settings.offspring + 1) // need.processes)
        need.held[f"{here} candidates in training"] = here * own
        return passing | back | text
    need.ram |= text
    if len(learning) > 1:
        state = STATE_BYTES * weights
        need.add("transfers", settings.generations * 2 * sum(learning[1:]) * state)
        need.note = (
            f"search: states of up to {learning[1]} candidates wait in free RAM, {size(state)} each; "
            "those without room repeat their training"
        )
    need.held["one candidate in training"] = own
    # Its own passes come after its gradients are gone.
    at_once = largest(passing, back)
    if not rank and need.device_bytes + sum(at_once.values()) > need.room:
        need.held["dense model"] = float(sizes.outside * sizes.size)
        need.ram["blocks of the dense model"] = float(sizes.blocks * sizes.size)
    return at_once


def _read(task: Task) -> SearchResult:
    result = read_json(task.folder / RESULT)
    return SearchResult(task.stage, tuple(result["allocation"]), tuple(result["uniform"]), result["record"])


SEARCH = Stage(
    "search",
    _read,
    work=_search,
    version=13,
    writes="the allocation, and the history of the search",
    settings=("search",),
    arithmetic=True,
    together=True,
    need=_need,
)
"""One level for every module."""
