"""Text to measure any model on, and the tokens that two models share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from darwinlm.formats.opened import Opened
from darwinlm.model.surgery.fewer_tokens import rows_in
from darwinlm.runtime.errors import DataError, ModelError
from darwinlm.steps.text.packing import added_bos, document_hash, token_ids
from darwinlm.steps.text.sources import read_documents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class EvaluationText:
    """Text to measure a model on.

    Attributes:
        tokens: Sequences, int64 [n, t].
        document_hashes: `document_hash` of every document that was read.
        special: Share of special tokens in the documents.
        bytes: Length in UTF-8 of all tokens that are predicted, which are those after the first of each sequence.
    """

    source: str
    tokens: Tensor
    document_hashes: tuple[str, ...]
    special: float
    bytes: int


def pack(source: str, tokenizer: PreTrainedTokenizerBase, *, sequence_length: int, max_tokens: int) -> EvaluationText:
    """Join the documents of a text, with the end token after each, and cut them into sequences [n, t] of token ids.

    If the tokenizer adds bos, it replaces the first token of every sequence. t is `sequence_length`; at most
    `max_tokens` are read. Raises DataError if the text is missing, unreadable, or shorter than one sequence.
    """
    needed = max(1, max_tokens // sequence_length) * sequence_length
    ids: list[int] = []
    hashes: list[str] = []
    special, known = [0, 0], set(tokenizer.all_special_ids)
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    for document in read_documents(source, tokenizer=tokenizer):
        (own,) = token_ids(tokenizer, [document])
        ids += [*own, *end]
        hashes.append(document_hash(document))
        special[0] += sum(token in known for token in own)
        special[1] += len(own)
        if len(ids) >= needed:
            break
    count = len(ids[:needed]) // sequence_length
    if count == 0:
        raise DataError(
            f"Text source {source!r} has only {len(ids)} tokens, less than one sequence of {sequence_length}: give "
            "more text, or ask for shorter sequences"
        )
    sequences = torch.tensor(ids[: count * sequence_length]).view(count, sequence_length)
    bos = added_bos(tokenizer)
    if bos is not None:
        sequences[:, 0] = bos
    texts = tokenizer.batch_decode(sequences[:, 1:], skip_special_tokens=True)
    n_bytes = sum(len(text.encode()) for text in texts)
    return EvaluationText(source, sequences, tuple(hashes), special[0] / max(special[1], 1), n_bytes)


def share_vocabulary(model: Opened, dense: Opened) -> None:
    """Give a dense model the tokens of a smaller model.

    If the dense model has all tokens of the smaller one and more, its embedding and head are cut.
    Raises ModelError if the vocabularies differ, and as `Opened.cut`.
    """
    rows = rows_in(model.tokenizer, dense.tokenizer, model.vocabulary, dense.vocabulary)
    if rows is not None and dense.checkpoint is None:
        raise ModelError(f"{dense.source} has more tokens than {model.source}: give the folder or hub id --against")
    if rows is not None:
        dense.cut(rows)
        return
    if model.vocabulary != dense.vocabulary or model.tokenizer.get_vocab() != dense.tokenizer.get_vocab():
        raise ModelError(
            f"{model.source} and {dense.source} have different vocabularies, so there is no KL between them: --against "
            "must be the model from which the other was pruned"
        )
