"""A time limit of a run: before a stage, the settings of the remaining ones are fitted to the time that is left.

The plan is scaled by the present speed of passes. If the remaining stages take too long, all of their text and steps
are lowered to the same share, but never below what a useful model needs; refit and recovery are left out instead. A run
that can't become useful within its limit is refused before its first stage, unless it asks for the best effort. Search,
recovery and evaluation also end by the clock. The settings are kept in a file, with which an interrupted run resumes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from darwinlm.execution.run import Run
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.needs.need import Rates
from darwinlm.needs.sizes import Sizes
from darwinlm.pipeline import PRUNE
from darwinlm.planning.devices import device_here
from darwinlm.planning.plan import estimate
from darwinlm.planning.probe import Machine
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import duration
from darwinlm.runtime.artifact import digest_of, read_as, write_json
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.figures import TimeFigures
from darwinlm.search.evolve.evolution import OUT_OF_TIME
from darwinlm.stages.chats import CHATS
from darwinlm.stages.database import DATABASE, SALIENCY
from darwinlm.stages.evaluate import EVALUATE
from darwinlm.stages.model import DENSE, SOURCE
from darwinlm.stages.recover import RECOVER
from darwinlm.stages.refit import REFIT
from darwinlm.stages.search import SEARCH
from darwinlm.stages.text import TEXT

FILE = "time_limit.json"

AMOUNTS: Mapping[str, tuple[tuple[str, int, str], ...]] = {
    DATABASE.name: (("text.calibration_tokens", 8192, "calibration text"),),
    SEARCH.name: (),
    REFIT.name: (("refit.tokens", 16384, "text of the refit"), ("text.validation_tokens", 1024, "validation text")),
    RECOVER.name: (("recovery.tokens", 4096, "training"), ("text.validation_tokens", 1024, "validation text")),
    CHATS.name: (("evaluation.answer_tokens", 1024, "figures on chats"),),
    EVALUATE.name: (("text.evaluation_tokens", 1024, "evaluation text"),),
}
"""Stages whose time depends on amounts of text, in order: setting, tokens that a useful model needs, and name. Measured
on SmolLM2-135M (docs/notebook/speed.md, "The least that makes a useful model")."""

OPTIONAL = {REFIT.name: "refit.tokens", RECOVER.name: "recovery.tokens", CHATS.name: "evaluation.answer_tokens"}
"""Stages that are left out rather than run on less, with the setting of their amount."""

ROUND_TOKENS = 1024
"""Tokens of a search's rounds that a useful model needs."""

SCARCE = 0.125
"""Share of the needed amounts to which the best effort goes down."""

PLANNED, EVALUATED = 0.9, 0.97
"""Shares of the limit that are planned, and until which the evaluation may last."""

SHARES = tuple(0.85**step for step in range(26))
"""Shares of the recipe's amounts, the largest first. If none fits, 0 is the least text, without refit and recovery."""


@dataclass(frozen=True)
class _Entry:
    """What was decided for a stage: the key of the recipe, assignments, and seconds used until then."""

    key: str
    settings: list[str]
    used: float


class TimeLimit:
    """The time limit of one run, or of several runs that share the stages before the search.

    It starts at `begun` on the clock, or now. A run that has begun always ends with a model, if need be later.
    """

    def __init__(
        self,
        seconds: float,
        *,
        runs: int = 1,
        begun: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        machine: Callable[[Sizes, Any], Machine] = Machine,
    ) -> None:
        self.seconds, self.runs, self.clock, self.machine = seconds, runs, clock, machine
        self.begun, self.earlier = clock() if begun is None else begun, 0.0
        self._measured: Machine | None = None
        self._run: Run | None = None
        self._asked: Recipe | None = None
        self._fitted_stages: list[str] = []
        self._ends: float | None = None

    @classmethod
    def of(cls, recipe: Recipe, *, runs: int = 1, begun: float | None = None) -> TimeLimit | None:
        """The limit in a recipe; None without one."""
        return None if recipe.time is None else cls(60 * recipe.time, runs=runs, begun=begun)

    @property
    def used(self) -> float:
        """Seconds used so far, with those of an interrupted run."""
        return self.earlier + self.clock() - self.begun

    def before(self, stage: str, run: Run) -> list[str]:
        """Assignments that fit a stage and its successors into the time that is left.

        Raises RecipeError if a run that hasn't begun can't make a useful model in its time, and didn't ask for that.
        """
        if run.graph[stage].need is None:
            return []
        if self._run is None:
            self._run = run
            with parallel.agree():
                if parallel.is_main() and not (run.context.path(stage).parent / FILE).exists():
                    self._check(run)
        stage = DATABASE.name if stage == SALIENCY.name else stage  # they have the same text
        if stage not in AMOUNTS:
            return []
        if run is not self._run or self._asked is None:
            self._asked = _available(run)  # which runs stages before this one
            self._run, self._fitted_stages = run, []
        if stage in self._fitted_stages:
            return []
        self._fitted_stages.append(stage)
        with parallel.agree():
            settings = self._kept(stage, run) if parallel.is_main() else []
        if stage == EVALUATE.name:
            self._ends = self.clock() + max(EVALUATED * self.seconds - self.used, 0.0) / self.runs
            self.runs -= 1
        return parallel.broadcast(settings)

    def ends(self) -> float | None:
        """When the evaluation must end; None before it is known."""
        return self._ends

    def figures(self) -> TimeFigures | None:
        """The limit, the time used, and what was shortened in the present run."""
        if self._run is None or self._asked is None:
            return None
        taken, record = self._run.recipe, self._run[SEARCH].record
        shorter = [*differences(self._asked, taken)]
        done = record["history"][-1]["number"]
        if record["ended"] == OUT_OF_TIME:
            shorter.append(f"{done} of at most {self._asked.search.generations} generations of the search")
        too_short = is_scarce(self._asked, taken) or (not done and self._asked.search.generations > 0)
        used = round(self.used, 1)
        return TimeFigures(limit=self.seconds, seconds=used, shortened=tuple(shorter), too_short=too_short)

    def _check(self, run: Run) -> None:
        """Say how long the run takes. Raises RecipeError if the least that is useful takes longer than the limit."""
        recipe = run.asked
        sizes = _sizes(run[SOURCE], recipe)
        slower = self._of(sizes, run).slowdown()
        whole, least = (
            slower * sum(self._planned(sizes, recipe, PRUNE.steps[0], share).values()) for share in (1.0, 0.0)
        )
        enough = (self.used + least) / PLANNED
        if enough > self.seconds and not recipe.best_effort:
            minutes = math.ceil(1.1 * enough / 60)
            raise RecipeError(
                f"time: {duration(self.seconds)} is too short for a useful model on this machine at its present speed, "
                f"which takes about {duration(enough)}: repeat the command with --time {minutes}m, or with "
                "--best-effort to go on anyway"
            )
        about = self.used + min(whole, max(least, PLANNED * self.seconds - self.used))
        run.context.reporter.say(f"this takes about {duration(about)} here (time limit {duration(self.seconds)})")

    def _kept(self, stage: str, run: Run) -> list[str]:
        """Assignments for a stage: those of an interrupted run, or new ones."""
        assert self._asked is not None
        file = run.context.path(stage).parent / FILE
        # The budgets of a sweep share a database.
        key = digest_of(self._asked.model_dump(mode="json", exclude={"budget"} if stage == DATABASE.name else None))
        record = read_as(file, dict[str, _Entry]) if file.exists() else {}
        entry = record.get(stage)
        if entry is None or entry.key != key:
            settings = self._fitted(stage, run)
            entry = record[stage] = _Entry(key, settings, round(self.used, 3))
            write_json(file, {name: asdict(each) for name, each in record.items()})
        self.earlier += max(0.0, entry.used - self.used)
        return list(entry.settings)

    def _fitted(self, stage: str, run: Run) -> list[str]:
        """Assignments with which the remaining stages fit into the time that is left."""
        assert self._asked is not None
        if not run.graph[stage].wanted(run.recipe):
            return []
        sizes = _sizes(run[DENSE], self._asked)
        slower = self._of(sizes, run).slowdown()
        room = (PLANNED * self.seconds - self.used) / (1 if stage == DATABASE.name else self.runs)

        def planned(share: float, scarce: float = 1.0) -> dict[str, float]:
            found = self._planned(sizes, run.recipe, stage, share, scarce)
            return {name: slower * seconds for name, seconds in found.items()}

        choices = [(share, 1.0) for share in (*SHARES, 0.0)]
        if self._asked.best_effort or stage != DATABASE.name:
            choices.append((0.0, SCARCE))
        share, scarce = next((each for each in choices if sum(planned(*each).values()) <= room), choices[-1])
        seconds = planned(share, scarce)
        settings = _assignments(shortened(self._asked, share, stage, scarce))
        # Search and recovery can stop at any time, so they get what the others leave.
        limited = {
            SEARCH.name: ("search.minutes", self._asked.search.minutes),
            RECOVER.name: ("recovery.minutes", None),
        }
        if stage in limited and stage in seconds:
            name, given = limited[stage]
            minutes = (max(room - sum(seconds.values()), 0.0) + seconds[stage]) / 60
            settings.append(f"{name}={min(minutes, given or minutes):.4g}")
        if share < 1:
            part = f" with {share:.0%} of the text" if share else " with the least text"
            left = f"{' + '.join(name for name in seconds if name in AMOUNTS)}{part}"
            run.context.reporter.say(f"time limit: {duration(max(room, 0))} left for {left}")
        return settings

    def _of(self, sizes: Sizes, run: Run) -> Machine:
        self._measured = self._measured or self.machine(sizes, run.context.device)
        return self._measured

    def _planned(self, sizes: Sizes, recipe: Recipe, stage: str, share: float, scarce: float = 1.0) -> dict[str, float]:
        """Seconds of a stage and its successors on an idle machine, by stage, with one generation of the search."""
        assert self._measured is not None
        asked = self._asked or recipe
        settings = ["search.generations=1", "search.minutes=null", "recovery.minutes=null"]
        for name in AMOUNTS:
            if PRUNE.steps.index(name) >= PRUNE.steps.index(stage):
                settings += _assignments(shortened(asked, share, name, scarce))
        planned: dict[str, float] = {}
        first = SALIENCY.name if stage == DATABASE.name else stage
        for need in estimate(sizes.with_recipe(load_recipe(recipe, settings, {})), device_here(self._measured.device)):
            if PRUNE.steps.index(need.name) >= PRUNE.steps.index(first):
                shared = PRUNE.steps.index(need.name) <= PRUNE.steps.index(DATABASE.name)
                several = 1 if shared or PRUNE.steps.index(first) > PRUNE.steps.index(DATABASE.name) else self.runs
                planned[need.name] = several * need.unbounded(Rates(self._measured))
        return planned


def _sizes(checkpoint: Checkpoint, recipe: Recipe) -> Sizes:
    sizes = Sizes(checkpoint, recipe, parallel.size())
    _ = sizes.kept_blocks  # kept for other settings
    return sizes


def _available(run: Run) -> Recipe:
    """The run's recipe with no more text than there is."""
    recipe, text = run.asked, run[TEXT]
    asked = recipe.text.model_dump()
    fewer = {f"text.{name}_tokens": part.n_tokens for name, part in text.items() if f"{name}_tokens" in asked}
    fewer = {name: count for name, count in fewer.items() if count < asked[name.removeprefix("text.")]}
    return load_recipe(recipe, _assignments(fewer), {})


def _assignments(settings: dict[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]


def shortened(recipe: Recipe, share: float, stage: str, scarce: float = 1.0) -> dict[str, Any]:
    """Settings of a stage by dotted name, with its amounts lowered to a share; those that stay are left out.

    No amount falls below what a useful model needs, times `scarce`.
    """
    length = recipe.text.sequence_length
    if share >= 1:
        return {}
    if stage == SEARCH.name:
        rounds = [each.model_dump() for each in recipe.search.rounds]
        least = max(int(scarce * ROUND_TOKENS), length)
        shorter = [
            each
            | {
                "tokens": min(each["tokens"], max(int(share * each["tokens"]), least) // length * length),
                "training_tokens": int(share * each["training_tokens"]),
            }
            for each in rounds
        ]
        return {"search.rounds": shorter} if shorter != rounds else {}
    settings: dict[str, Any] = {}
    for name, needed, _ in AMOUNTS[stage]:
        amount = attrgetter(name)(recipe)
        if name == OPTIONAL.get(stage) and share * amount < needed:
            return {name: 0} if amount else {}
        least = max(int(scarce * needed), 2 * length)
        wanted = max(int(share * amount), least) // length * length
        if wanted < amount:
            settings[name] = wanted
    return settings


def differences(asked: Recipe, taken: Recipe) -> Iterator[str]:
    """What was shortened, in words: `calibration text 8,192 of 65,536 tokens`."""
    for stage, name in OPTIONAL.items():
        if attrgetter(name)(asked) and not attrgetter(name)(taken):
            yield f"no {PRUNE[stage].title}"
    for name, (_, words) in _named().items():
        given, used = attrgetter(name)(asked), attrgetter(name)(taken)
        if 0 < used < given:
            yield f"{words} {used:,} of {given:,} tokens"
    if taken.search.fitness_needed < asked.search.fitness_needed:
        yield f"text of the search {taken.search.fitness_needed:,} of {asked.search.fitness_needed:,} tokens"


def is_scarce(asked: Recipe, taken: Recipe) -> bool:
    """Whether a recipe was left with less text than a useful model needs."""
    pairs = [(attrgetter(name)(asked), attrgetter(name)(taken), least) for name, (least, _) in _named().items()]
    pairs.append((asked.search.fitness_needed, taken.search.fitness_needed, ROUND_TOKENS))
    return any(0 < used < min(given, least) for given, used, least in pairs)


def _named() -> dict[str, tuple[int, str]]:
    return {name: (least, words) for stage in AMOUNTS.values() for name, least, words in stage}
