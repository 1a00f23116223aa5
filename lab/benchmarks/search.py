"""The search against its alternatives, on the demo's model, text and database; one JSON line for each measurement.

`rate`: one generation of candidates, without training, evaluated in two ways. The plain way deep-copies the model for
every evaluation, reads changed layers from disk at dense shapes with zeros, runs the whole forward pass, and computes
KL over a whole batch at once. The search keeps one model and swaps small modules in. It doesn't repeat blocks before
the first change, nor text of earlier rounds. Both evaluate the same candidates in the same rounds, and the largest
difference of their KL is reported. Both begin as in the middle of a search, with the parent in memory. The search knows
the parent's loss from an earlier generation; the plain way measures it with the last round's candidates. The time
includes a pass of the parent for its block inputs, as after a generation that improved it.

`race`: the search in equal wall-clock time, with gradients and by the paper's rules (switches of one level between
modules of one kind, its grid of levels, without training). The result is held-out KL and perplexity of the stitched
model, for each seed. Every seed has a separate split of the text and a separate database. Finished searches are in
OUT/results.jsonl and aren't repeated; an interrupted one resumes.

`settle`: a search with all of its generations, and where it would have ended by itself: seconds and held-out KL of
both. The recipe is the default, with text of your own.

    python -m lab.benchmarks.search rate --out runs/bench
    python -m lab.benchmarks.search race --out runs/bench --minutes 5 --seed 0 --seed 1 --seed 2
    python -m lab.benchmarks.search settle --out runs/bench --text C4.jsonl.gz --keep 75% --keep 50% --seed 0 --seed 1
    python -m lab.benchmarks.search rate --out runs/bench --run runs/demo   # text and database of an existing run
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from darwinlm.data import TokenSequences
from darwinlm.database.store import DatabaseReader
from darwinlm.evaluation.quality import measure_quality
from darwinlm.execution.run import Run
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.pipeline import open_run
from darwinlm.recipe import Recipe, UnitsSettings, load_recipe
from darwinlm.runs.demo import demo_model, demo_recipe
from darwinlm.runtime.artifact import StageFolder, read_json
from darwinlm.runtime.console import Reporter
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.evolve import evolution
from darwinlm.search.evolve.state import SearchState
from darwinlm.search.predict.module_losses import local_errors
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation
from darwinlm.search.propose.level_switch import level_switch
from darwinlm.search.propose.start import knapsack_start
from darwinlm.stages.database import DATABASE, PruningDatabase
from darwinlm.stages.plan import PLAN
from darwinlm.stages.search import SEARCH
from darwinlm.streaming.decoder import Decoder
from darwinlm.surgery.stitch import as_dtype, stitch

ROUNDS = ((1024, 8), (2048, 4), (4096, 1))
"""Tokens and survivors of the timed generation."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """A model, its text and its database."""

    recipe: Recipe
    folder: Path
    checkpoint: Checkpoint
    texts: dict[str, TokenSequences]

    def database(self, units: UnitsSettings) -> PruningDatabase:
        """The database with levels of these units."""
        stage = StageFolder(self.folder / "database", read_json(self.folder / "database" / "key.json"))
        return PruningDatabase(stage, DatabaseReader(self.folder / "database", self.checkpoint, units))

    def run(self, folder: Path, *assignments: str) -> tuple[Run, Problem]:
        """Open a separate run with the same model and database."""
        recipe = load_recipe(self.recipe, assignments, {"model": str(self.checkpoint.folder)})
        given = {DATABASE.name: self.database(recipe.units)}
        run = open_run(recipe, folder, Reporter(Console(quiet=True)), given=given)
        return run, run[PLAN]


def open_bench(
    options: argparse.Namespace, *assignments: str, name: str = "run", recipe_of: Callable[..., Recipe] = demo_recipe
) -> Bench:
    """Make text and database in OUT, or use those of an existing run."""
    recipe = recipe_of((*assignments, *(options.set or ())))
    folder = options.run or options.out / name
    if options.run is None:
        open_run(recipe, folder, Reporter()).until(DATABASE.name)
    texts = {
        path.parent.name: TokenSequences.load(path.parent) for path in (folder / "stages/text").glob("*/blocks.json")
    }
    source = folder / "stages" / "source"  # holds the dequantised GGUF file
    checkpoint = Checkpoint.open(source if source.is_dir() else Path(str(recipe.model)))
    return Bench(recipe, folder / "stages", checkpoint, texts)


# -------------------------------------------------------------------------------------------------------- the plain way


class Plain:
    """Plain evaluation with dense shapes and zeros. All levels of the candidates are on disk before timing starts."""

    def __init__(self, bench: Bench, reader: DatabaseReader, folder: Path, dtype: torch.dtype) -> None:
        self.reader = reader
        self.folder = folder
        self.dtype = dtype
        self.model = bench.checkpoint.load(dtype)
        self.family = bench.checkpoint.family
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, index: int, level: int) -> Path:
        """File of a module at a level."""
        return self.folder / f"{index:03d}_{level:03d}.safetensors"

    def prepare(self, allocations: list[Allocation]) -> None:
        """Write the modules of these allocations."""
        for allocation in allocations:
            for index, level in enumerate(allocation):
                if not self.path(index, level).exists():
                    module = self.reader.modules[index]
                    part = self.family.module(module.kind)
                    kept = self.reader.kept(module.block, module.kind, module.levels[level])
                    weight = self.reader.dense_weight(module.block, module.kind)
                    if kept.weight is not None:
                        weight = torch.zeros_like(weight)
                        weight[:, kept.columns] = kept.weight
                    save_file({f"{part.name}.{part.output}.weight": weight.to(self.dtype)}, self.path(index, level))

    def load(self, model: Any, allocation: Allocation, parent: Allocation | None) -> None:
        """Load into a model the modules that differ between an allocation and its parent."""
        blocks = model.get_submodule(self.family.layers)
        for index, level in enumerate(allocation):
            if parent is None or parent[index] != level:
                tensors = load_file(self.path(index, level))
                blocks[self.reader.modules[index].block].load_state_dict(tensors, strict=False)

    @torch.no_grad()
    def kl(self, parent_model: Any, parent: Allocation, allocation: Allocation, tokens: Tensor, dense: Tensor) -> float:
        """KL of a candidate on tokens [n, t], given the dense logits [n, t, v]."""
        model = copy.deepcopy(parent_model)
        self.load(model, allocation, parent)
        total, rows = 0.0, 8
        for start in range(0, len(tokens), rows):
            logits = model(input_ids=tokens[start : start + rows], use_cache=False).logits.float()
            reference = functional.log_softmax(dense[start : start + rows].float(), dim=-1)
            log_q = functional.log_softmax(logits, dim=-1)
            total += float(functional.kl_div(log_q, reference, reduction="sum", log_target=True))
        return total / tokens.numel()


def generation(candidates: list[Allocation], parent: Allocation, evaluate: Any) -> dict[tuple[Allocation, int], float]:
    """Run the rounds of one generation; the last one includes the parent."""
    results: dict[tuple[Allocation, int], float] = {}
    for number, (n_tokens, survivors) in enumerate(ROUNDS):
        pool = [*candidates, parent] if number == len(ROUNDS) - 1 else candidates
        losses = dict(zip(pool, evaluate(pool, n_tokens), strict=True))
        results |= {(each, n_tokens): loss for each, loss in losses.items()}
        candidates = sorted(pool, key=lambda each: losses[each])[:survivors]
    return results


def measure_rate(options: argparse.Namespace) -> None:
    bench = open_bench(options)
    run, plan = bench.run(options.out / "rate")
    reader = run[DATABASE].reader
    parent = knapsack_start(plan, local_errors(plan.space, reader))
    rng = random.Random(0)
    seen = {parent}
    for _ in range(options.offspring):
        seen.add(level_switch(parent, plan.cost.costs, plan.budget, rng, step=options.step, seen=seen))
    candidates = sorted(seen - {parent})
    tokens = bench.texts["fitness"].tokens

    model = bench.checkpoint.load(run.context.dtype, run.context.device)
    placed = PlacedModules(Decoder(model, bench.checkpoint.family), reader, plan.space)
    fitness = Fitness(placed, tokens, batch_tokens=4096)
    fitness.kl(parent, ROUNDS[-1][0])
    begun = time.perf_counter()
    fitness.set_base(parent)
    ours = generation(candidates, parent, fitness.kls)
    ours_seconds = time.perf_counter() - begun

    plain = Plain(bench, reader, options.out / "plain", run.context.dtype)
    plain.prepare([parent, *candidates])
    with torch.no_grad():
        dense = torch.cat([plain.model(input_ids=part, use_cache=False).logits for part in torch.split(tokens, 8)])
    plain.load(plain.model, parent, None)

    def evaluate(pool: list[Allocation], n_tokens: int) -> list[float]:
        rows = fitness.sequences(n_tokens)
        return [plain.kl(plain.model, parent, each, tokens[:rows], dense[:rows]) for each in pool]

    begun = time.perf_counter()
    theirs = generation(candidates, parent, evaluate)
    their_seconds = time.perf_counter() - begun
    both = ours.keys() & theirs.keys()
    evaluations = sum((options.offspring, *(survivors for _, survivors in ROUNDS[:-1]))) + 1
    print(
        json.dumps(
            {
                "benchmark": "search rate",
                "candidates": len(candidates),
                "evaluations": evaluations,
                "tokens": [n_tokens for n_tokens, _ in ROUNDS],
                "ours_s": round(ours_seconds, 2),
                "plain_s": round(their_seconds, 2),
                "ours_per_minute": round(60 * evaluations / ours_seconds, 1),
                "plain_per_minute": round(60 * evaluations / their_seconds, 1),
                "ratio": round(their_seconds / ours_seconds, 2),
                "same_evaluations": len(both) == len(ours) == len(theirs),
                "largest_kl_difference": max(abs(ours[key] - theirs[key]) for key in both),
                "kl": round(ours[parent, ROUNDS[-1][0]], 4),
                **machine(run),
            }
        ),
        flush=True,
    )


# ------------------------------------------------------------------------------------------------------------ the race

ENDLESS = "search.generations=100000"


def arms(available: int) -> dict[str, tuple[str, ...]]:
    """Recipe assignments of each contestant."""
    rounds = ", ".join(
        f"{{tokens: {min(tokens, available)}, survivors: {survivors}}}"
        for tokens, survivors in ((1024, 8), (2048, 4), (4096, 2), (8192, 1))
    )
    paper = ("search.method=paper", "search.offspring=16", "units.levels=paper", f"search.rounds=[{rounds}]")
    return {"gradient": (ENDLESS,), "paper": (*paper, ENDLESS)}


def race(options: argparse.Namespace) -> None:
    results = options.out / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    finished = {(row["arm"], row["seed"], row["minutes"]) for row in done}
    dense: Any = None
    for seed in options.seed or [0]:
        bench = open_bench(options, f"text.seed={seed}", name=f"run-{seed}")
        for arm, assignments in arms(bench.texts["fitness"].n_tokens).items():
            if (arm, seed, options.minutes) in finished or (options.arm and arm not in options.arm):
                continue
            name = options.out / f"race-{arm}-{seed}-{options.minutes:g}"
            settings = (*assignments, f"search.minutes={options.minutes}", f"search.seed={seed}")
            run, plan = bench.run(name, *settings)
            result = run[SEARCH]
            dense = dense if dense is not None else bench.checkpoint.load(run.context.dtype, run.context.device)
            model = as_dtype(stitch(run[DATABASE].reader, result.allocation), run.context.dtype)
            quality = measure_quality(dense, {"model": model}, bench.texts["evaluation"].tokens, batch_tokens=4096)
            record = result.record
            row: Json = {
                "benchmark": "search race",
                "arm": arm,
                "seed": seed,
                "minutes": options.minutes,
                "start_kl": record["start_kl"],
                "kl": record["kl"],
                "held_out_kl": quality["model"].kl,
                "held_out_perplexity": quality["model"].perplexity,
                "generations": len(record["history"]) - 1,
                "evaluations": record["evaluations"],
                "search_s": round(record["seconds"], 1),
                "used": record["cost"] / plan.budget.limit,
                **machine(run),
            }
            print(json.dumps(row), flush=True)
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")


# ----------------------------------------------------------------------------------------------------- its own end


def default_recipe(assignments: tuple[str, ...]) -> Recipe:
    """The default recipe for the demo's model."""
    return load_recipe(None, assignments, {"model": str(demo_model())})


def settle(options: argparse.Namespace) -> None:
    for seed in options.seed or [0]:
        text = (f"text.seed={seed}", f"text.source={options.text}")
        bench = open_bench(options, *text, name=f"settle-{seed}", recipe_of=default_recipe)
        dense: Any = None
        for keep in options.keep or ["75%"]:
            settings = (f"budget.keep={keep}", f"search.seed={seed}")
            run, _ = bench.run(options.out / f"settle-{seed}-{keep}", *settings)
            dense = dense if dense is not None else bench.checkpoint.load(run.context.dtype, run.context.device)
            states = watched_search(run)
            losses = [state.losses[-1] for state in states]
            ends = (end for end in range(len(states)) if evolution.settled(losses[: end + 1]))
            for arm, state in (("its own end", states[next(ends, -1)]), ("all generations", states[-1])):
                model = as_dtype(stitch(run[DATABASE].reader, state.parent), run.context.dtype)
                quality = measure_quality(dense, {"model": model}, bench.texts["evaluation"].tokens, batch_tokens=1024)
                row: Json = {
                    "benchmark": "search settle",
                    "arm": arm,
                    "seed": seed,
                    "keep": keep,
                    "generations": state.done,
                    "evaluations": state.history[-1].evaluations,
                    "search_s": round(state.seconds, 1),
                    "kl": state.kl,
                    "held_out_kl": quality["model"].kl,
                    "held_out_perplexity": quality["model"].perplexity,
                    **machine(run),
                }
                print(json.dumps(row), flush=True)


def watched_search(run: Run) -> list[SearchState]:
    """Run all generations of a new search, and return its state after each."""
    states: dict[int, SearchState] = {}
    with (
        mock.patch.object(evolution, "settled", return_value=False),
        mock.patch.object(SearchState, "save", lambda state, path: states.update({state.done: copy.deepcopy(state)})),
    ):
        assert run[SEARCH].record
    return list(states.values())


def machine(run: Run) -> Json:
    return {
        "device": str(run.context.device),
        "threads": torch.get_num_threads(),
        "dtype": str(run.context.dtype).removeprefix("torch."),
        "load": round(os.getloadavg()[0], 1),
    }


def common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--run", type=Path, help="folder of a run that provides text and database")
    parser.add_argument("--set", action="append", help="section.field=value, as for `darwinlm demo`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(required=True)
    rate = modes.add_parser("rate")
    common_options(rate)
    rate.add_argument("--offspring", type=int, default=16)
    rate.add_argument("--step", type=float, default=0.1, help="longest level switch, as a share of a module's levels")
    rate.set_defaults(work=measure_rate)
    racing = modes.add_parser("race")
    common_options(racing)
    racing.add_argument("--minutes", type=float, default=5.0)
    racing.add_argument("--seed", type=int, action="append")
    racing.add_argument("--arm", action="append", choices=list(arms(1)))
    racing.set_defaults(work=race)
    settling = modes.add_parser("settle")
    common_options(settling)
    settling.add_argument("--text", required=True)
    settling.add_argument("--keep", action="append")
    settling.add_argument("--seed", type=int, action="append")
    settling.set_defaults(work=settle)
    options = parser.parse_args()
    options.work(options)


if __name__ == "__main__":
    main()
