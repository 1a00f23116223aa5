"""Cost of removing or narrowing half of the experts of a trained mixture, in several ways.

Random experts are all alike, so methods that choose among experts need trained experts for a comparison, such as those
of the small Mixtral of `small_models.py` (8 experts in every block, 2 of them for each token):

    python benchmarks/small_models.py train mixtral --text texts/ --out mixture --tokens 2500000 --rows 8
    python benchmarks/mixture.py mixture/model --text mixture/held_out.jsonl --out compared
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.comparison.entries import MethodRow, steps_run
from darwinlm.comparison.importance import ExpertScores, expert_scores
from darwinlm.comparison.ranked import ExpertReader
from darwinlm.database.blocks import block_file
from darwinlm.database.store import DatabaseReader
from darwinlm.evaluation.quality import measure_quality
from darwinlm.execution.run import Run
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import load_recipe
from darwinlm.runtime.artifact import read_tensors
from darwinlm.runtime.console import Reporter
from darwinlm.search.predict.module_losses import estimated_losses
from darwinlm.search.problem.cost import parameter_costs
from darwinlm.search.problem.problem import Budget, Problem
from darwinlm.search.problem.space import Allocation, SearchSpace
from darwinlm.search.propose.start import knapsack_start
from darwinlm.stages.database import DATABASE, PruningDatabase, stream_of
from darwinlm.stages.model import DENSE
from darwinlm.stages.refit import REFIT
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import TEXT, Texts
from darwinlm.surgery.stitch import stitch
from small_models import LENGTH

FORBIDDEN = 1e3
"""Loss of levels that a kind of cut excludes."""
ORDERS = ("frequency", "reap", "second moment", "gradients", "lens")


def expert_orders(database: PruningDatabase, scores: dict[int, ExpertScores]) -> dict[str, dict[int, Tensor]]:
    """Scores of all experts, by order and block; the experts with the highest scores are removed last."""
    orders: dict[str, dict[int, Tensor]] = {name: {} for name in ORDERS}
    for block, own in scores.items():
        stored = read_tensors(database.stage.folder / block_file(block))
        order = stored["mlp.order"].long()
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        for name, score in zip(
            ORDERS,
            (own.asked, own.added, stored["mlp.1.errors"][:, 0], stored["mlp.1.losses"][:, 0], -places),
            strict=True,
        ):
            orders[name][block] = score
    return orders


def allocations(reader: DatabaseReader, keep: float) -> tuple[dict[str, Allocation], int]:
    """Equal cuts, and the smallest sum of estimated losses, each with at most the parameters of narrowing."""
    space = SearchSpace(reader.modules)
    cost = parameter_costs(space)

    def equal(experts: float, width: float) -> Allocation:
        chosen = []
        for module in space.modules:
            full = module.levels[-1]
            wanted = (round(experts * full.experts), round(width * full.width))
            at = [place for place, level in enumerate(module.levels) if (level.experts, level.width) == wanted]
            chosen.append(at[0] if full.experts else len(module.levels) - 1)
        return tuple(chosen)

    rows = {"narrow": equal(1, keep), "drop": equal(keep, 1)}
    limit = cost.of(rows["narrow"])
    budget = Budget(int(0.98 * limit), limit)
    losses = estimated_losses(space, reader)
    assert losses is not None
    for name, allowed in {
        "narrow, unequal": lambda level, full: level.experts == full.experts,
        "drop, unequal": lambda level, full: level.width == full.width,
        "both, unequal": lambda level, full: level.width > 0,
    }.items():
        curves = [
            [
                loss if allowed(level, module.levels[-1]) else FORBIDDEN
                for level, loss in zip(module.levels, row, strict=True)
            ]
            for module, row in zip(space.modules, losses, strict=True)
        ]
        rows[name] = knapsack_start(Problem(space, cost, budget), curves)
    return rows, limit


def measured(
    run: Run, texts: Texts, name: str, source: DatabaseReader, allocation: Allocation
) -> dict[str, float | list[list[int]]]:
    """Cut the mixture; its KL on evaluation text with and without a refit, and the kept experts and widths."""
    levels = SearchSpace(source.modules).levels(allocation)
    place = name.replace(": ", "_").replace(", ", "_").replace(" ", "_")
    with run.stage(f"method_{place}", {"allocation": allocation, "seed": run.recipe.search.seed}, name) as (
        stage,
        work,
    ):
        if work:
            save_model(stitch(source, allocation), stage.folder / "model")
    stitched = Stitched(stage, Checkpoint.open(stage.folder / "model"))
    refitted = steps_run(run, MethodRow(place, ("refit",)))[REFIT]
    assert refitted is not None
    models = {"kl": stitched.model(), "kl refitted": refitted.model()}
    dense = run[DENSE].load(torch.float32)
    qualities = measure_quality(dense, models, texts["evaluation"].tokens, batch_tokens=4096)
    return {
        "block_params": sum(level.params for level in levels),
        **{key: round(own.kl, 4) for key, own in qualities.items()},
        "perplexity refitted": round(qualities["kl refitted"].perplexity, 2),
        "kept": [[level.experts, level.width] for level in levels if level.experts],
    }


def compare(options: argparse.Namespace) -> None:
    """Cut the mixture in several ways to one size. Prints a JSON line for each, with and without a refit."""
    assignments = [f"text.sequence_length={LENGTH}", f"search.seed={options.seed}", *(options.set or ())]
    given = {"model": str(options.model), "text.source": str(options.text), "budget.keep": options.keep}
    run = Run(load_recipe(None, assignments, given), options.out, Reporter(quiet=True))
    texts = run[TEXT]
    database = run[DATABASE]
    reader, units = database.reader, run.recipe.units
    orders = expert_orders(database, expert_scores(stream_of(run, texts["calibration"].tokens)))
    rows, limit = allocations(reader, options.keep)
    cuts: dict[str, tuple[DatabaseReader, Allocation]] = {name: (reader, rows[name]) for name in rows if name != "drop"}
    cuts |= {f"drop: {name}": (ExpertReader(run[DENSE], units, own), rows["drop"]) for name, own in orders.items()}
    for name, (source, allocation) in cuts.items():
        if options.only and not any(part in name for part in options.only):
            continue
        line = {
            "benchmark": "mixture",
            "cut": name,
            "seed": options.seed,
            "keep": options.keep,
            "limit": limit,
            **measured(run, texts, name, source, allocation),
        }
        with (options.out / "compare.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a mixture, such as the folder `model` that small_models.py makes")
    parser.add_argument("--text", required=True, help="documents outside the mixture's training text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the experts' parameters")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split of the text")
    parser.add_argument("--set", action="append", metavar="FIELD=VALUE", help="of the recipe")
    parser.add_argument("--only", action="append", help="only cuts whose name contains this; default: all")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
