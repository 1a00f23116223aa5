"""A time limit of a run: before a stage, the settings of the remaining ones are fitted to the time that is left.

A pass through a real block is timed first, so that the plan holds for this machine and its present load. If the
remaining stages take too long, all of their text and steps are lowered to the same share, down to a run without refit
and recovery on the least text. Search, recovery and evaluation also end by the clock. The settings are kept in a file,
with which an interrupted run resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import torch

from darwinlm.execution.run import Run
from darwinlm.planning.devices import Device, find_device
from darwinlm.planning.model import Sizes
from darwinlm.planning.plan import estimate, hours
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of, read_json, validated, write_json
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.figures import TimeFigures
from darwinlm.search.evolve.evolution import OUT_OF_TIME
from darwinlm.stages.database import SALIENCY, stream_of
from darwinlm.stages.model import DENSE
from darwinlm.stages.search import SEARCH
from darwinlm.stages.text import CALIBRATION, TEXT

FILE = "time_limit.json"

STAGES = ("database", "search", "refit", "recover", "evaluate")
"""Stages whose time depends on these settings, in order."""

AMOUNTS: dict[str, tuple[tuple[str, int, str], ...]] = {
    "database": (("text.calibration_tokens", 4, "calibration text"),),
    "refit": (("refit.tokens", 32, "text of the refit"), ("text.validation_tokens", 2, "validation text")),
    "recover": (("recovery.tokens", 8, "training"), ("text.validation_tokens", 2, "validation text")),
    "evaluate": (("text.evaluation_tokens", 2, "evaluation text"),),
}
"""Amounts of text of each stage: setting, least number of sequences, and name."""

OPTIONAL = {"refit": "refit.tokens", "recover": "recovery.tokens"}
"""Stages that are left out rather than run on less than their least text, with the setting of their amount. A refit on
less gains nothing (see docs/notebook/training.md); for recovery it is our choice, 2026-11-27."""

PLANNED, EVALUATED = 0.9, 0.97
"""Shares of the limit that are planned, and until which the evaluation may last. The rest is for stages without a plan
(export, report) and for errors of the plan."""

FIRST_GENERATION = 1.4
"""Measured by planned time of a search with one generation (docs/notebook/speed.md, "A time limit for a run")."""

SHARES = tuple(0.85**step for step in range(26))
"""Shares of the recipe's amounts, the largest first. If none fits, 0 is the least text, without refit and recovery."""

FAR = 10.0
"""A run is refused if even the least text takes this many times as long as the limit. Below that it warns, because a
plan on a busy machine is too long once the machine is idle."""

PASS_SECONDS, PROBE_SECONDS = 0.3, 2.0
"""Planned duration of one timed pass, and minimum duration of all of them."""

SEARCH_TEXT = ("fitness", "training")
"""Purposes of text whose amount `search.stages` gives."""

SIMILAR = "a100"
"""Device of the plan for a GPU without known figures; the timed passes correct it."""


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
    ) -> None:
        self.seconds, self.runs, self.clock = seconds, runs, clock
        self.begun, self.earlier = clock() if begun is None else begun, 0.0
        self.device: Device | None = None
        self.slower = 1.0
        self._run: Run | None = None
        self._asked: Recipe | None = None
        self._settings: list[str] = []
        self._shared: list[str] = []
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

        Raises:
            RecipeError: Even with the least text the run takes several times as long as the limit.
        """
        stage = STAGES[0] if stage == SALIENCY.name else stage  # they have the same text
        if stage not in STAGES:
            return []
        if run is not self._run:
            self._asked = _available(run)  # which runs stages before this one
            self._run, self._settings, self._fitted_stages = run, [] if stage == STAGES[0] else list(self._shared), []
        if stage in self._fitted_stages:
            return []
        self._fitted_stages.append(stage)
        with parallel.agree():
            settings = self._kept(stage, run) if parallel.is_main() else []
        settings = parallel.broadcast(settings)
        self._settings += settings
        if stage == STAGES[0]:
            self._shared = list(settings)
        if stage == STAGES[-1]:
            self._ends = self.clock() + max(EVALUATED * self.seconds - self.used, 0.0) / self.runs
            self.runs -= 1
        return settings

    def ends(self) -> float | None:
        """When the evaluation must end; None before it is known."""
        return self._ends

    def figures(self) -> TimeFigures | None:
        """The limit, the time used, and what was shortened in the present run."""
        if self._run is None or self._asked is None:
            return None
        shorter = [*differences(self._asked, self._run.recipe)]
        found = self._run[SEARCH]
        if found.record["ended"] == OUT_OF_TIME:
            done = found.record["history"][-1]["number"]
            shorter.append(f"{done} of at most {self._asked.search.generations} generations of the search")
        return TimeFigures(limit=self.seconds, seconds=round(self.used, 1), shortened=tuple(shorter))

    def _kept(self, stage: str, run: Run) -> list[str]:
        """Assignments for a stage: those of an interrupted run, or new ones."""
        assert self._asked is not None
        file = run.context.path(stage).parent / FILE
        # The budgets of a sweep share a database.
        key = digest_of(self._asked.model_dump(mode="json", exclude={"budget"} if stage == STAGES[0] else None))
        record = validated(file, dict[str, _Entry], read_json(file)) if file.exists() else {}
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
        self.device = self.device or _device(run.context.device)
        sizes = _sizes(run, self._asked)
        if stage not in self._planned(sizes, stage, 1):
            return []
        self.slower = self._of_passes(run, sizes)
        room = (PLANNED * self.seconds - self.used) / (1 if stage == STAGES[0] else self.runs)
        share = next((each for each in SHARES if sum(self._planned(sizes, stage, each).values()) <= room), 0.0)
        planned = self._planned(sizes, stage, share)
        settings = _assignments(shortened(self._asked, share, stage))
        # Search and recovery can stop at any time, so they get what the others leave.
        limited = {"search": ("search.minutes", self._asked.search.minutes), "recover": ("recovery.minutes", None)}
        if stage in limited and stage in planned:
            name, given = limited[stage]
            minutes = (max(room - sum(planned.values()), 0.0) + planned[stage]) / 60
            settings.append(f"{name}={min(minutes, given or minutes):.4g}")
        part = "" if share == 1 else f" with {share:.0%} of the text" if share else " with the least text"
        if stage == STAGES[0]:
            whole = self._planned(sizes, stage, share, generations=self._asked.search.generations)
            about = self.used + max(sum(planned.values()), min(sum(whole.values()), room))
            run.context.reporter.say(f"this takes about {hours(about)} here{part} (time limit {self._checked(about)})")
        elif part:
            rest = f" left for {' + '.join(planned)}{part}"
            without = f" left, no {OPTIONAL.get(stage, stage).partition('.')[0]}"
            run.context.reporter.say(f"time limit: {hours(max(room, 0))}{rest if stage in planned else without}")
        return settings

    def _checked(self, about: float) -> str:
        """The limit in words, for a run of about so many seconds. Raises RecipeError if that is far more."""
        if about > FAR * self.seconds:
            raise RecipeError(
                f"time: {hours(self.seconds)} is too short for this model on this machine: even with the least text it "
                f"takes about {hours(about)} at its present load: give at least that, or a faster device"
            )
        return hours(self.seconds) + (", which can't be kept" if about > self.seconds else "")

    def _planned(self, sizes: Sizes, stage: str, share: float, *, generations: int = 1) -> dict[str, float]:
        """Seconds of a stage and its successors at the measured speed, without the search's own time limit."""
        assert self._asked is not None
        assert self.device is not None
        settings = [*self._settings, f"search.generations={generations}", "search.minutes=null"]
        remaining = STAGES[STAGES.index(stage) :]
        for name in remaining:
            settings += _assignments(shortened(self._asked, share, name))
        found: dict[str, float] = {}
        for need in estimate(sizes.with_settings(settings), self.device):
            name = "database" if need.name == "saliency" else need.name
            if name in remaining:
                several = self.runs if stage == STAGES[0] and name != stage else 1
                first = FIRST_GENERATION if name == "search" and generations == 1 else 1.0
                found[name] = found.get(name, 0.0) + self.slower * several * first * need.unbounded_seconds
        return found

    def _of_passes(self, run: Run, sizes: Sizes) -> float:
        """Measured by planned seconds of passes through the first block, with the present load."""
        assert self.device is not None
        context, tokens = run.context, run[CALIBRATION].tokens
        sequence = sizes.forward / sizes.depth * tokens.shape[1]
        sequence /= self.device.rates[sizes.kind] * self.device.efficiency
        most = min(len(tokens), max(1, context.batch_tokens // tokens.shape[1]))
        sequences = max(1, min(most, int(PASS_SECONDS / sequence)))
        stream = stream_of(context, run[DENSE], tokens[:sequences])
        stream.load(0)
        stream.run(0)
        begun, passes = self.clock(), 0
        while not passes or self.clock() - begun < PROBE_SECONDS:
            stream.run(0)
            passes += 1
        measured = (self.clock() - begun) / passes
        return measured / (sequences * sequence + self.device.block_seconds)


def _device(device: torch.device) -> Device:
    try:
        return find_device(device.type)
    except RecipeError:
        return find_device(SIMILAR)


def _sizes(run: Run, recipe: Recipe) -> Sizes:
    """Sizes for the plan. Budgets in time are measured in the run, so half of the blocks stands for them."""
    if recipe.budget.timed:
        recipe = load_recipe(recipe, ["budget.keep=0.5"], {})
    sizes = Sizes(run[DENSE], recipe, parallel.size())
    _ = sizes.kept_blocks  # kept for other settings
    return sizes


def _available(run: Run) -> Recipe:
    """The run's recipe with no more text than there is."""
    recipe, text = run.asked, run[TEXT]
    there = {f"text.{purpose}_tokens": part.n_tokens for purpose, part in text.items() if purpose not in SEARCH_TEXT}
    section = recipe.text.model_dump()
    fewer = {name: n for name, n in there.items() if n < section[name.removeprefix("text.")]}
    return load_recipe(recipe, _assignments(fewer), {})


def _assignments(settings: dict[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in settings.items()]


def shortened(recipe: Recipe, share: float, stage: str) -> dict[str, Any]:
    """Settings of one of `STAGES` by dotted name, with its amounts lowered to a share; those that stay are left out."""
    length = recipe.text.sequence_length
    if share >= 1:
        return {}
    if stage == "search":  # the first round keeps a sequence at least
        given = [each.model_dump() for each in recipe.search.stages]
        rounds = [
            each
            | {
                "tokens": min(each["tokens"], max(int(share * each["tokens"]) // length, 1) * length),
                "training_tokens": int(share * each["training_tokens"]),
            }
            for each in given
        ]
        return {"search.stages": rounds} if rounds != given else {}
    settings: dict[str, Any] = {}
    for name, sequences, _ in AMOUNTS[stage]:
        amount = attrgetter(name)(recipe)
        if name == OPTIONAL.get(stage) and share * amount < sequences * length:
            return {name: 0} if amount else {}
        wanted = max(int(share * amount) // length, sequences) * length
        if wanted < amount:
            settings[name] = wanted
    return settings


def differences(asked: Recipe, taken: Recipe) -> Iterator[str]:
    """What was shortened, in words: `calibration text 8,192 of 65,536 tokens`."""
    for name in OPTIONAL.values():
        if attrgetter(name)(asked) and not attrgetter(name)(taken):
            yield f"no {name.partition('.')[0]}"
    amounts = {name: words for stage in AMOUNTS.values() for name, _, words in stage}
    for name, words in amounts.items():
        given, used = attrgetter(name)(asked), attrgetter(name)(taken)
        if 0 < used < given:
            yield f"{words} {used:,} of {given:,} tokens"
    if taken.search.fitness_needed < asked.search.fitness_needed:
        yield f"text of the search {taken.search.fitness_needed:,} of {asked.search.fitness_needed:,} tokens"
