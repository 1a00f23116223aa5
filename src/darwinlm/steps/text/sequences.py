"""Sequences of tokens for one purpose, in memory and on disk.

Letters: B sequences, T tokens in a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import torch

from darwinlm.runtime.artifact import damaged, read_as, read_tensors, write_json, write_tensors

_TOKENS_FILE = "tokens.safetensors"
_DESCRIPTION_FILE = "blocks.json"


@dataclass(frozen=True, eq=False)
class ItemLabels:
    """What is known of the complete items of sequences (`model/walk/items.py`), in their order; i is their number.

    Attributes:
        group: Number of an item's query, or of itself without one, [i] int64.
        role: 1 for a query on its own, 0 for a text or a pair, [i] int64.
        label: Label of a text or pair, [i] float64; NaN without one.
    """

    group: torch.Tensor
    role: torch.Tensor
    label: torch.Tensor


@dataclass(frozen=True, eq=False)
class TokenSequences:
    """Tokens for one purpose, cut into sequences of equal length.

    Two are equal if their tokens, documents and sources are.

    Attributes:
        tokens: Token ids, int64 [B, T].
        document_hashes: `document_hash` of every document with at least one token, in the order of the tokens.
        items: Labels of the items, if the sequences hold items.
    """

    tokens: torch.Tensor = field(repr=False)
    document_hashes: tuple[str, ...] = field(repr=False)
    source: str
    items: ItemLabels | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        assert self.tokens.dim() == 2, "tokens are [sequences, tokens in a sequence]"
        assert self.tokens.dtype == torch.int64, "tokens are int64"

    @cached_property
    def digest(self) -> str:
        """Hash of the tokens and their shape, 32 hexadecimal digits."""
        shape = "x".join(map(str, self.tokens.shape))
        little_endian = self.tokens.detach().cpu().contiguous().numpy().astype("<i8", copy=False)
        return blake2b(shape.encode() + b":" + little_endian.tobytes(), digest_size=16).hexdigest()

    @property
    def _identity(self) -> tuple[str, tuple[str, ...], str]:
        return self.digest, self.document_hashes, self.source

    def __eq__(self, other: object) -> bool:
        """Whether tokens, documents and sources are equal."""
        return isinstance(other, TokenSequences) and self._identity == other._identity

    def __hash__(self) -> int:
        """Hash of tokens, documents and sources."""
        return hash(self._identity)

    @property
    def n_tokens(self) -> int:
        """Number of tokens in all sequences together."""
        return self.tokens.numel()

    def first(self, n_tokens: int) -> TokenSequences:
        """The first sequences, enough for `n_tokens` tokens, or all if there are fewer."""
        count = -(-n_tokens // self.tokens.shape[1])
        if count >= len(self.tokens):
            return self
        return TokenSequences(self.tokens[:count], self.document_hashes, self.source)

    def save(self, folder: Path) -> None:
        """Write the sequences into a folder, which is created if needed. Raises StorageError."""
        labels = {} if self.items is None else vars(self.items)
        write_tensors(folder / _TOKENS_FILE, {"tokens": self.tokens, **labels})
        write_json(folder / _DESCRIPTION_FILE, {"source": self.source, "document_hashes": list(self.document_hashes)})

    @classmethod
    def load(cls, folder: Path) -> TokenSequences:
        """Read what `save` wrote. Raises ArtifactError."""
        description = read_as(folder / _DESCRIPTION_FILE, _Description)
        tensors = read_tensors(folder / _TOKENS_FILE)
        tokens = tensors.pop("tokens", None)
        if tokens is None or tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise damaged(folder / _TOKENS_FILE, "there are no sequences of tokens in it")
        labels = ItemLabels(**tensors) if tensors.keys() == ItemLabels.__dataclass_fields__.keys() else None
        return cls(tokens, description.document_hashes, description.source, labels)


@dataclass(frozen=True)
class _Description:
    source: str
    document_hashes: tuple[str, ...]
