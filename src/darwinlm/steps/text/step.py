"""Text: read, split into disjoint purposes by document, cut into sequences of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from darwinlm.runtime.step import Step, Task, Uses
from darwinlm.steps.text.text_figures import PurposeFigures, TextFigures
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.own_text.documents import Documents
    from darwinlm.steps.text.sequences import TokenSequences


DOCUMENTS = Uses(TextSettings, only=("sequence_length", "seed"))
"""Settings that decide which documents a run reads; what identifies the source itself is its `fingerprint`."""
EVALUATION = "evaluation"
"""The purpose of text that no choice depends on."""


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
    version = 8
    writes = "sequences of tokens for each purpose"
    Settings = TextSettings
    section = "text"
    Figures = TextFigures
    settings = (DOCUMENTS, Uses(TextSettings, only=("looking_back", "openings")))

    dense: Checkpoint
    own_text: Documents | None
    shares: Mapping[str, int]

    def key(self, task: Task) -> Mapping[str, object]:
        """Identity of the text."""
        from darwinlm.steps.text.text_source import text_identity

        return text_identity(task.settings(TextSettings))

    def work(self, task: Task) -> None:
        """Read, split, repeat passages, and save."""
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.steps.text.distinct import Distinct
        from darwinlm.steps.text.item_sequences import prepare_items
        from darwinlm.steps.text.openings import are_useful
        from darwinlm.steps.text.prepared import prepare_text
        from darwinlm.steps.text.reading import encoder_of, with_known_labels
        from darwinlm.steps.text.samples import read_samples
        from darwinlm.steps.text.text_source import given_source, with_own_text

        settings, say = task.settings(TextSettings), task.context.reporter.say
        source = with_own_text(given_source(settings), self.own_text)
        if objective_of(self.dense).reads:
            samples = Distinct(with_known_labels(read_samples(source, seed=settings.seed), self.dense))
            encoder = encoder_of(self.dense, settings)
            sequences = prepare_items(samples, self.shares, encoder, settings.seed, source, say)
            if samples.remark:
                say(f"text: {samples.remark}")
        else:
            tokenizer = self.dense.tokenizer()
            openings = settings.openings if are_useful(self.dense.family, tokenizer) else 0.0
            sequences = prepare_text(source, self.shares, tokenizer, settings, say, openings=openings)
        for purpose, part in sequences.items():
            part.save(task.folder / purpose)
        if copies := self.figures(task, sequences).near_copies:
            say(
                f"text: the evaluation text isn't new, {copies}, so its figures will be too good: give text whose "
                "documents differ more"
            )

    def read(self, task: Task) -> dict[str, TokenSequences]:
        """The sequences by purpose. Raises ArtifactError if the model doesn't have their tokens."""
        from darwinlm.model.families.loading import check_tokens
        from darwinlm.model.walk.items import ids
        from darwinlm.steps.text.sequences import TokenSequences

        texts = {purpose: TokenSequences.load(task.folder / purpose) for purpose in self.shares}
        largest = max(int(ids(part.tokens).max()) for part in texts.values())
        check_tokens(largest, int(self.dense.config.vocab_size), self.dense.source)
        return texts

    def figures(self, task: Task, result: dict[str, TokenSequences]) -> TextFigures:
        """Source, length of the sequences, and amounts."""
        from darwinlm.steps.text.shared_passages import passages_of, share_covered

        settings, held = task.settings(TextSettings), result.get(EVALUATION)
        others = [part for purpose, part in result.items() if purpose != EVALUATION]
        reads = any(part.items is not None for part in result.values())
        return TextFigures(
            source=settings.source,
            sequence_length=settings.sequence_length,
            purposes={
                purpose: PurposeFigures(tokens=part.n_tokens, documents=len(part.document_hashes))
                for purpose, part in result.items()
            },
            known=None if held is None or reads else share_covered(held.tokens.numpy(), passages_of(others)),
        )
