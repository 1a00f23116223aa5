"""Figures of the search, the words that show them, and its record."""

from __future__ import annotations

from typing import ClassVar, NamedTuple, NotRequired, TypedDict

from darwinlm.runtime.amounts import NATS, duration, loss, nats, plural, three_digits
from darwinlm.runtime.charts import Axis, Bars, Chart, Curve, Level, Picture, whole
from darwinlm.runtime.figures import Extract, StepFigures


class Kept(NamedTuple):
    """What is said of a model whose blocks were not searched for.

    `label` is its name, `account` what was kept, `expectation` what was lost, and `note` which models are the same.
    """

    label: str
    account: str
    expectation: str
    note: str = ""


WHOLE = Kept(
    "fewer tokens",
    "All blocks fit into the budget beside the smaller vocabulary, so they are kept unchanged, and nothing was "
    "searched or refitted.",
    "Its blocks are unchanged. Text with the removed tokens is spelt in others, which it predicts less well.",
    "The dense model here has the smaller vocabulary, and all of its blocks are kept.",
)


def first_layers(count: int) -> Kept:
    """What is said of the first layers."""
    kept = "layer is" if count == 1 else f"{count} layers are"
    return Kept(
        "first layers",
        f"The first {kept} kept unchanged and the later ones are removed, so nothing was searched or refitted.",
        "It was not trained after its last layers were removed, and is meant to be: darwinlm recover teaches the first "
        "ones to give what the whole model gave.",
    )


class GenerationFigures(Extract):
    """The parent after a generation: its KL, how many of its modules changed, and the evaluations so far."""

    number: int
    kl: float
    moved: int
    evaluations: int


class SearchFigures(StepFigures):
    """How the sizes were chosen. KL is to the model that was cut, in nats per token of fitness text.

    It is that of the first parent, which has equal layers, of the best model with equal layers, and of the answer.
    `described` is what the method says of itself, to end a sentence. `history` begins with the first parent. `unit` is
    that of the losses: of a language model they are KL. `first` is the number of layers if the first ones were kept.
    """

    heading: ClassVar[str] = "Search"

    method: str
    described: str
    unit: str = NATS
    start_kl: float
    uniform_kl: float
    kl: float
    evaluations: int
    seconds: float
    ended: str
    generations: int
    history: tuple[GenerationFigures, ...] = ()
    first: int | None = None

    @property
    def chose(self) -> bool:
        """Whether there was a choice: False if all blocks fit into the budget, or the first ones were asked for."""
        return self.evaluations > 0

    @property
    def _kept(self) -> Kept | None:
        """What was kept without a choice."""
        if self.chose:
            return None
        return WHOLE if self.first is None else first_layers(self.first)

    @property
    def label(self) -> str:
        """The sizes were searched for, if there was a choice."""
        return "searched" if self._kept is None else self._kept.label

    @property
    def chosen_by(self) -> str:
        """What chose the sizes, in words: only what ran is named."""
        if not self.generations:
            return "equal layers brought to the budget, without a generation of search"
        return f"an evolutionary search of {plural(self.generations, 'generation')} {self.described}"

    def account(self) -> tuple[str, ...]:
        """What chose the sizes, from which KL to which."""
        if self._kept is not None:
            return (self._kept.account,)
        own = f"{nats(self.kl)} nats per token" if self.unit == NATS else f"{self.kl:.3g}"
        uniform = nats(self.uniform_kl) if self.unit == NATS else f"{self.uniform_kl:.3g}"
        return (
            f"The sizes come from {self.chosen_by}. It started from nearly equal layers at "
            f"{loss(self.start_kl, self.unit)} to the dense model and ended at {own} on the search's own text, after "
            f"{self.evaluations:,} evaluations in {duration(self.seconds)}: {self.ended}. The best model with equal "
            f"layers has {uniform} on that text.",
        )

    def expectation(self) -> str:
        """What was lost if the blocks are unchanged."""
        return "" if self._kept is None else self._kept.expectation

    def note(self) -> str:
        """Which models are the same, if nothing was removed from the blocks."""
        return "" if self._kept is None else self._kept.note

    def pictures(self) -> tuple[Picture, ...]:
        """KL by generation beside that of the uniform model, and how many modules each generation changed."""
        if len(self.history) < 2:
            return ()
        numbers = tuple(float(generation.number) for generation in self.history)
        tips = tuple(
            f"generation {generation.number}: {loss(generation.kl, self.unit)} after {generation.evaluations:,} "
            "evaluations"
            for generation in self.history
        )
        generations = Axis("generation", whole, steps=True)
        named, show = ("KL", nats) if self.unit == NATS else (f"{self.unit[:1].upper()}{self.unit[1:]}", three_digits)
        losses = Chart(
            f"{named} of the best model so far",
            generations,
            Axis("KL, nats per token" if self.unit == NATS else self.unit, show),
            (
                Curve("", numbers, tuple(generation.kl for generation in self.history), tips),
                Level(self.uniform_kl, f"uniform model {show(self.uniform_kl)}"),
            ),
        )
        moved = tuple(float(generation.moved) for generation in self.history[1:])
        changed = tuple(
            f"generation {generation.number}: {plural(generation.moved, 'module')} changed"
            for generation in self.history[1:]
        )
        changes = Chart(
            "Modules that a generation changed",
            generations,
            Axis("attention and MLP modules", whole, steps=True),
            (Bars(numbers[1:], moved, moved, changed),),
        )
        return (Picture("search", (losses, changes)),)

    def card(self) -> str:
        """What chose the sizes, and what it gained."""
        if self._kept is not None:
            return self._kept.account
        own = f"{nats(self.kl)} nats per token" if self.unit == NATS else f"{self.kl:.3g}"
        return (
            "Attention and MLP sub-layers were pruned to many sizes with second-order information from calibration "
            f"text (structured optimal brain surgeon). The size of each comes from {self.chosen_by}: "
            f"{self.evaluations:,} evaluations, from {loss(self.start_kl, self.unit)} to {own} on the search's own "
            "text."
        )


class SearchRecord(TypedDict):
    """Figures of a search; KL to the dense model is in nats per token of fitness text.

    Attributes:
        start_kl: KL of the first parent.
        uniform_kl: KL of the best uniform model at the same budget.
        kl: KL of the best allocation.
        cost: Its cost, in the unit of the budget.
        evaluations: Number of evaluated candidates.
        ended: Why the search ended.
        history: The parent after each generation, the start first.
        first: Number of layers if the first ones were asked for.
    """

    start_kl: float
    uniform_kl: float
    kl: float
    cost: int
    evaluations: int
    seconds: float
    ended: str
    history: list[dict[str, object]]
    first: NotRequired[int | None]


class SearchOutcome(TypedDict):
    """What a search writes: the best allocation, the best uniform one at the same budget, and the record."""

    allocation: tuple[int, ...]
    uniform: tuple[int, ...]
    record: SearchRecord
