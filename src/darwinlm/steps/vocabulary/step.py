"""Vocabulary: the dense model with fewer tokens, which is the dense model of all later steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from darwinlm.runtime.amounts import count, percent
from darwinlm.runtime.figures import ModelNames, Passage, StepFigures
from darwinlm.runtime.quantities import Part
from darwinlm.runtime.section import Section
from darwinlm.runtime.step import Step, Task, Uses
from darwinlm.runtime.tables import Table
from darwinlm.steps.text.step import DOCUMENTS, TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.own_text.step import Documents

FIGURES = "figures.json"
HEADINGS = ("held-out text", "bytes", "tokens per byte, all", "kept", "more tokens", "tokens affected")


class VocabularySettings(Section):
    """Size of the vocabulary. In a recipe, `vocabulary: 50%` is short for `vocabulary: {keep: 50%}`."""

    keep: Part | None = Field(None, gt=0)
    """Tokens of the vocabulary to keep, as a share or a number: 50% or 24k, rounded up to a multiple of 64. Those that
    `text.source` uses most are kept; other text takes more tokens. None keeps all."""

    @model_validator(mode="before")
    @classmethod
    def _a_number_is_the_size(cls, value: object) -> object:
        return value if isinstance(value, dict | VocabularySettings) else {"keep": value}

    @property
    def cut(self) -> bool:
        """Whether some tokens are removed."""
        return self.keep not in (None, 1)


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


@dataclass(frozen=True)
class CutVocabulary:
    """The dense model with fewer tokens, and what that costs."""

    checkpoint: Checkpoint
    figures: VocabularyFigures
    digest: str


@dataclass(frozen=True, eq=False)
class Vocabulary(Step[CutVocabulary]):
    """The dense model with fewer tokens.

    Attributes:
        original: The dense model.
        own_text: Text that it wrote itself, if it is one of the sources.
        shares: Number of tokens of the run's text for each purpose.
    """

    name = "vocabulary"
    version = 4
    writes = "the dense model with fewer tokens, and what they cost"
    Settings = VocabularySettings
    section = "vocabulary"
    Figures = VocabularyFigures
    settings = (Uses(VocabularySettings), DOCUMENTS)
    arithmetic = True

    original: Checkpoint
    own_text: Documents | None
    shares: Mapping[str, int]

    def key(self, task: Task) -> Mapping[str, object]:
        """Identity of the text."""
        from darwinlm.steps.text.text_source import fingerprint, given_source

        return {"text": fingerprint(given_source(task.settings(TextSettings)))}

    def work(self, task: Task) -> None:
        """Choose the tokens, write the smaller model, and measure it on held-out text."""
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.text.text_source import check_source, given_source, with_own_text
        from darwinlm.steps.vocabulary.cut_vocabulary import cut_vocabulary

        settings, keep = task.settings(TextSettings), task.settings(VocabularySettings).keep
        assert keep is not None, "the vocabulary is cut"
        check_source(given_source(settings))
        source = with_own_text(given_source(settings), self.own_text)
        figures = cut_vocabulary(self.original, keep, source, self.shares, settings, task.folder, task.context)
        write_json(task.folder / FIGURES, figures.as_json())
        task.context.reporter.say(
            f"vocabulary: {figures.tokens:,} of {figures.dense_tokens:,} tokens kept; held-out text takes "
            f"{figures.longer:.1%} more tokens"
        )

    def read(self, task: Task) -> CutVocabulary:
        """The smaller model and its figures."""
        from darwinlm.model.families.checkpoint import Checkpoint
        from darwinlm.runtime.artifact import read_as

        checkpoint = Checkpoint.open(task.folder / "model", self.original.source)
        return CutVocabulary(checkpoint, read_as(task.folder / FIGURES, VocabularyFigures), task.stage.digest)

    def figures(self, task: Task, result: CutVocabulary) -> VocabularyFigures:
        """What the smaller vocabulary costs."""
        return result.figures
