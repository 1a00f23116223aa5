"""Figures of a smaller vocabulary, and the words that show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from darwinlm.runtime.amounts import count, percent
from darwinlm.runtime.charts import Axis, Chart, Curve, Level, Picture, whole
from darwinlm.runtime.figures import Figures, ModelNames, Passage, StepFigures
from darwinlm.runtime.tables import Table
from darwinlm.steps.evaluate.item_metrics import Distance, kept_words
from darwinlm.steps.evaluate.model_figures import TaskScore, score_words
from darwinlm.steps.vocabulary.scripts import FEW, ScriptFigures

SIZES = ("tokens kept", "of the blocks", "bits per byte")
SCRIPTS = ("script", "tokens kept", "of", "text grows by")
HEADINGS = ("held-out text", "bytes", "tokens per byte, all", "kept", "more tokens", "tokens affected")


@dataclass(frozen=True)
class Spelling:
    """Length of a text in UTF-8 and in two vocabularies; the smaller one lacks `affected` of the dense tokens."""

    bytes: int = 0
    dense_tokens: int = 0
    tokens: int = 0
    affected: int = 0


@dataclass(frozen=True)
class SizeFigures:
    """The smaller model with a number of tokens, at the budget of the run.

    Attributes:
        tokens: Number of tokens.
        kept_blocks: Share of the block parameters that fit into the budget beside them.
        bits_per_byte: What the uniform model of these sizes needs, on validation text.
        growth: Factor by which that text has more tokens, if the budget is one in time.
    """

    tokens: int
    kept_blocks: float
    bits_per_byte: float
    growth: float = 1.0


class GivenFigures(Figures):
    """What a model that reads gives with the smaller vocabulary, compared with the whole one, on held-out inputs.

    Attributes:
        texts: Number of inputs.
        values: Metrics of its outputs by name.
        score: Its most telling score with labels, if the inputs have labels.
    """

    texts: int
    values: dict[str, float]
    score: TaskScore | None = None

    @property
    def words(self) -> str:
        """Score, and what is kept; for outputs of which neither is known, their distance."""
        parts = [*score_words(self.score), *kept_words(self.values)]
        return "; ".join(parts) or f"{Distance.heading} {Distance().words(self.values[Distance.name])}"


class VocabularyFigures(StepFigures):
    """The smaller vocabulary; each `dense_` figure is of the whole one. Parameters and bits are the dense model's.

    A model that writes text has `bits_per_byte`, and one that reads texts has what it gives (`given`). `domains` are
    lengths of held-out text, by file or data set. `tried` are the sizes among which the budget chose, by
    ascending numbers of tokens, and `whole_bits_per_byte` is what the dense model needs on the same text. `scripts` are
    the tokens by script.
    """

    heading: ClassVar[str] = "Size of the vocabulary"

    tokens: int
    dense_tokens: int
    params: int
    dense_params: int
    domains: dict[str, Spelling]
    bits_per_byte: float | None = None
    dense_bits_per_byte: float | None = None
    given: GivenFigures | None = None
    tried: tuple[SizeFigures, ...] = ()
    whole_bits_per_byte: float | None = None
    scripts: dict[str, ScriptFigures] = Field(default_factory=dict)

    @property
    def longer(self) -> float:
        """Share by which held-out text has more tokens."""
        return self._total("tokens") / self._total("dense_tokens") - 1

    @property
    def growth(self) -> float:
        """Factor by which text has more tokens: that of the comparison which chose the size, or of held-out text."""
        chosen = [size.growth for size in self.tried if size.tokens == self.tokens]
        return chosen[0] if chosen else 1 + self.longer

    @property
    def affected(self) -> float:
        """Share of held-out tokens that are no longer in the vocabulary."""
        return self._total("affected") / self._total("dense_tokens")

    @property
    def lost(self) -> str:
        """What the smaller vocabulary alone costs, in words."""
        if self.given is not None:
            return self.given.words
        before, after = self._bits
        return (
            f"{after:.3f} bits per byte of held-out text instead of {before:.3f} ({100 * (after / before - 1):+.1f} %)"
        )

    @property
    def _bits(self) -> tuple[float, float]:
        """Bits per byte of a model that writes, with all tokens and with fewer."""
        assert self.dense_bits_per_byte is not None, "a model that writes has bits per byte"
        assert self.bits_per_byte is not None, "with fewer tokens too"
        return self.dense_bits_per_byte, self.bits_per_byte

    def lines(self) -> tuple[tuple[str, str], ...]:
        """The size of the vocabulary, and what it costs before blocks are pruned."""
        if self.given is not None:
            return (("tokens", f"{self._kept()}; this alone: {self.given.words}"),)
        before, after = self._bits
        bits = f"this alone raises its bits per byte from {before:.3f} to {after:.3f}"
        if after <= before:
            bits = f"its bits per byte are {after:.3f}, and {before:.3f} with all tokens"
        return (("tokens", f"{self._kept()}; {bits}"),)

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
        tables = (self._sizes_tried(),) if self.tried else ()
        return (Passage("Vocabulary", self._words(), (*tables, Table(HEADINGS, rows), self._scripts())),)

    def chosen(self) -> str:
        """The size that the budget chose, what remains of the blocks, and what that costs."""
        best = next(size for size in self.tried if size.tokens == self.tokens)
        return (
            f"at this budget, {best.tokens:,} of {self.dense_tokens:,} tokens and {best.kept_blocks:.0%} of the block "
            f"parameters need the fewest bits per byte: {best.bits_per_byte:.3f} before the search, where the whole "
            f"model needs {self.whole_bits_per_byte:.3f}"
        )

    def _scripts(self) -> Table:
        shown = {name: script for name, script in self.scripts.items() if script.tokens >= FEW}
        rows = [
            (name, f"{script.kept:,}", f"{script.tokens:,}", f"{100 * (script.longer - 1):.0f} %")
            for name, script in shown.items()
        ]
        remark = "The growth of other text is an estimate: frequent tokens have low numbers in a trained tokenizer."
        return Table(SCRIPTS, rows, (remark,))

    def _sizes_tried(self) -> Table:
        rows = [
            (
                f"{size.tokens:,}{' (chosen)' if size.tokens == self.tokens else ''}",
                f"{size.kept_blocks:.0%}",
                f"{size.bits_per_byte:.3f}",
            )
            for size in self.tried
        ]
        return Table(SIZES, rows, ("Measured on validation text, with equal layers, before search and correction.",))

    def account(self) -> tuple[str, ...]:
        """How the budget chose the size, if it did."""
        return (f"{_sentence(self.chosen())}.",) if self.tried else ()

    def pictures(self) -> tuple[Picture, ...]:
        """Bits per byte of the whole smaller model by its number of tokens, at the budget of the run."""
        if len(self.tried) < 2 or self.whole_bits_per_byte is None:
            return ()
        tips = tuple(
            f"{size.tokens:,} tokens and {size.kept_blocks:.0%} of the blocks: {size.bits_per_byte:.3f} bits per byte"
            for size in self.tried
        )
        labels = tuple("chosen" if size.tokens == self.tokens else "" for size in self.tried)
        chart = Chart(
            "Bits per byte at this budget, by the size of the vocabulary",
            Axis("tokens kept", whole),
            Axis("bits per byte", "{:.2f}".format),
            (
                Curve(
                    "",
                    tuple(float(size.tokens) for size in self.tried),
                    tuple(size.bits_per_byte for size in self.tried),
                    tips,
                    labels=labels,
                ),
                Level(self.whole_bits_per_byte, f"whole model {self.whole_bits_per_byte:.3f}"),
            ),
        )
        return (Picture("vocabulary", (chart,), "The fewer tokens are kept, the more of the blocks fits."),)

    def _kept(self) -> str:
        return (
            f"{self.tokens:,} of {self.dense_tokens:,} tokens of the vocabulary kept; held-out text takes "
            f"{100 * self.longer:.1f} % more tokens"
        )

    def _words(self) -> str:
        spelt = (
            f"{self._kept()}: {100 * self.affected:.1f} % of its tokens were removed from the vocabulary and "
            "are now written as several. "
        )
        sizes = (
            f"The dense model is measured with it too: it has {count(self.params)} parameters, and "
            f"{count(self.dense_params)} with all tokens."
        )
        if self.given is not None:
            return (
                f"{spelt}What the model gives for a text whose tokens are all kept has not changed. Before its blocks "
                f"were pruned, on {self.given.texts:,} held-out inputs, compared with all tokens: {self.given.words}. "
                f"{sizes}"
            )
        return (
            f"{spelt}Logits of text whose tokens are all kept have not changed. Before its blocks "
            f"were pruned, the model needed {self.bits_per_byte:.3f} bits per byte of held-out text, and "
            f"{self.dense_bits_per_byte:.3f} with all tokens. Perplexity, KL and speeds are per token of the smaller "
            f"vocabulary. {sizes}"
        )

    def _total(self, name: str) -> int:
        return sum(getattr(domain, name) for domain in self.domains.values())


def _sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:]
