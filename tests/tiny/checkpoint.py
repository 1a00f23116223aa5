"""Tiny checkpoints and texts on disk, as a user would have them."""

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk.stream import BlockStream
from tests.tiny.models import tiny_model
from tests.tiny.tokenizer import tiny_tokenizer

SENTENCE = (
    "river stone light winter garden engine paper bridge music silver forest window harbour letter copper morning "
    "runs holds turns keeps under over beside without because slowly quickly and the a of to"
)
WORDS = SENTENCE.split()

SETTINGS = (
    "text.sequence_length=32",
    "text.calibration_tokens=1024",
    "text.evaluation_tokens=256",
    "refit.tokens=1024",
    "compute.dtype=float32",
    "compute.batch_tokens=256",
    "units.mlp_multiple=8",
    "budget.tolerance=0.05",
    "search.generations=3",
    "search.offspring=4",
    "search.rounds=[{tokens: 64, survivors: 2}, {tokens: 256, survivors: 1}]",
)
"""A recipe that runs in seconds."""


def tiny_checkpoint(folder: Path, model_type: str = "llama", **overrides: Any) -> Path:
    """Save a tiny random model and a byte-level tokenizer; returns the folder."""
    tiny_model(model_type, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def stream_over(model: Path | Checkpoint, tokens: Tensor, batch_tokens: int, **more: Any) -> BlockStream:
    """A model's blocks over tokens [n, t], on the CPU, in float32 unless `more` says otherwise."""
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.open(model)
    settings: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu"), **more}
    return BlockStream(checkpoint, tokens, batch_tokens=batch_tokens, **settings)


def tiny_text(path: Path, documents: int = 120, seed: int = 0) -> Path:
    """Write a text file of random sentences; returns its path."""
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) + "." for _ in range(documents)]
    path.write_text("\n\n\n".join(made), encoding="utf-8")
    return path


def run_through(stream: BlockStream) -> None:
    """Move a stream through all blocks."""
    for block in stream.walk():
        stream.run(block)
