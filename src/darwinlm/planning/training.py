"""Stages that train: candidates of the search, and recovery."""

from __future__ import annotations

from torch import nn

from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Items, StageNeed, largest
from darwinlm.recovery.cache import bytes_per_token
from darwinlm.recovery.checkpoints import KEPT
from darwinlm.recovery.model import LOGIT_CHUNK
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS
from darwinlm.search.evaluate.student import PART
from darwinlm.search.evaluate.training import HOST_SHARE, LOGIT_BYTES, STEP_TOKENS

UPDATE_BYTES = 60
"""Bytes moved per parameter in a step: gradient norm and clipping, AdamW's two moments, the weight, zeroing."""

MICRO_BYTES = 18
"""Bytes moved per parameter for each accumulation of gradients: its copy in bfloat16, and the sum."""

TOKENISED = 2.25e6
"""Tokens that eight cores tokenise and pack per second. One core does 4e5, and 6 % of that time isn't shared, measured
2026-11-24. Eight is our choice; beside training on a CPU this time doesn't count."""

TRANSFER = 25e9
"""Bytes per second between a GPU and pinned memory; our choice, reached by PCI Express 4 with 16 lanes."""

STATE_BYTES = 12
"""Bytes of one weight's state: float32 master weight, AdamW's two moments."""

RECOVERY_LOGIT_BYTES = 30
"""Peak bytes per logit in recovery: logits of both models, their float32 log-softmax, and gradients."""


def trained(sizes: Sizes, rank: int) -> float:
    """Number of trained parameters in the smaller blocks: all, or those of adapters of a rank on every projection."""
    if not rank:
        return sizes.kept * sizes.blocks
    blocks = sizes.skeleton.get_submodule(sizes.checkpoint.family.layers)
    linear = [module for module in blocks.modules() if isinstance(module, nn.Linear)]
    # One side of each is the residual stream, which keeps its width.
    cut = sum(module.in_features + module.out_features - sizes.width for module in linear)
    return rank * (len(linear) * sizes.width + sizes.kept * cut)


def train_candidates(need: StageNeed, passing: Items) -> Items:
    """Training of candidates (`search/evaluate/training.py`), together on a CPU, and one at a time elsewhere.

    States of candidates that survive a round wait in main memory; those that find no room there repeat their training.
    Returns what is in memory at once: the items of an evaluation, `passing`, or those of a backward pass, or both.
    """
    sizes, settings, length = need.sizes, need.sizes.recipe.search, need.sizes.recipe.text.sequence_length
    rank, on_cpu = settings.training.lora_rank, need.device.is_cpu
    weights = trained(sizes, rank)
    state = STATE_BYTES * weights
    learning = [count + 1 for count in (settings.offspring, *(stage.survivors for stage in settings.stages[:-1]))]
    most = waiting = max(learning[1:], default=0)
    if need.machine is not None:
        room = int(HOST_SHARE * need.machine / need.processes // state) * need.processes
        waiting = min(most, room)
    tokens, again, moves, learnt = 0.0, 0.0, 0, 0
    for number, (count, stage) in enumerate(zip(learning, settings.stages, strict=True)):
        tokens += count * stage.training_tokens
        if number and not on_cpu:
            again += max(count - waiting, 0) * learnt
            moves += 2 * min(count, waiting)
        learnt += stage.training_tokens
    read = settings.generations * (tokens + again)
    # Forward and backward pass; on a GPU the inside of blocks and the dense model's logits once more.
    blocks, heads, piece = 3 if on_cpu else 4, 2 if on_cpu else 3, max(LOGIT_TOKENS, length)
    need.run(read, sizes.kept, blocks=blocks, heads=heads, batch=piece)
    need.run(learnt)
    need.tokens += read
    need.move(read / max(STEP_TOKENS, length) * weights * UPDATE_BYTES)
    # Weights and gradients in the type of the passes, and the state.
    own = state + 2.0 * sizes.size * weights + (sizes.size * sizes.kept * sizes.blocks if rank else 0)
    back = {
        "activations of the backward pass": piece * sizes.activations(sizes.kept, checkpointing=not on_cpu),
        "logits of training": float(LOGIT_BYTES * LOGIT_TOKENS * sizes.vocabulary),
    }
    text = {"dense model's stream of the training text": float(learnt * sizes.width * sizes.size)}
    if on_cpu:
        need.run(learnt, times=settings.generations, blocks=0, heads=1)
        here = -(-(settings.offspring + 1) // need.processes)
        need.held[f"{here} candidates in training"] = here * own
        return passing | back | text
    need.ram |= text
    need.host += settings.generations * moves * state / TRANSFER / need.processes
    if here := -(-waiting // need.processes):
        need.ram[f"states of {here} candidates that wait"] = here * state
    if most:
        need.note = f"search: states of {waiting} of the {most} candidates that wait stay in RAM, "
        need.note += f"{state / 1e9:.3g} GB each"
    if again:
        need.note += f"; the others repeat their training, {again / tokens:.0%} more training tokens"
    need.held["one candidate in training"] = own
    # Its own passes come after its gradients are gone.
    back["float32 gradients of a part of it"] = 4.0 * min(PART, weights)
    at_once = largest(passing, back)
    if not rank and need.device_bytes + sum(at_once.values()) > need.room:
        need.held["dense model"] = float(sizes.outside * sizes.size)
        need.ram["blocks of the dense model"] = float(sizes.blocks * sizes.size)
    return at_once


def recover(need: StageNeed) -> None:
    """Training of the smaller model, the dense one beside it, and evaluations.

    In memory are weights, gradients and moments, the dense model, and the activations of one pass. Fused AdamW needs no
    copies.
    """
    sizes, recipe, size, small = need.sizes, need.sizes.recipe, need.sizes.size, float(need.sizes.small)
    settings, held_out, distils = recipe.recovery, recipe.text.validation_tokens, recipe.recovery.distillation > 0
    tokens, unique = float(settings.tokens), settings.tokens / settings.epochs
    micro = min(sizes.pass_tokens, settings.batch_tokens, settings.tokens)
    count = need.processes if settings.sharding == "fsdp" else 1
    whole_head = settings.embeddings and not settings.lora_rank
    weights = float(sizes.small if whole_head else sizes.small - sizes.outside + sizes.width)
    if settings.lora_rank:
        weights = trained(sizes, settings.lora_rank)
    # The head keeps no activations: each piece of its logits is differentiated at once, or recomputed when sharded.
    heads, blocks = 2 + whole_head + (count > 1), 3 + settings.gradient_checkpointing
    need.run(tokens, sizes.kept, blocks=blocks, heads=heads, batch=micro)
    evaluations = 2 + settings.tokens // settings.save_every
    need.run(held_out, sizes.kept, times=evaluations, heads=1)
    if distils:
        cached = settings.teacher_cache is not None
        need.run(unique if cached else tokens, heads=1 if cached else 2, batch=micro)
        need.run(held_out)  # whose streams are kept
        need.run(held_out, times=evaluations, blocks=0, heads=1)
    need.tokens = tokens
    steps = tokens / min(settings.batch_tokens, settings.tokens)
    need.move(steps * weights * UPDATE_BYTES + tokens / micro * small * MICRO_BYTES)
    need.host = unique / TOKENISED
    need.held = {
        "weights of the smaller model, float32": 4.0 * small / count,
        "gradients": 4.0 * weights / count,
        "AdamW's two moments": 8.0 * weights / count,
        "activations of the backward pass": micro
        * sizes.activations(sizes.kept, recovery=True, checkpointing=settings.gradient_checkpointing),
        "logits of one piece": float(min(LOGIT_CHUNK, micro) * sizes.vocabulary * RECOVERY_LOGIT_BYTES),
    }
    if size == 2:
        once = sizes.kept * (sizes.blocks if count == 1 else sizes.block)
        need.held["its weights in bfloat16"] = 2.0 * (once + sizes.outside)
    if whole_head and count == 1:
        # Without tying it exists besides the accumulated gradients until the end of the backward pass.
        need.held["gradient of the head"] = 4.0 * sizes.vocabulary * sizes.width
    if distils:
        need.held["dense model"] = (sizes.blocks / count + sizes.outside) * size
    need.ram["both models during loading"] = 4.0 * small + (sizes.params * size if distils else 0)
    text = unique * (4 if sizes.vocabulary > 1 << 16 else 2)
    # One checkpoint more is being written.
    need.scratch = (KEPT + 1) * STATE_BYTES * weights + text
    need.disk = 4.0 * small + (unique * bytes_per_token(sizes.vocabulary) if settings.teacher_cache else 0)
    need.read = text + (small + (sizes.params if distils else 0)) * sizes.saved
