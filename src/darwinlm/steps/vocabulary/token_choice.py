"""The tokens of a model to keep, for any number of them, by what a text uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.loading import check_tokens
from darwinlm.model.surgery.fewer_tokens import special_numbers
from darwinlm.runtime.errors import RecipeError
from darwinlm.steps.text.packing import token_ids
from darwinlm.steps.vocabulary.choose import choose_tokens, kept_size
from darwinlm.steps.vocabulary.tokenizer_tree import TokenizerTree

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

BATCH_DOCUMENTS = 512
"""Documents that are tokenised at once."""


@dataclass(frozen=True)
class ModelTokens:
    """The tokens of a model.

    Attributes:
        tree: Its tokens and merges.
        always: Numbers of tokens that can't be removed.
        source: Name of the model.
    """

    tokenizer: PreTrainedTokenizerBase
    tree: TokenizerTree
    always: Set[int]
    source: str

    @classmethod
    def of(cls, dense: Checkpoint) -> ModelTokens:
        """Read the tokenizer of a model. Raises ModelError if its vocabulary can't be cut."""
        tokenizer = dense.tokenizer()
        tree = TokenizerTree(tokenizer, dense.source)
        always = tree.indispensable(tokenizer) | tree.closed(special_numbers(dense) & tree.tokens.keys())
        check_tokens(max(*tokenizer.get_vocab().values(), *always), int(dense.config.vocab_size), dense.source)
        return cls(tokenizer, tree, always, dense.source)

    def size(self, keep: float) -> int:
        """Number of tokens to keep, from a share or a number. Raises RecipeError if there can't be as many."""
        if keep > len(self.tree.tokens):
            raise RecipeError(
                f"vocabulary: {keep:,.0f} tokens requested, but {self.source} has {len(self.tree.tokens):,}: request "
                "fewer, or leave out --vocab"
            )
        size = kept_size(keep, len(self.tree.tokens))
        if len(self.always) > size:
            raise RecipeError(
                f"vocabulary: {size:,} tokens requested, but bytes, digits, white space, special tokens and the chat "
                f"template need {len(self.always):,}: request more"
            )
        return size

    def used_by(self, documents: Iterable[str], predicted: Tensor) -> TokenChoice:
        """The choice of tokens for a text.

        `predicted`, float64 [v], says how often the model expects each token in text of this kind, in a text of any
        length. It counts as much as the text itself.
        """
        counted = self.count(documents)
        expected: list[float] = (predicted * (counted.total() / predicted.sum())).tolist()
        uses = {token: counted[token] + expected[token] for token in self.tree.tokens}
        return self.choice(uses)

    def count(self, documents: Iterable[str]) -> Counter[int]:
        """Uses of each token in a text."""
        texts = list(documents)
        batches = (texts[start : start + BATCH_DOCUMENTS] for start in range(0, len(texts), BATCH_DOCUMENTS))
        return self.counted(ids for batch in batches for ids in token_ids(self.tokenizer, batch))

    def counted(self, texts: Iterable[Sequence[int]]) -> Counter[int]:
        """Uses of each token in texts that are given as tokens."""
        counted: Counter[int] = Counter()
        for tokens in texts:
            counted.update(token for token in tokens if token in self.tree.tokens)
        return counted

    def choice(self, uses: Mapping[int, float]) -> TokenChoice:
        """The choice of tokens for some uses of them."""
        return TokenChoice(self, uses, {token: self.tree.path(token) for token in self.tree.tokens})


@dataclass(frozen=True)
class TokenChoice:
    """The tokens that a text uses.

    Attributes:
        uses: Number of uses of each token, counted in the text and expected in as much further text.
        paths: For every token the tokens that it is merged from; see `choose_tokens`.
    """

    vocabulary: ModelTokens
    uses: Mapping[int, float]
    paths: Mapping[int, Sequence[int] | None]

    def rows(self, size: int) -> list[int]:
        """Old numbers of the `size` kept tokens, in their new order."""
        chosen = choose_tokens(self.uses, self.vocabulary.always, self.paths, size)
        return self.vocabulary.tree.ordered(chosen)
