"""Stages that train: candidates of the search, and recovery."""

from __future__ import annotations

from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Items, StageNeed, largest
from darwinlm.recovery.cache import bytes_per_token
from darwinlm.recovery.checkpoints import KEPT
from darwinlm.recovery.model import LOGIT_CHUNK
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS
from darwinlm.search.evaluate.training import LOGIT_BYTES, STEP_TOKENS

UPDATE_BYTES = 60
"""Bytes moved per parameter in a step: gradient norm and clipping, AdamW's two moments, the weight, zeroing."""

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
    matrices = (size for shape in sizes.shapes for size in shape.tensors.values() if len(size) == 2)
    # One side of each is the residual stream, which keeps its width.
    return rank * sum(sizes.width + sizes.kept * (sum(size) - sizes.width) for size in matrices)


def update(need: StageNeed, steps: float, weights: float) -> None:
    """Add steps of an optimiser."""
    need.times["updates"] += steps * weights * UPDATE_BYTES / need.device.bandwidth


def train_candidates(need: StageNeed, passing: Items) -> Items:
    """Training of candidates (`search/evaluate/training.py`), together on a CPU, and one at a time elsewhere.

    States of candidates that survive a round wait in free main memory. Those that find no room there repeat their
    training, which takes about as long as the transfers. Returns what is in memory at once: the items of an evaluation,
    `passing`, or those of a backward pass, or both.
    """
    sizes, settings, length = need.sizes, need.sizes.recipe.search, need.sizes.recipe.text.sequence_length
    rank, on_cpu, learnt = settings.training.lora_rank, need.device.is_cpu, settings.training_needed
    weights = trained(sizes, rank)
    # The parent learns in every round too.
    learning = [count + 1 for count in (settings.offspring, *(stage.survivors for stage in settings.stages[:-1]))]
    rounds = zip(learning, settings.stages, strict=True)
    read = settings.generations * sum(count * stage.training_tokens for count, stage in rounds)
    # Forward and backward pass; on a GPU the inside of blocks and the dense model's logits once more.
    piece = max(LOGIT_TOKENS, length)
    need.run(read, sizes.kept, blocks=3 if on_cpu else 4, heads=2 if on_cpu else 3, batch=piece)
    need.run(learnt)
    need.tokens += read
    update(need, read / max(STEP_TOKENS, length), weights)
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
        need.times["transfers"] += settings.generations * 2 * sum(learning[1:]) * state / TRANSFER
        need.note = (
            f"search: states of up to {learning[1]} candidates wait in free RAM, {state / 1e9:.3g} GB each; those "
            "without room repeat their training"
        )
    need.held["one candidate in training"] = own
    # Its own passes come after its gradients are gone.
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
    micro = min(sizes.pass_tokens, settings.step_tokens)
    count = need.processes if settings.sharding == "fsdp" else 1
    whole_head = settings.trains_embeddings and not settings.lora_rank
    weights = small if whole_head else trained(sizes, settings.lora_rank)
    # The head keeps no activations: each piece of its logits is differentiated at once, or recomputed when sharded.
    heads, blocks = 2 + whole_head + (count > 1), 3 + settings.gradient_checkpointing
    need.run(tokens, sizes.kept, blocks=blocks, heads=heads, batch=micro)
    evaluated = held_out * (2 + settings.tokens // settings.save_every)
    need.run(evaluated, sizes.kept, heads=1)
    if distils:  # on validation text, the dense model's streams are kept
        cached = settings.teacher_cache is not None
        need.run(unique if cached else tokens, heads=1 if cached else 2, batch=micro)
        need.run(held_out)
        need.run(evaluated, blocks=0, heads=1)
    need.tokens = tokens
    update(need, tokens / max(settings.step_tokens, 1), weights)
    need.held = {
        "weights of the smaller model, float32": 4.0 * small / count,
        "gradients": 4.0 * weights / count,
        "AdamW's two moments": 8.0 * weights / count,
        "activations of the backward pass": micro * sizes.activations(4 if settings.gradient_checkpointing else 0),
        "logits of one piece": float(min(LOGIT_CHUNK, micro) * sizes.vocabulary * RECOVERY_LOGIT_BYTES),
    }
    if size == 2:
        once = sizes.kept * (sizes.blocks if count == 1 else sizes.block)
        need.held["its weights in bfloat16"] = 2.0 * (once + sizes.outside)
    if distils:
        need.held["dense model"] = (sizes.blocks / count + sizes.outside) * size
    need.ram["both models during loading"] = 4.0 * small + (sizes.params * size if distils else 0)
    text = unique * (4 if sizes.vocabulary > 1 << 16 else 2)
    # One checkpoint more is being written.
    need.scratch = (KEPT + 1) * STATE_BYTES * weights + text
    need.disk = 4.0 * small + (unique * bytes_per_token(sizes.vocabulary) if settings.teacher_cache else 0)
    need.read = text + (small + (sizes.params if distils else 0)) * sizes.saved
