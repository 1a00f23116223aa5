"""Text: read, split into disjoint purposes by document, cut into sequences of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from darwinlm.runtime.figures import Figures, StepFigures
from darwinlm.runtime.quantities import Repeats, Seed, Share, Whole
from darwinlm.runtime.section import Section
from darwinlm.runtime.step import Step, Task, Uses

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.own_text.step import Documents
    from darwinlm.steps.text.sequences import TokenSequences

LEAST_FOR_ANSWERS = 4096
"""Evaluation tokens from which chat models are compared on their answers too."""


class TextSettings(Section):
    """Text for calibration, search, training and evaluation; the parts are disjoint by document."""

    source: str | None = "self"
    """`self`: text that the dense model writes itself, chats if it has a chat template. Or a local .txt, .md, .jsonl,
    .json, .csv or .parquet file, a folder of them, or `hf:owner/name[:config][@split]`. A field with the text or a chat
    can follow: `#field`, `#question+answer`. Several sources, separated by commas, give equal parts."""
    sequence_length: Repeats = Field(512, ge=8)
    """Length in tokens of the sequences into which the text is cut."""
    looking_back: Share = Field(0.2, ge=0, le=0.5)
    """Share of tokens that repeat earlier passages of the same sequence, in all text except evaluation text, so that
    the smaller model still uses its context. 0 turns repetition off."""
    calibration_tokens: Whole = Field(32768, gt=0)
    """Tokens that are run through the model to see which parts matter, and for the refit; more make a better model. An
    eighth of them, at most 8192, also gives gradients of the loss. As many as an eighth, at most 65,536, are set aside
    for choices that must not use the fitted text, such as the strength of the refit."""
    evaluation_tokens: Whole = Field(6144, gt=0)
    """Tokens for the figures in the report; no choice depends on them. From 4096 on, chat models are compared on a
    quarter as many tokens of their answers too."""
    seed: Seed = 0
    """Seed of the order of the documents, their split by purpose, and the repeated passages."""

    @property
    def validation_tokens(self) -> int:
        """Tokens for choices that must not use the fitted text."""
        return max(1, min(self.calibration_tokens // 8, 65536))

    @property
    def answer_tokens(self) -> int:
        """Tokens of a chat model's own answers on which smaller models are compared with it; none for short runs."""
        return self.evaluation_tokens // 4 if self.evaluation_tokens >= LEAST_FOR_ANSWERS else 0


class PurposeFigures(Figures):
    """How much text served a purpose."""

    tokens: int
    documents: int


class TextFigures(StepFigures):
    """The text, in sequences of `sequence_length` tokens, and its purposes by name."""

    lasting: ClassVar[bool] = False

    source: str | None
    sequence_length: int
    purposes: dict[str, PurposeFigures]


DOCUMENTS = Uses(TextSettings, only=("sequence_length", "seed"))
"""Settings that decide which documents a run reads; what identifies the source itself is its `fingerprint`."""


@dataclass(frozen=True, eq=False)
class Text(Step["dict[str, TokenSequences]"]):
    """The text of a run, in sequences of tokens for each purpose.

    Attributes:
        dense: The model whose tokenizer cuts the text.
        own_text: Text that the model wrote itself, if it is one of the sources.
        shares: Number of tokens for each purpose.

    Its work raises DataError if the text is missing, empty, unreadable, too short, or belongs to a benchmark, and
    RecipeError if none is given, or its sequences are longer than the model allows.
    """

    name = "text"
    version = 6
    writes = "sequences of tokens for each purpose"
    Settings = TextSettings
    section = "text"
    Figures = TextFigures
    settings = (DOCUMENTS, Uses(TextSettings, only=("looking_back",)))

    dense: Checkpoint
    own_text: Documents | None
    shares: Mapping[str, int]

    def key(self, task: Task) -> Mapping[str, object]:
        """Identity of the text."""
        from darwinlm.steps.text.text_source import fingerprint, given_source

        return {"text": fingerprint(given_source(task.settings(TextSettings)))}

    def work(self, task: Task) -> None:
        """Read, split, repeat passages, and save."""
        from darwinlm.steps.text.prepared import prepare_text
        from darwinlm.steps.text.text_source import given_source, with_own_text

        settings = task.settings(TextSettings)
        source = with_own_text(given_source(settings), self.own_text)
        sequences = prepare_text(source, self.shares, self.dense.tokenizer(), settings, task.context.reporter.say)
        for purpose, part in sequences.items():
            part.save(task.folder / purpose)

    def read(self, task: Task) -> dict[str, TokenSequences]:
        """The sequences by purpose. Raises ArtifactError if the model doesn't have their tokens."""
        from darwinlm.model.families.loading import check_tokens
        from darwinlm.steps.text.sequences import TokenSequences

        texts = {purpose: TokenSequences.load(task.folder / purpose) for purpose in self.shares}
        largest = max(int(part.tokens.max()) for part in texts.values())
        check_tokens(largest, int(self.dense.config.vocab_size), self.dense.source)
        return texts

    def figures(self, task: Task, result: dict[str, TokenSequences]) -> TextFigures:
        """Source, length of the sequences, and amounts."""
        settings = task.settings(TextSettings)
        return TextFigures(
            source=settings.source,
            sequence_length=settings.sequence_length,
            purposes={
                purpose: PurposeFigures(tokens=part.n_tokens, documents=len(part.document_hashes))
                for purpose, part in result.items()
            },
        )
