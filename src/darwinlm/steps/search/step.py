"""Search: the allocation of levels to modules with the lowest loss within the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, TypedDict, cast

from pydantic import Field, model_validator

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.amounts import duration, nats, plural
from darwinlm.runtime.figures import StepFigures
from darwinlm.runtime.quantities import Minutes, Repeats, Seed, Whole
from darwinlm.runtime.section import Section
from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Uses
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.search.gradient_method import GradientMethod
from darwinlm.steps.search.paper_method import PaperMethod  # noqa: F401 - it registers itself
from darwinlm.steps.search.search_method import SEARCH_METHODS, SearchMethod

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.units.space import Allocation
    from darwinlm.model.walk.decoder import Decoder
    from darwinlm.steps.budget.problem import Problem
    from darwinlm.steps.database.step import PruningDatabase
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

RESULT = "result.json"


class SelectionRound(Section):
    """One round of selection in a generation; all candidates are evaluated on the same tokens."""

    tokens: Whole = Field(gt=0)
    """Fitness tokens for each candidate."""
    survivors: Repeats = Field(gt=0)
    """Number of candidates that survive the round."""
    training_tokens: Whole = Field(0, ge=0)
    """Training tokens of each candidate before its evaluation, in addition to earlier rounds; 0 for none."""


class SearchSettings(Section):
    """Evolution over allocations: one level for every module."""

    minutes: Minutes | None = Field(None, gt=0)
    """Time limit of the search (30, 30m, 1h, 90s); it then returns the best allocation so far."""
    method: Annotated[SearchMethod, SEARCH_METHODS] = GradientMethod()
    """`gradient`: children predicted from gradients of the loss and the database's estimates; any modules may trade,
    and steps shrink. `paper`: DarwinLM's level switch, one level up and one down within a kind."""
    layers: Literal["auto", "unequal", "equal"] = "auto"
    """`equal`: all layers have the same sizes, and whole blocks may be removed; the family's own class and every engine
    run such a model. `unequal` layers often lose less. `auto` is equal if the GGUF file that `units.quantisation` asks
    for needs it."""
    generations: Repeats = Field(12, ge=1)
    """Maximum number of generations; the paper has 200. More than ten of `gradient` end when ten gained nothing
    significant."""
    offspring: Repeats = Field(12, ge=1)
    """Maximum number of candidates in a generation; the paper has 16."""
    rounds: tuple[SelectionRound, ...] = (
        SelectionRound(tokens=2048, survivors=2),
        SelectionRound(tokens=8192, survivors=1),
    )
    """Rounds of selection as in the paper: `tokens` of fitness text, `survivors`, and `training_tokens` before the
    evaluation. The largest `tokens` is the amount of fitness text, of which `gradient` uses a different part in the
    first round of each generation."""
    seed: Seed = 0
    """Seed of all random choices of the search."""

    @model_validator(mode="after")
    def _survivors_shrink(self) -> SearchSettings:
        if not self.rounds:
            raise ValueError("rounds: at least one is needed")
        counts = [self.offspring, *(selection.survivors for selection in self.rounds)]
        if any(later >= earlier for earlier, later in pairwise(counts)):
            raise ValueError(f"rounds: survivors must decrease, starting below the offspring, but they are {counts}")
        if self.layers == "equal" and not self.method.equal_layers:
            name = SEARCH_METHODS.name_of(type(self.method))
            raise ValueError(f"method={name} trades levels between layers, which layers=equal doesn't allow")
        if counts[-1] != 1:
            raise ValueError(f"rounds: the last one must leave one survivor, but it leaves {counts[-1]}")
        return self

    @property
    def training_needed(self) -> int:
        """Number of training tokens that the search needs."""
        return sum(selection.training_tokens for selection in self.rounds)

    @property
    def fitness_needed(self) -> int:
        """Number of fitness tokens that the search needs."""
        return max(selection.tokens for selection in self.rounds)


class SearchFigures(StepFigures):
    """How the sizes were chosen. KL is to the model that was cut, in nats per token of fitness text.

    It is that of the first parent, which has equal layers, of the best model with equal layers, and of the answer.
    `described` is what the method says of itself, to end a sentence.
    """

    heading: ClassVar[str] = "Search"

    method: str
    described: str
    start_kl: float
    uniform_kl: float
    kl: float
    evaluations: int
    seconds: float
    ended: str
    generations: int

    @property
    def label(self) -> str:
        """The sizes were searched for."""
        return "searched"

    @property
    def chosen_by(self) -> str:
        """What chose the sizes, in words: only what ran is named."""
        if not self.generations:
            return "equal layers brought to the budget, without a generation of search"
        return f"an evolutionary search of {plural(self.generations, 'generation')} {self.described}"

    def account(self) -> tuple[str, ...]:
        """What chose the sizes, from which KL to which."""
        return (
            f"The sizes come from {self.chosen_by}. It started from nearly equal layers at KL {nats(self.start_kl)} to "
            f"the dense model and ended at {nats(self.kl)} nats per token on the search's own text, after "
            f"{self.evaluations:,} evaluations in {duration(self.seconds)}: {self.ended}. The best model with equal "
            f"layers has {nats(self.uniform_kl)} on that text.",
        )

    def card(self) -> str:
        """What chose the sizes, and what it gained."""
        return (
            "Attention and MLP sub-layers were pruned to many sizes with second-order information from calibration "
            f"text (structured optimal brain surgeon). The size of each comes from {self.chosen_by}: "
            f"{self.evaluations:,} evaluations, from KL {nats(self.start_kl)} to {nats(self.kl)} nats per token on the "
            "search's own text."
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
    """

    start_kl: float
    uniform_kl: float
    kl: float
    cost: int
    evaluations: int
    seconds: float
    ended: str
    history: list[dict[str, object]]


class SearchOutcome(TypedDict):
    """What a search writes: the best allocation, the best uniform one at the same budget, and the record."""

    allocation: tuple[int, ...]
    uniform: tuple[int, ...]
    record: SearchRecord


@dataclass(frozen=True)
class SearchResult:
    """Best allocation, best uniform one at the same budget, and the record: start, history and figures."""

    allocation: Allocation
    uniform: Allocation
    record: SearchRecord
    digest: str


@dataclass(frozen=True, eq=False)
class Search(Step[SearchResult]):
    """One level for every module.

    Attributes:
        training: Text on which candidates are trained, if they are.
    """

    name = "search"
    version = 16
    writes = "the allocation, and the history of the search"
    Settings = SearchSettings
    section = "search"
    Figures = SearchFigures
    text_use = (
        ("fitness", "losses of the search's candidates"),
        ("training", "training of the search's candidates"),
    )
    settings = (Uses(SearchSettings), Uses(UnitsSettings), Uses(BudgetSettings))
    arithmetic = True
    together = True
    ends_early = True

    dense: Checkpoint
    database: PruningDatabase
    problem: Problem
    fitness: TokenSequences
    training: TokenSequences | None

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Fitness text, and text on which candidates are trained."""
        settings = recipe.section(SearchSettings)
        return {"fitness": settings.fitness_needed, "training": settings.training_needed}

    def work(self, task: Task) -> None:
        """Find the allocation."""
        from darwinlm.model.walk.decoder import Decoder
        from darwinlm.model.walk.streamed import StreamedDecoder
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.search.search import search

        context, dense, settings = task.context, self.dense, task.settings(SearchSettings)
        texts = {"fitness": self.fitness.tokens}
        if self.training is not None:
            texts["training"] = self.training.tokens
        model: Decoder
        if settings.training_needed:  # candidates in training are whole models
            model = Decoder(dense.load(context.dtype, context.device), dense.family)
        else:
            model = StreamedDecoder(dense, self.fitness.tokens, dtype=context.dtype, device=context.device)
        result = search(
            model,
            self.database.reader,
            self.problem,
            texts,
            settings,
            task.folder,
            context.reporter,
            batch_tokens=context.batch_tokens,
            seconds=task.left(self.name),
        )
        parallel.in_main(write_json, task.folder / RESULT, result)

    def read(self, task: Task) -> SearchResult:
        """The result of the search. Raises ArtifactError."""
        from darwinlm.runtime.artifact import read_as

        stored = read_as(task.folder / RESULT, _Stored)
        return SearchResult(stored.allocation, stored.uniform, cast("SearchRecord", stored.record), task.stage.digest)

    def figures(self, task: Task, result: SearchResult) -> SearchFigures:
        """From the record."""
        method, generations = task.settings(SearchSettings).method, len(result.record["history"]) - 1
        ran = {"method": SEARCH_METHODS.name_of(type(method)), "described": method.words, "generations": generations}
        return SearchFigures.of_record({**ran, **result.record})

    @classmethod
    def cost(cls, load: Workload) -> Cost:
        """Passes of candidates, what the method takes, and modules cut at new levels."""
        from darwinlm.model.walk.chunks import HEAD_TOKENS
        from darwinlm.model.walk.hidden import STREAMS
        from darwinlm.runtime.memory import CACHES, FRAGMENTS, OTHERS
        from darwinlm.steps.workload import LIBRARIES

        sizes, settings, k = load.sizes, load.settings(SearchSettings), load.sizes.kept
        own, times, fitness = settings.method.cost(load), settings.generations, settings.fitness_needed
        read, learnt, before = 4.0 * settings.rounds[0].tokens + 2.0 * fitness, 0.0, 0  # the start comes first
        for selection, count in zip(settings.rounds, settings.method.evaluated(settings), strict=True):
            # Losses of earlier rounds are kept, unless candidates are trained.
            read += times * count * (selection.tokens - (0 if selection.training_tokens else before))
            learnt += times * (count + 1) * selection.training_tokens
            before = selection.tokens
        work = own.operations + sizes.operations(read, k, heads=1) + sizes.operations(fitness, heads=1)
        work += sizes.operations(learnt, k, blocks=4, heads=3)
        for d in (float(shape.sizes.width) for shape in sizes.cut):  # two levels of each module
            work += load.slow * times * 2 * d * d * k**2 * sizes.width
        streams = min((settings.offspring + 2) * float(fitness * sizes.width * sizes.size), STREAMS)
        held = dict(own.memory) | {"heads": load.head, "candidates' streams": streams}
        held["logits"] = max(16.0 * HEAD_TOKENS * sizes.vocabulary, load.compared)
        held |= {"factors of one module": 4 * load.widest * (load.widest + 4 * sizes.width), "blocks": 3 * load.block}
        if settings.training_needed:
            changes = (12 + 2 * sizes.size) * sizes.kept * sizes.blocks
            held |= load.backward | {"whole models": float(sizes.params * sizes.size), "candidates": changes}
        # Caches hold what could be in them, or their shares of the memory that is left.
        room = load.memory if load.on_cpu else (1 - FRAGMENTS) * load.memory
        room -= sum(held.values()) + (LIBRARIES if load.on_cpu else 0.0)
        if load.on_cpu and sizes.recipe.compute.memory is None:
            room = min(room, (1 - OTHERS) * (load.memory - LIBRARIES))
        factors = sum(
            4.0 * max(shape.sizes.experts, 1) * shape.sizes.width * (shape.sizes.width + sizes.width)
            for shape in sizes.cut
        )
        levels = sum(level.params for module in sizes.space.modules for level in module.levels[:-1])
        most = {"blocks": sizes.params * sizes.size, "factors": factors, "modules": levels * sizes.size}
        caches = sum(min(held_most, CACHES[name] * max(room, 0.0)) for name, held_most in most.items())
        return Cost(work, held, caches)


@dataclass(frozen=True)
class _Stored:
    allocation: tuple[int, ...]
    uniform: tuple[int, ...]
    record: dict[str, object]
