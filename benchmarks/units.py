"""Units of attention and orders of removal, compared at equal parameters before any search.

Each seed (of the split of the text) and arm has a database of the demo's model, and two allocations at half of the
block parameters. One is the knapsack solution for the database's estimated losses, or for local errors where it has no
estimates. The other is the best one with equal layers. KL to the dense model and perplexity are on held-out text. Arms
are the four units, and `loss`: the lattice and query heads with the gradient-weighted order. Each prints one JSON line.
Finished ones are in OUT/results.jsonl and aren't repeated.

    python benchmarks/units.py --out runs/units --seed 0 --seed 1 --seed 2
"""

from __future__ import annotations

import argparse
from pathlib import Path

from darwinlm.database.store import DatabaseReader
from darwinlm.evaluation.quality import measure_quality
from darwinlm.execution.run import Run
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.predict.module_losses import estimated_losses, local_errors
from darwinlm.search.problem.space import Allocation
from darwinlm.search.propose.start import knapsack_start
from darwinlm.search.propose.uniform import uniform_allocations
from darwinlm.streaming.decoder import Decoder
from darwinlm.surgery.stitch import as_dtype, stitch
from search import Bench, Json, each_arm, machine, open_bench

ARMS = {
    "lattice": ("units.attention=lattice",),
    "kv_group": ("units.attention=kv_group",),
    "group_heads": ("units.attention=group_heads",),
    "query_head": ("units.attention=query_head",),
    "loss": ("database.saliency=loss",),
    "loss query_head": ("database.saliency=loss", "units.attention=query_head"),
}


def held_out(bench: Bench, run: Run, reader: DatabaseReader, allocations: dict[str, Allocation]) -> Json:
    """Held-out KL and perplexity of stitched models."""
    dense = bench.checkpoint.load(run.context.dtype, run.context.device)
    models = {name: as_dtype(stitch(reader, each), run.context.dtype) for name, each in allocations.items()}
    qualities = measure_quality(dense, models, bench.texts["evaluation"].tokens, batch_tokens=4096)
    return {
        name: {"kl": round(qualities[name].kl, 4), "perplexity": round(qualities[name].perplexity, 2)}
        for name in models
    }


def compete(options: argparse.Namespace, arm: str, seed: int) -> Json:
    """Measure one arm with one split of the text."""
    folder = options.out / f"{arm}-{seed}"
    bench = open_bench(argparse.Namespace(out=folder, run=None, set=options.set), *ARMS[arm], f"search.seed={seed}")
    run, plan = bench.run(folder / "run")
    reader = bench.database(run.recipe.units).reader
    model = bench.checkpoint.load(run.context.dtype, run.context.device)
    placed = PlacedModules(Decoder(model, bench.checkpoint.family), reader, plan.space)
    n_tokens = run.recipe.search.stages[0].tokens
    fitness = Fitness(placed, bench.texts["fitness"].tokens, batch_tokens=run.context.batch_tokens)
    uniforms = uniform_allocations(plan)
    uniform = min(zip(fitness.kls(uniforms, n_tokens), uniforms, strict=True))[1]
    estimates = estimated_losses(plan.space, reader)
    losses = local_errors(plan.space, reader) if estimates is None else estimates
    allocations = {"uniform": uniform, "knapsack": knapsack_start(plan, losses)}
    row: Json = {"benchmark": "units", "arm": arm, "seed": seed, "allocations": allocations}
    row["levels"] = {module.kind: len(module.levels) for module in plan.space.modules[:2]}
    row["used"] = {name: plan.cost.of(each) / plan.budget.limit for name, each in allocations.items()}
    return row | held_out(bench, run, reader, allocations) | machine(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/units"))
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--arm", action="append", choices=list(ARMS))
    parser.add_argument("--set", action="append", default=[], help="section.field=value, as for `darwinlm demo`")
    options = parser.parse_args()
    each_arm(options, options.arm or ARMS, compete)


if __name__ == "__main__":
    main()
