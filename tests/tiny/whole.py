"""A run up to its search or its end, ways to try other allocations on it, and the state that a search leaves."""

import random
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.decoder import Decoder
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.run import Run
from darwinlm.steps.budget.problem import Problem
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.text.sequences import TokenSequences
from tests.tiny.stages import result, run_stages


@dataclass(frozen=True)
class Whole:
    """A run and what its stages handed on, which are attributes here too."""

    run: Run
    found: SimpleNamespace

    def __getattr__(self, stage: str) -> Any:
        return getattr(self.found, stage)

    @property
    def reader(self) -> DatabaseReader:
        return self.found.database.reader

    @property
    def checkpoint(self) -> Checkpoint:
        return result(self.run, "dense")

    @property
    def refitted(self) -> dict[str, torch.Tensor]:
        """The weights that the refit changed, by name."""
        small, found = self.stitch.checkpoint, self.refit
        blocks = ((small.block_prefix(block), block) for block in range(small.n_blocks))
        changed = {prefix + name: each for prefix, block in blocks for name, each in found.block(block).items()}
        stored = small.read()
        return {name: each for name, each in changed.items() if not torch.equal(each, stored[name].to(each.dtype))}

    def placed(self) -> PlacedModules:
        decoder = Decoder(self.checkpoint.load(torch.float32), self.checkpoint.family)
        return PlacedModules(decoder, self.reader, self.plan.space)

    def random_allocations(self, count: int, seed: int = 0) -> list[Allocation]:
        """Levels drawn freely, and one allocation in which a block, an attention and an MLP are gone."""
        rng = random.Random(seed)
        made = [tuple(rng.randrange(len(m.levels)) for m in self.plan.space.modules) for _ in range(count - 1)]
        gone = {(0, "attention"), (1, "attention"), (1, "mlp"), (3, "mlp")}
        levels = zip(self.plan.space.modules, self.plan.space.dense, strict=True)
        return [*made, tuple(0 if (m.block, m.kind) in gone else top for m, top in levels)]

    def cut_alike(self) -> Allocation:
        """All MLPs of one size: mixtures lose an expert if they can, and other MLPs half of their channels."""
        modules = self.plan.space.modules
        sizes = {module: [(level.sizes.experts, level.sizes.width) for level in module.levels] for module in modules}
        whole = [sizes[module][-1] for module in modules if module.kind == "mlp"]
        experts, width = min(size for size in whole if size[0] or not any(count for count, _ in whole))
        target = (experts - 1, width)
        if not all(target in sizes[module] for module in modules if sizes[module][-1][0]) or not experts:
            target = (experts, width // 2)
        alike = (module.kind == "mlp" and (sizes[module][-1][0] > 0) == (experts > 0) for module in modules)
        return tuple(
            sizes[module].index(target) if cut else len(module.levels) - 1
            for module, cut in zip(modules, alike, strict=True)
        )


def searched(run: Run) -> SimpleNamespace:
    return run_stages(run, "search")


def placed_in(run: Run, dtype: torch.dtype = torch.float32) -> tuple[PlacedModules, dict[str, TokenSequences]]:
    """The modules of a run in a decoder, with its texts; stages up to the database are run or reused."""
    texts, plan = result(run, "text"), result(run, "plan")
    decoder = Decoder(result(run, "dense").load(dtype), result(run, "dense").family)
    return PlacedModules(decoder, result(run, "database").reader, plan.space), texts


def state_of(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = read_json(folder / "stages" / "search" / "evolution.json")
    return tree


def timeless(tree: dict[str, Any]) -> dict[str, Any]:
    """A state or a record without what a clock says."""
    history = [{name: value for name, value in entry.items() if name != "seconds"} for entry in tree["history"]]
    return {name: value for name, value in tree.items() if name != "seconds"} | {"history": history}


def within_budget(problem: Problem, allocation: Allocation) -> bool:
    return problem.budget.allows(problem.cost.of(allocation) - problem.cost.fixed)
