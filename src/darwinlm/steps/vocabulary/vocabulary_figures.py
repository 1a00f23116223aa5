"""Figures of a smaller vocabulary, and the words that show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.amounts import count, percent
from darwinlm.runtime.figures import ModelNames, Passage, StepFigures
from darwinlm.runtime.tables import Table

if TYPE_CHECKING:
    pass


HEADINGS = ("held-out text", "bytes", "tokens per byte, all", "kept", "more tokens", "tokens affected")


@dataclass(frozen=True)
class Spelling:
    """Length of a text in UTF-8 and in two vocabularies; the smaller one lacks `affected` of the dense tokens."""

    bytes: int = 0
    dense_tokens: int = 0
    tokens: int = 0
    affected: int = 0


class VocabularyFigures(StepFigures):
    """The smaller vocabulary; each `dense_` figure is of the whole one. Parameters and bits are the dense model's.

    `domains` are lengths of held-out text, by file or data set.
    """

    tokens: int
    dense_tokens: int
    params: int
    dense_params: int
    domains: dict[str, Spelling]
    bits_per_byte: float
    dense_bits_per_byte: float

    @property
    def longer(self) -> float:
        """Share by which held-out text has more tokens."""
        return self._total("tokens") / self._total("dense_tokens") - 1

    @property
    def affected(self) -> float:
        """Share of held-out tokens that are no longer in the vocabulary."""
        return self._total("affected") / self._total("dense_tokens")

    def lines(self) -> tuple[tuple[str, str], ...]:
        """The size of the vocabulary, and what it means for the length of text."""
        return (("tokens", self._kept()),)

    def passages(self, name: ModelNames) -> tuple[Passage, ...]:
        """Cost of the smaller vocabulary, what other figures are relative to, and lengths of held-out text."""
        del name
        rows = [
            (
                domain,
                f"{text.bytes:,}",
                f"{text.dense_tokens / text.bytes:.3f}",
                f"{text.tokens / text.bytes:.3f}",
                f"{100 * (text.tokens / text.dense_tokens - 1):.1f} %",
                percent(text.affected, text.dense_tokens),
            )
            for domain, text in self.domains.items()
        ]
        return (Passage("Vocabulary", self._words(), (Table(HEADINGS, rows),)),)

    def _kept(self) -> str:
        return (
            f"{self.tokens:,} of {self.dense_tokens:,} tokens of the vocabulary kept, held-out text spelt in "
            f"{100 * self.longer:.1f} % more tokens"
        )

    def _words(self) -> str:
        return (
            f"{self._kept()}: {100 * self.affected:.1f} % of its tokens were removed from the vocabulary and are now "
            "written as several. Logits of text whose tokens are all kept have not changed. Before its blocks were "
            f"pruned, the model needed {self.bits_per_byte:.3f} bits per byte of held-out text, and "
            f"{self.dense_bits_per_byte:.3f} with all tokens. Perplexity, KL and speeds are per token of the smaller "
            f"vocabulary. The dense model is measured with it too: it has {count(self.params)} parameters, and "
            f"{count(self.dense_params)} with all tokens."
        )

    def _total(self, name: str) -> int:
        return sum(getattr(domain, name) for domain in self.domains.values())
