"""Fitted vocabulary: the dense model with as many tokens as suit a budget for the whole model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.step import Cost, Step, Task, Uses
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.search.search_amounts import SearchAmounts
from darwinlm.steps.text.step import DOCUMENTS, Text
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.vocabulary.step import FIGURES, CutVocabulary
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures
from darwinlm.steps.vocabulary.vocabulary_settings import VocabularySettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.units.cost import CostModel
    from darwinlm.steps.database.step import PruningDatabase
    from darwinlm.steps.own_text.documents import Documents
    from darwinlm.steps.workload import Workload

PASSAGES = 2
"""Tokens of the passages on which sizes are compared, as a multiple of those for validation."""


@dataclass(frozen=True, eq=False)
class FittedVocabulary(Step[CutVocabulary]):
    """The dense model with the number of tokens at which the smaller model needs the fewest bits per byte.

    Sizes are compared on documents for validation, and the chosen one is measured on those for the evaluation.

    Attributes:
        original: The dense model.
        database: Its modules at every level.
        own_text: Text that it wrote itself, if it is one of the sources.
        shares: Number of tokens of the run's text for each purpose.
        latency: Times of its modules and of its head, if the budget is one in time.
    """

    name = "fitted_vocabulary"
    title = "size of the vocabulary"
    writes = "the dense model with as many tokens as suit the budget, if `vocabulary` is `auto`"
    Figures = VocabularyFigures
    text_use = (("validation", "the size of the vocabulary"),)
    settings = (Uses(VocabularySettings), Uses(BudgetSettings), Uses(UnitsSettings), DOCUMENTS)
    consults = (SearchAmounts,)
    arithmetic = True

    original: Checkpoint
    database: PruningDatabase
    own_text: Documents | None
    shares: Mapping[str, int]
    latency: CostModel | None

    def key(self, task: Task) -> Mapping[str, object]:
        """Identity of the text, and whether layers are equal."""
        from darwinlm.steps.text.text_source import fingerprint, given_source

        text = fingerprint(given_source(task.settings(TextSettings)))
        return {"text": text, "layers": task.settings(SearchAmounts).layers}

    def work(self, task: Task) -> None:
        """Measure several sizes, choose one, write its model, and measure that."""
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.fitted_vocabulary.scan import Growth, Scan, best_of
        from darwinlm.steps.fitted_vocabulary.vocabulary_sizes import Sizes
        from darwinlm.steps.text.text_source import check_source, given_source, with_own_text
        from darwinlm.steps.vocabulary.cut_vocabulary import (
            EVALUATION,
            VALIDATION,
            choice_for,
            passages_of,
            read_documents,
            write_cut,
        )
        from darwinlm.steps.vocabulary.token_choice import ModelTokens

        settings, context, dense = task.settings(TextSettings), task.context, self.original
        check_source(given_source(settings))
        source = with_own_text(given_source(settings), self.own_text)
        tokens = ModelTokens.of(dense)
        purposes = (EVALUATION, VALIDATION)
        documents = read_documents(source, self.shares, settings.seed, tokens.tokenizer, purposes)
        choice = choice_for(tokens, dense, documents, settings, task.folder, context)
        length, amount = settings.sequence_length, PASSAGES * settings.validation_tokens
        passages = [*passages_of(documents.held_out[VALIDATION], length, amount)]
        sizes = Sizes.of(task.recipe, dense, tokens)
        if self.latency is not None:
            sizes = sizes.in_time(self.latency, Growth(choice, passages))
        scan = Scan(context, sizes, self.database.reader, choice, passages, task.folder)
        tried = scan.run(context.reporter.advance)
        best = best_of(tried)
        figures = write_cut(dense, choice, choice.rows(best.tokens), documents, settings, task.folder, context)
        compared = {"tried": tried, "whole_bits_per_byte": scan.dense_bits()}
        figures = figures.model_copy(update=compared)
        write_json(task.folder / FIGURES, figures.as_json())
        context.reporter.say(f"vocabulary: {figures.chosen()}")

    def read(self, task: Task) -> CutVocabulary:
        """The smaller model and its figures."""
        from darwinlm.model.families.checkpoint import Checkpoint
        from darwinlm.runtime.artifact import read_as

        checkpoint = Checkpoint.open(task.folder / "model", self.original.source)
        return CutVocabulary(checkpoint, read_as(task.folder / FIGURES, VocabularyFigures), task.stage.digest)

    def figures(self, task: Task, result: CutVocabulary) -> VocabularyFigures:
        """What the smaller vocabulary costs."""
        return result.figures

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Passes of the smaller model at every size, and modules cut to each."""
        from darwinlm.steps.fitted_vocabulary.vocabulary_sizes import TRIED
        from darwinlm.steps.vocabulary.cut_vocabulary import EVALUATION
        from darwinlm.steps.workload import largest

        if not load.settings(VocabularySettings).auto:
            return None
        sizes, r = load.sizes, float(load.sizes.width)
        tokens = PASSAGES * load.shares.get("validation", 0)
        work = sizes.operations((TRIED + 2) * tokens, sizes.kept, heads=1)
        work += sizes.operations(tokens + 2 * load.shares.get(EVALUATION, 0), heads=1)
        for d in (float(shape.sizes.width) for shape in sizes.cut):
            work += load.slow * TRIED * 2 * d * d * sizes.kept**2 * r
        factors = {"factors of one module": 4 * load.widest * (load.widest + 2 * r), "blocks": load.block}
        model = sizes.params * sizes.stored  # at most, since the size is chosen later
        return Cost(work, largest(load.reading(tokens, 1), factors), disk=model)


@dataclass(frozen=True, eq=False)
class FittedText(Text):
    """The text of a run in the tokens of the smaller vocabulary, apart from that in all tokens."""

    name = "fitted_text"
    title = "text in the smaller vocabulary"
    writes = "the text in the tokens of that vocabulary"
