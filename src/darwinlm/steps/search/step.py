"""Search: the allocation of levels to modules with the lowest loss within the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.runtime.sections import Sections
from darwinlm.runtime.step import Cost, Step, Task, Uses, Work
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.search.search_figures import SearchFigures, SearchRecord
from darwinlm.steps.search.search_method import SEARCH_METHODS
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.text.text_settings import TextSettings

if TYPE_CHECKING:
    from darwinlm.model.families.checkpoint import Checkpoint
    from darwinlm.model.units.space import Allocation
    from darwinlm.model.walk.decoder import Decoder
    from darwinlm.steps.budget.problem import Problem
    from darwinlm.steps.database.step import Modules
    from darwinlm.steps.text.sequences import TokenSequences
    from darwinlm.steps.workload import Workload

MEETINGS = 2.5
"""How often processes meet in a block of a walk; 2.1 and 2.3 were counted in searches of a tiny model."""
RESULT = "result.json"


@dataclass(frozen=True)
class SearchResult:
    """Best allocation, best uniform one at the same budget, and the record: start, history and figures."""

    allocation: Allocation
    uniform: Allocation
    record: SearchRecord
    digest: str

    @property
    def chose(self) -> bool:
        """Whether there was a choice: False if all blocks fit into the budget."""
        return self.record["evaluations"] > 0


@dataclass(frozen=True, eq=False)
class Search(Step[SearchResult]):
    """One level for every module.

    Attributes:
        database: Modules at every level; whole or removed if there is nothing to choose.
        fitness: Text of the candidates' losses; None if there is nothing to choose.
        training: Text on which candidates are trained, if they are.
    """

    name = "search"
    version = 17
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
    database: Modules
    problem: Problem
    fitness: TokenSequences | None
    training: TokenSequences | None

    @classmethod
    def text_needed(cls, recipe: Sections) -> Mapping[str, int]:
        """Fitness text, and text on which candidates are trained."""
        settings = recipe.section(SearchSettings)
        return {"fitness": settings.fitness_needed, "training": settings.training_needed}

    def work(self, task: Task) -> None:
        """Find the allocation; if there is only one, nothing is evaluated."""
        from darwinlm.model.families.shapes import module_shapes
        from darwinlm.model.objective.chosen import objective_of
        from darwinlm.model.walk.decoder import Decoder
        from darwinlm.model.walk.streamed import StreamedDecoder
        from darwinlm.runtime import parallel
        from darwinlm.runtime.artifact import write_json
        from darwinlm.steps.database.sharing import block_owner
        from darwinlm.steps.database.step import PruningDatabase
        from darwinlm.steps.search.search import search, without_choice

        if self.problem.only is not None:
            parallel.in_main(write_json, task.folder / RESULT, without_choice(self.problem, self.problem.only))
            return
        assert isinstance(self.database, PruningDatabase), "a search has a database"
        assert self.fitness is not None, "a search has text"
        context, dense, settings = task.context, self.dense, task.settings(SearchSettings)
        texts = {"fitness": self.fitness.tokens}
        if self.training is not None:
            texts["training"] = self.training.tokens
        model: Decoder
        if settings.training_needed:  # candidates in training are whole models
            model = Decoder(dense.load(context.dtype, context.device), dense.family)
        else:
            units, outputs = task.settings(UnitsSettings), int(dense.config.hidden_size)
            owner = block_owner(module_shapes(dense), units, outputs, dense.n_blocks, parallel.size())
            model = StreamedDecoder(dense, self.fitness.tokens, dtype=context.dtype, device=context.device, owner=owner)
        result = search(
            model,
            self.database.reader,
            self.problem,
            objective_of(dense),
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
        from darwinlm.model.objective.chosen import objective_of

        method, generations = task.settings(SearchSettings).method, max(len(result.record["history"]) - 1, 0)
        ran = {"method": SEARCH_METHODS.name_of(type(method)), "described": method.words, "generations": generations}
        return SearchFigures.of_record({**ran, "unit": objective_of(self.dense).unit, **result.record})

    @classmethod
    def cost(cls, load: Workload) -> Cost | None:
        """Passes of candidates, what the method takes, and modules cut at new levels. None if all blocks fit."""
        from darwinlm.model.walk.chunks import HEAD_TOKENS
        from darwinlm.model.walk.hidden import STREAMS
        from darwinlm.runtime.memory import CACHES, FRAGMENTS, OTHERS, passed_on
        from darwinlm.steps.workload import LIBRARIES

        sizes, settings, k = load.sizes, load.settings(SearchSettings), load.sizes.kept
        if sizes.whole:
            return None
        own, times, fitness = settings.method.cost(load, settings), settings.generations, settings.fitness_needed
        first = settings.rounds[0].tokens
        # Processes take pieces of a window: whole sequences, of their part of the tokens in a pass.
        piece = max(sizes.pass_tokens // sizes.processes, load.settings(TextSettings).sequence_length)
        read, learnt, before = 4.0 * first + 2.0 * fitness, 0.0, 0  # the start comes first
        passes = load.passes(4.0 * first, k, heads=1, at_once=first) + load.passes(2.0 * fitness, k, heads=1)
        for selection, count in zip(settings.rounds, settings.method.evaluated(settings), strict=True):
            # Losses of earlier rounds are kept, unless candidates are trained.
            new = selection.tokens - (0 if selection.training_tokens else before)
            read += times * count * new
            passes += load.passes(count * new, k, heads=1, at_once=min(new, piece)) * times
            learnt += times * (count + 1) * selection.training_tokens
            before = selection.tokens
        work = own.operations + sizes.operations(read, k, heads=1) + sizes.operations(fitness, heads=1)
        work += sizes.operations(learnt, k, blocks=4, heads=3)
        for d in (float(shape.sizes.width) for shape in sizes.cut):  # two levels of each module
            work += load.slow * times * 2 * d * d * k**2 * sizes.width
        shared = sizes.processes > 1 and not settings.training_needed  # whole models share nothing
        owners, share = (sizes.processes, load.share(sizes.depth)) if shared else (1, 1.0)
        streams = min((settings.offspring + 2) * float(fitness * sizes.width * sizes.size), STREAMS)
        held = dict(own.memory) | {"heads": load.head, "candidates' streams": streams}
        held["logits"] = max(16.0 * HEAD_TOKENS * sizes.vocabulary, load.compared)
        held |= {"factors of one module": 4 * load.widest * (load.widest + 4 * sizes.width), "blocks": 3 * load.block}
        if settings.training_needed:
            changes = (12 + 2 * sizes.size) * sizes.kept * sizes.blocks
            held |= load.backward | {"whole models": float(sizes.params * sizes.size), "candidates": changes}
        # Caches hold what could be in them, or the memory that is left.
        room = load.memory if load.on_cpu else (1 - FRAGMENTS) * load.memory
        room -= sum(held.values()) + (LIBRARIES if load.on_cpu else 0.0)
        if load.on_cpu and sizes.recipe.compute.memory is None:
            room = min(room, (1 - OTHERS) * (load.memory - LIBRARIES))
        factors = sum(
            4.0 * max(shape.sizes.experts, 1) * shape.sizes.width * (shape.sizes.width + sizes.width) / owners
            for shape in sizes.cut
        )
        levels = sum(level.params for module in sizes.space.modules for level in module.levels[:-1])
        most = {"blocks": sizes.params * sizes.size, "factors": factors, "modules": levels * sizes.size}
        caches = min(sum(most.values()), max(room, 0.0))  # those that need less pass the rest on
        parts = dict(own.parts) or {"proposals": Work(products=own.operations / sizes.processes)}
        # Blocks without room are read in each walk: one for each round, and two for the slopes. Factors without room
        # are unpacked for the slopes and for new levels.
        shares = passed_on(CACHES, {name: size / max(room, 1.0) for name, size in most.items()})
        rooms = {name: shares[name] * max(room, 0.0) / max(most[name], 1.0) for name in most}
        walks = times * (len(settings.rounds) + 2)
        again = 0.0 if rooms["blocks"] >= 1 else max(1 - rooms["blocks"] * owners, 0.0)
        heads = load.passes(fitness * sizes.processes, 0, blocks=0, heads=1)  # the dense model's, in each process
        passes += load.passes(fitness) + heads + load.passes(learnt, k, blocks=4, heads=3)
        parts["passes"] = passes + load.loading(share * sizes.blocks, 1 + again * walks)
        unpacked = load.unpacking() * (1 + 2 * max(1 - rooms["factors"], 0.0) * times)
        cut = load.cutting(k) * (2.0 * times) + unpacked  # two levels of each
        parts["modules"] = cut * share + Work(read=factors / 2)
        if shared:
            parts["exchange"] = cls._sent(
                load, settings, walks, stay=rooms["blocks"] >= 1, room=rooms["modules"] * most["modules"]
            )
        return Cost(work, held, caches, parts=parts)

    @staticmethod
    def _sent(load: Workload, settings: SearchSettings, walks: float, *, stay: bool, room: float) -> Work:
        """What owners of blocks send: each block once, or in each walk; new levels, and those that have no room.

        `room` is that of the modules: the parent's, and those of the children of a generation, come again in its walks.
        """
        sizes, children = load.sizes, settings.method.evaluated(settings)
        again = (1 + children[0]) * sizes.kept * sizes.blocks * sizes.size
        times = 1 + (0.0 if stay else walks)
        new, dropped = 2 * settings.generations, max(1 - room / max(again, 1.0), 0.0)
        times += sizes.kept * (new + dropped * sum(children) / len(settings.rounds) * walks)
        sent = times * sizes.blocks + settings.fitness_needed * sizes.width  # and the dense model's streams
        return Work(sent=sent * sizes.size) + load.meeting(MEETINGS * sizes.depth * walks)


@dataclass(frozen=True)
class _Stored:
    allocation: tuple[int, ...]
    uniform: tuple[int, ...]
    record: dict[str, object]
