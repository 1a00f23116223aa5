"""Needs of a search for the training of its candidates (`search/evaluate/training.py`)."""

from __future__ import annotations

from darwinlm.planning.devices import Device
from darwinlm.planning.model import Sizes
from darwinlm.planning.need import RESERVE, Item, StageNeed
from darwinlm.planning.training import LOSS_BYTES, UPDATE_BYTES, adapters, saved
from darwinlm.search.evaluate.dense_side import LOGIT_TOKENS
from darwinlm.search.evaluate.student import PART
from darwinlm.search.evaluate.training import HOST_SHARE, LOGIT_BYTES

STATE_BYTES = 12
"""Bytes of one weight's state: float32 master weight, AdamW's two moments."""

TRANSFER = 25e9
"""Bytes per second between a GPU and pinned memory; our choice, reached by PCI Express 4 with 16 lanes."""


def train_candidates(sizes: Sizes, need: StageNeed, size: int, device: Device, ram: float | None) -> list[Item]:
    """Add tokens, operations and main memory; return the items on the device in addition to model and caches.

    Args:
        sizes: Sizes of model and recipe.
        need: Needs of the search.
        size: Bytes of a number in passes.
        device: Device; candidates of a round train together on a CPU, and one at a time elsewhere.
        ram: Bytes of the machine's memory; None means room for all waiting states.
    """
    settings, recipe = sizes.recipe.search, sizes.recipe.search.training
    small = sizes.kept * sizes.blocks
    trained = adapters(sizes, recipe.lora_rank) if recipe.lora_rank else small
    state = STATE_BYTES * trained
    learning = [count + 1 for count in (settings.offspring, *(stage.survivors for stage in settings.stages[:-1]))]
    most = max(learning[1:], default=0)
    room = most if ram is None else int(HOST_SHARE * ram / sizes.processes // state) * sizes.processes
    waiting = 0 if device.is_cpu else min(most, room)
    tokens, again, moves, learnt = 0.0, 0.0, 0.0, 0
    for number, (count, stage) in enumerate(zip(learning, settings.stages, strict=True)):
        tokens += count * stage.training_tokens
        if number and not device.is_cpu:
            again += max(count - waiting, 0) * learnt
            moves += 2 * min(count, waiting)
        learnt += stage.training_tokens
    text = float(learnt)
    read = settings.generations * (tokens + again)
    need.tokens += read
    # Forward and backward pass; on a GPU the inside of blocks and the dense model's logits once more.
    runs, heads = (3, 2) if device.is_cpu else (4, 3)
    need.passes += read * (runs * sizes.kept * sizes.forward + heads * sizes.head) + text * sizes.forward
    if device.is_cpu:
        need.passes += settings.generations * text * sizes.head
    piece = max(LOGIT_TOKENS, sizes.recipe.text.sequence_length)
    updates = read / max(recipe.batch_tokens, sizes.recipe.text.sequence_length)
    need.moved += read * sizes.vocabulary * LOSS_BYTES / 2 + updates * trained * UPDATE_BYTES
    need.calls += runs * read / piece * sizes.depth
    need.host += settings.generations * moves * state / TRANSFER / sizes.processes
    logits = Item("logits of training", float(LOGIT_BYTES * LOGIT_TOKENS * sizes.vocabulary))
    stream = Item("dense model's stream of the training text", text * sizes.width * size)
    # Weights and gradients in the type of the passes, float32 weights and AdamW's two moments.
    each = (12.0 + 2 * size) * trained + (size * small if recipe.lora_rank else 0)
    if device.is_cpu:
        here = -(-learning[0] // sizes.processes)
        activations = Item("activations of the backward pass", piece * saved(sizes, size, size))
        return [Item(f"{here} candidates in training", here * each), activations, logits, stream]
    need.ram.append(stream)
    if waiting:
        here = -(-waiting // sizes.processes)
        need.ram.append(Item(f"states of {here} candidates that wait", here * state))
    need.note = _note(waiting, most, state, again / tokens)
    return [
        Item("one candidate in training", each),
        Item("float32 gradients of a part of it", 4.0 * min(PART, trained)),
        Item("activations of the backward pass", piece * saved(sizes, size, size, checkpointing=True)),
        logits,
    ]


def _note(waiting: int, most: int, state: float, again: float) -> str:
    if not most:
        return ""
    found = f"search: states of {waiting} of the {most} candidates that wait stay in RAM, {state / 1e9:.3g} GB each"
    return f"{found}; the others learn their text again, {again:.0%} more tokens in training" if again else found


def without_blocks(sizes: Sizes, need: StageNeed, size: int, device: Device) -> None:
    """Move the dense model's blocks to main memory if the search doesn't fit beside them."""
    full = not device.is_cpu and not sizes.recipe.search.training.lora_rank
    if full and need.device_bytes(device) > RESERVE * device.memory:
        need.device[0] = Item("dense model without its blocks", float(sizes.outside * size))
        need.ram.append(Item("blocks of the dense model", float(sizes.blocks * size)))
