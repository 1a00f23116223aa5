"""Checks before a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SAMPLE = "The quick brown fox, 3.14 apples:\n\tif (x != y) { return 'naïve café'; }  Ünïcode — 東京 🙂"


def check_teacher(teacher: Checkpoint, student: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a dense model whose vocabulary or tokens differ from the smaller model's. Raises ModelError."""
    sizes = int(teacher.config.vocab_size), int(student.config.vocab_size)
    if sizes[0] != sizes[1]:
        raise ModelError(
            f"the teacher {teacher.source} has a vocabulary of {sizes[0]}, but {student.source} has one of {sizes[1]}: "
            "distillation needs the model that the smaller one was cut from"
        )
    if _spoken(teacher.tokenizer()) != _spoken(tokenizer):
        raise ModelError(
            f"the tokenizer of the teacher {teacher.source} gives different tokens than that of {student.source}: "
            "distillation needs the model that the smaller one was cut from"
        )


def _spoken(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], list[int]]:
    return tokenizer.get_vocab(), tokenizer(_SAMPLE, add_special_tokens=False)["input_ids"]
