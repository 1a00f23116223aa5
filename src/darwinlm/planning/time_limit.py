"""The time limit of a run: it chooses an amount of text before the run, and ends search and recovery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from darwinlm.formats.resolve import describe_model
from darwinlm.planning.run_plan import measure_rate, plan_here
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.recipe.presets import AMOUNTS
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import STAGES, read_record, write_json
from darwinlm.runtime.clock import working_time
from darwinlm.runtime.figures import StageTime
from darwinlm.runtime.output import mark
from darwinlm.steps.run_sizes import Sizes

FILE = "time_limit.json"
FIXED = 0.5
"""Share of the limit that stages may take which can't end early."""
ENDING = ("search", "recover")


@dataclass(frozen=True)
class TimeLimit:
    """The limit of a run.

    Attributes:
        seconds: Time of the whole run.
        begun: Its start on the monotonic clock.
        planned: Seconds of its stages in order, on an idle machine.
    """

    seconds: float
    begun: float
    planned: Mapping[str, float]

    @property
    def used(self) -> float:
        """Seconds so far."""
        return working_time() - self.begun

    def part(self, runs: int) -> TimeLimit:
        """The limit of one of so many runs that share the time that is left."""
        return replace(self, seconds=self.used + (self.seconds - self.used) / runs)

    def left(self, stage: str, times: Iterable[StageTime]) -> float:
        """Seconds after which a stage must end.

        After search and recovery the later stages have their time, at the speed of the run so far. The same in all
        processes.
        """
        done = {each.name: each.seconds for each in times if not each.reused}
        timed = [name for name in done if self.planned.get(name)]
        slower = sum(done[name] for name in timed) / sum(self.planned[name] for name in timed) if timed else 1.0
        later = [*self.planned][[*self.planned].index(stage) :]
        fixed = sum(self.planned[name] for name in later if name not in ENDING)
        shared = sum(self.planned[name] for name in later if name in ENDING)
        room = self.seconds - self.used - slower * fixed
        return parallel.broadcast(max(room, 0.0) * self.planned[stage] / shared)


def limited(recipe: Recipe, folder: Path, device: torch.device, begun: float) -> tuple[Recipe, TimeLimit | None]:
    """The recipe with the largest amount of text that fits into its time limit, unless it names a preset; the limit.

    A run that is resumed keeps its amount.
    """
    if recipe.time is None or recipe.model is None:
        return recipe, None
    chosen, seconds, file = recipe, 60 * recipe.time, folder / STAGES / FILE
    planned: dict[str, float] = {}
    with parallel.agree():
        if parallel.is_main():
            source = describe_model(recipe.model)
            rate = measure_rate(Sizes(source, recipe), device)
            record = read_record(file) if file.is_file() else {}
            names = [recipe.preset] if "preset" in recipe.model_fields_set else [*AMOUNTS]
            if record.get("seconds") == seconds and record.get("preset") in names:
                names = [record["preset"]]
            for name in names:
                chosen = load_recipe(recipe, (), {"preset": name})
                plan = plan_here(Sizes(source, chosen, parallel.size()), device, rate)
                planned = {row.stage: plan.seconds(row)[0] for row in plan.rows}
                if sum(planned[each] for each in planned if each not in ENDING) <= FIXED * seconds:
                    break
            mark(folder)
            write_json(file, {"seconds": seconds, "preset": chosen.preset})
    preset, planned = parallel.broadcast((chosen.preset, planned))
    return load_recipe(recipe, (), {"preset": preset}), TimeLimit(seconds, begun, planned)
