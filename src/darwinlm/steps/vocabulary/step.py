"""Vocabulary: the dense model with fewer tokens, which is the dense model of all later steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.step import Cost, Step, Task, Uses
from darwinlm.steps.text.step import DOCUMENTS
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.own_text.documents import Documents
    from darwinlm.steps.workload import Workload

FIGURES = "figures.json"


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
    version = 7
    writes = "the dense model with fewer tokens, and what they cost"
    Settings = VocabularySettings
    section = "vocabulary"
    Figures = VocabularyFigures
    settings = (Uses(VocabularySettings), DOCUMENTS, Uses(TextSettings, only=("answers",)))
    arithmetic = True

    original: Checkpoint
    own_text: Documents | None
    shares: Mapping[str, int]

    def key(self, task: Task) -> Mapping[str, object]:
        """Identity of the text."""
        from darwinlm.steps.text.text_source import text_identity

        return text_identity(task.settings(TextSettings))

    def work(self, task: Task) -> None:
        """Choose the tokens, write the smaller model, and measure it on held-out text."""
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.text.text_source import check_source, given_source, with_own_text
        from darwinlm.steps.vocabulary.cut_vocabulary import cut_vocabulary
        from darwinlm.steps.vocabulary.reader_vocabulary import cut_reader_vocabulary

        settings, keep = task.settings(TextSettings), task.settings(VocabularySettings).keep
        assert keep is not None, "the vocabulary is cut"
        check_source(given_source(settings))
        source = with_own_text(given_source(settings), self.own_text)
        cut = cut_reader_vocabulary if objective_of(self.original).reads else cut_vocabulary
        figures = cut(self.original, keep, source, self.shares, settings, task.folder, task.context)
        write_json(task.folder / FIGURES, figures.as_json())
        task.context.reporter.say(
            f"vocabulary: {figures.tokens:,} of {figures.dense_tokens:,} tokens kept; held-out text takes "
            f"{figures.longer:.1%} more tokens"
        )

    def read(self, task: Task) -> CutVocabulary:
        """The smaller model and its figures."""
        from darwinlm.model.families.checkpoint import Checkpoint
        from darwinlm.runtime.artifact import read_as
        from darwinlm.steps.text.reading import with_answers

        opened = Checkpoint.open(task.folder / "model", self.original.source)
        checkpoint = with_answers(opened, task.settings(TextSettings))
        return CutVocabulary(checkpoint, read_as(task.folder / FIGURES, VocabularyFigures), task.stage.digest)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """What the tokens are chosen and measured by, and the model with fewer tokens. None without a cut."""
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.steps.vocabulary.cut_vocabulary import EVALUATION, PREDICTED_TOKENS

        settings = load.settings(VocabularySettings)
        if settings.auto or not settings.cut:
            return None
        sizes, held_out = load.sizes, load.shares.get(EVALUATION, 0)
        predicted = 0 if objective_of(sizes.checkpoint).reads else PREDICTED_TOKENS
        work = sizes.operations(predicted + 2 * held_out, heads=1)
        memory = load.reading(max(predicted, held_out), 1)
        return Cost(work, memory, disk=sizes.params * sizes.stored)

    def figures(self, task: Task, result: CutVocabulary) -> VocabularyFigures:
        """What the smaller vocabulary costs."""
        return result.figures
