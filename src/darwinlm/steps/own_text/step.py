"""The model's own text: written by the dense model where a recipe names `self` among its text sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task
from darwinlm.steps.own_text.documents import Documents
from darwinlm.steps.recover.recovery_settings import RecoverySettings
from darwinlm.steps.text.step import DOCUMENTS
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.steps.workload import Workload

FOLDER = "documents"
"""Folder of the files in that of the step."""
FIRST_FOR_RECOVERY = 1 << 20
"""Number of the first document that recovery trains on; those of a run for pruning are lower."""


@dataclass(frozen=True, eq=False)
class OwnText(Step[Documents]):
    """Text for all purposes but recovery.

    Attributes:
        original: The dense model.
        tokens: Number of tokens that it writes.
    """

    name = "own_text"
    title = "the model's own text"
    writes = "text that the dense model writes itself, if a text is `self`"
    settings = (DOCUMENTS,)
    arithmetic = True
    together = True
    first: ClassVar[int] = 0
    time_share: ClassVar[float | None] = 0.3
    """Number of the first document, and the share of a time limit after which the text ends; None for no end."""

    original: Checkpoint
    tokens: int

    def work(self, task: Task) -> None:
        """Write documents until there are enough tokens."""
        import math

        from darwinlm.runtime.clock import working_time
        from darwinlm.steps.own_text.written import write_own_text
        from darwinlm.steps.source.whole_model import load_whole

        context, settings, begun = task.context, task.settings(TextSettings), working_time()
        limited = self.time_share is not None and context.limit is not None
        seconds = self.time_share * context.limit.seconds if limited else math.inf  # type: ignore[operator, union-attr]
        write_own_text(
            load_whole(task, self.original),
            self.original.tokenizer(),
            task.folder / FOLDER,
            self.tokens,
            length=settings.sequence_length,
            seed=settings.seed,
            first=self.first,
            say=lambda message: context.reporter.say(f"{self.label}: {message}"),
            progress=context.reporter.advance,
            late=lambda: working_time() - begun > seconds,
        )

    def read(self, task: Task) -> Documents:
        """The folder of the documents."""
        return Documents(task.folder / FOLDER, task.stage.digest)

    @classmethod
    def amount(cls, recipe: Sections, shares: dict[str, int]) -> int:
        """Number of tokens that the model writes for a run with so much text for each purpose; 0 if none is its own."""
        from darwinlm.steps.text.shares import own_amount

        settings = recipe.section(TextSettings)
        return own_amount(settings.source, sum(shares.values()), settings.sequence_length)

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """A whole model that writes many texts at once."""
        from darwinlm.steps.workload import ALONE, ROWS, TOGETHER

        sizes = load.sizes
        tokens = cls.amount(sizes.recipe, dict(load.shares))
        if not tokens:
            return None
        length = load.settings(TextSettings).sequence_length
        work = sizes.operations(TOGETHER * tokens + ALONE * length, heads=1)  # the last texts end one by one
        parts = {
            "loading": load.loading(sizes.params),
            "generation": load.written(tokens, ROWS) + load.written(length, 1),
        }
        scratch = load.mapped(sizes.original_params, sizes.stored)
        return Cost(work, load.writing(ROWS, length), scratch=scratch, parts=parts, alone=work)


@dataclass(frozen=True, eq=False)
class OwnTextForRecovery(OwnText):
    """Text for recovery, apart from the other, so that its amount changes nothing before it."""

    name = "own_text_recovery"
    title = "the model's own text for recovery"
    first = FIRST_FOR_RECOVERY
    time_share = None

    @classmethod
    def amount(cls, recipe: Sections, shares: dict[str, int]) -> int:
        """Number of tokens that the model writes; 0 if it doesn't train on its own text."""
        from darwinlm.steps.text.shares import own_amount

        text, recovery = recipe.section(TextSettings), recipe.section(RecoverySettings)
        return own_amount(recovery.text or text.source, recovery.tokens / recovery.epochs, text.sequence_length)
