"""Needs of recovery: forward and backward passes of the smaller model, forward passes of the dense one, AdamW.

Letters: P trained parameters, v vocabulary, m residual width.
"""

from __future__ import annotations

from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Item, StageNeed
from darwinlm.recovery.checkpoints import KEPT
from darwinlm.recovery.heads import LOGIT_CHUNK

TOKENISED = 4e5
"""Tokens that one process reads, tokenises and packs per second; see docs/notebook/speed.md."""

LOSS_BYTES = 120
"""Bytes moved per logit in training: log-softmax of both models in float32, KL and its gradient."""

UPDATE_BYTES = 60
"""Bytes moved per parameter in a step: gradient norm and clipping, AdamW's two moments, the weight, zeroing."""

MICRO_BYTES = 18
"""Bytes moved per parameter for each accumulation of gradients: its copy in bfloat16, and the sum."""

LOGIT_BYTES = 30
"""Peak bytes per logit: logits of both models, their float32 log-softmax, and gradients."""


def recovery_need(sizes: Sizes) -> StageNeed:
    """Needs of training by the section `recovery` of the recipe."""
    settings = sizes.recipe.recovery
    length = settings.sequence_length or sizes.recipe.text.sequence_length
    micro = min(max(sizes.recipe.compute.batch_tokens, length), settings.batch_tokens, settings.tokens)
    tokens, small = float(settings.tokens), sizes.kept_blocks[1] + sizes.outside
    distils = settings.distillation > 0
    need = StageNeed("recover", tokens, kind=_kind(sizes), processes=sizes.processes)

    # Forward, backward (twice as much), and recomputation of blocks with checkpointing. The head keeps no activations:
    # each piece of its logits is differentiated at once, or recomputed with sharded weights.
    whole_head = settings.embeddings and not settings.lora_rank
    heads = 2 + whole_head + (_shards(sizes) > 1)
    again = 1 if settings.gradient_checkpointing else 0
    need.passes = tokens * ((3 + again) * sizes.kept * sizes.forward + heads * sizes.head)
    unique_tokens = tokens / settings.epochs if settings.teacher_cache else tokens
    if distils:
        logits = (0 if not settings.distillation else 1 if settings.teacher_cache else 2) * sizes.head
        need.passes += unique_tokens * (sizes.forward + logits)
    evaluations = 2 + settings.tokens // settings.evaluate_every
    held_out = evaluations * sizes.recipe.text.validation_tokens
    need.passes += held_out * (sizes.kept * sizes.forward + sizes.head)
    need.passes += held_out * (sizes.forward + sizes.head) if distils else 0

    trained = float(small if settings.embeddings else small - sizes.outside + sizes.width)
    if settings.lora_rank:
        trained = adapters(sizes, settings.lora_rank)
    steps, micros = tokens / min(settings.batch_tokens, settings.tokens), tokens / micro
    need.moved = (
        tokens * sizes.vocabulary * float(LOSS_BYTES) + steps * trained * UPDATE_BYTES + micros * small * MICRO_BYTES
    )
    blocks = sizes.checkpoint.n_blocks
    need.calls = micros * blocks * ((3 + again) + (1 if distils else 0))
    need.host = tokens / settings.epochs / TOKENISED
    _memory(sizes, need, micro, trained)
    return need


def _kind(sizes: Sizes) -> str:
    return "float32" if sizes.recipe.compute.dtype == "float32" else "bfloat16"


def _shards(sizes: Sizes) -> int:
    return sizes.processes if sizes.recipe.recovery.sharding == "fsdp" else 1


def _memory(sizes: Sizes, need: StageNeed, micro: int, trained: float) -> None:
    settings = sizes.recipe.recovery
    small = sizes.kept_blocks[1] + sizes.outside
    size = 2 if _kind(sizes) == "bfloat16" else 4
    shards = _shards(sizes)
    distils = settings.distillation > 0
    # Fused AdamW needs no copies, and DDP's buckets are the gradients.
    need.device = [
        Item("weights of the smaller model, float32", 4.0 * small / shards),
        Item("gradients", 4.0 * trained / shards),
        Item("AdamW's two moments", 8.0 * trained / shards),
    ]
    if size == 2:
        once = sizes.kept * (sizes.blocks if shards == 1 else sizes.block)
        need.device.append(Item("its weights in bfloat16", 2.0 * (once + sizes.outside)))
    if settings.embeddings and not settings.lora_rank and shards == 1:
        # Without tying it exists besides the accumulated gradients until the end of the backward pass.
        need.device.append(Item("gradient of the head", 4.0 * sizes.vocabulary * sizes.width))
    if distils:
        need.device.append(Item("dense model", float((sizes.blocks / shards + sizes.outside) * size)))
    need.device += [
        Item(
            "activations of the backward pass",
            micro * saved(sizes, size, 4, checkpointing=settings.gradient_checkpointing),
            "compute.batch_tokens",
            micro,
            least=settings.sequence_length or sizes.recipe.text.sequence_length,
        ),
        Item("logits of one piece", float(min(LOGIT_CHUNK, micro) * sizes.vocabulary * LOGIT_BYTES)),
    ]
    need.ram = [Item("both models during loading", 4.0 * small + (sizes.params * size if distils else 0))]
    packed = settings.tokens / settings.epochs * (2 if sizes.vocabulary <= 1 << 16 else 4)
    need.scratch = Item("checkpoints", (KEPT + 1) * 12.0 * trained + packed)
    stored = 0.0
    if settings.teacher_cache and settings.top_k:
        pair = 4 if sizes.vocabulary <= 1 << 16 else 6
        stored = settings.tokens / settings.epochs * (settings.top_k * pair + 4.0)
    need.disk = stored + 4.0 * small


def saved(sizes: Sizes, size: int, residual: int, *, checkpointing: bool = False, kept: float | None = None) -> float:
    """Bytes per token that the smaller model saves for the backward pass.

    A block saves the inputs of its two norms, their results, and these in the type of the products. It also saves
    queries, keys and values of every head, the output of attention, and four widths of its MLP. With checkpointing,
    only the stream between blocks is saved, and the activations of one block at a time.

    Args:
        sizes: Sizes of the dense model.
        size: Bytes per element in products.
        residual: Bytes per element of the residual stream.
        checkpointing: Whether blocks are recomputed in the backward pass.
        kept: Share of the widths; None uses that of the budget.
    """
    inside = 0.0
    for shape in sizes.shapes:
        width = shape.width * (sizes.kept if kept is None else kept)
        if shape.kind == "mlp":
            experts = getattr(sizes.checkpoint.config, "num_experts_per_tok", 1) if shape.experts else 1
            inside += 4 * size * width * experts
        else:
            inside += 4 * size * width
    stream = sizes.depth * sizes.width * (2.0 * residual + 2 * 4 + 2 * size)
    if checkpointing:
        return sizes.depth * sizes.width * residual + (stream + inside) / sizes.depth
    return stream + inside


def adapters(sizes: Sizes, rank: int) -> float:
    """Number of parameters of low-rank adapters on every projection of the smaller model."""
    total = 0.0
    for shape in sizes.shapes:
        width = shape.width * sizes.kept
        if shape.kind == "mlp":
            total += max(shape.experts, 1) * 3 * rank * (width + sizes.width)
        else:
            narrow = shape.groups * shape.head_dim * sizes.kept
            total += 2 * rank * (width + sizes.width) + 2 * rank * (narrow + sizes.width)
    return total
