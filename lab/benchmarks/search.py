"""The search's evaluation of candidates against a plain one, on the demo's model, text and database; one JSON line.

One generation of candidates, without training, is evaluated in two ways. The plain way deep-copies the model for every
evaluation, reads changed layers from disk at dense shapes with zeros, runs the whole forward pass, and computes KL over
a whole batch at once. The search keeps one model and swaps small modules in. It doesn't repeat text of earlier rounds.
Both evaluate the same candidates in the same rounds, and the largest difference of their KL is reported. Both begin as
in the middle of a search, with the parent in memory. The search knows the parent's loss from an earlier generation; the
plain way measures it with the last round's candidates.

    python -m lab.benchmarks.search --out runs/bench
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.space import Allocation
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.items import ids
from darwinlm.pipeline import build, read_inputs
from darwinlm.pipeline import plan as plan_of
from darwinlm.recipe import Recipe
from darwinlm.runs.demo_recipe import demo_recipe
from darwinlm.runs.opening import open_run
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.run import Run
from darwinlm.steps.database.store import DatabaseReader
from darwinlm.steps.search.fitness import Fitness
from darwinlm.steps.search.module_cache import PlacedModules
from darwinlm.steps.search.propose import knapsack_start, level_switch

ROUNDS = ((1024, 8), (2048, 4), (4096, 1))
"""Tokens and survivors of the timed generation."""

Json = dict[str, Any]


class Plain:
    """Plain evaluation with dense shapes and zeros. All levels of the candidates are on disk before timing starts."""

    def __init__(self, dense: Checkpoint, reader: DatabaseReader, folder: Path, dtype: torch.dtype) -> None:
        self.reader = reader
        self.folder = folder
        self.dtype = dtype
        self.model = dense.load(dtype)
        self.family = dense.family
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
    run = open_run(demo_recipe(tuple(options.set or ())), options.out, Reporter(), until="database")
    inputs = read_inputs(run)
    dense, plan, reader = inputs.dense, plan_of(run, inputs), build(run, inputs).reader
    parent = knapsack_start(plan, reader.local_errors(plan.space))
    rng = random.Random(0)
    seen = {parent}
    for _ in range(options.offspring):
        seen.add(level_switch(parent, plan.cost.costs, plan.budget, rng, step=options.step, seen=seen))
    candidates = sorted(seen - {parent})
    tokens = ids(inputs.text["fitness"].tokens)

    model = dense.load(run.context.dtype, run.context.device)
    placed = PlacedModules(Decoder(model, dense.family), reader, plan.space)
    fitness = Fitness(placed, tokens, batch_tokens=run.context.batch_tokens)
    fitness.kl(parent, ROUNDS[-1][0])
    begun = time.perf_counter()
    ours = generation(candidates, parent, fitness.kls)
    ours_seconds = time.perf_counter() - begun

    plain = Plain(dense, reader, options.out / "plain", run.context.dtype)
    plain.prepare([parent, *candidates])
    with torch.no_grad():
        logits = torch.cat([plain.model(input_ids=part, use_cache=False).logits for part in torch.split(tokens, 8)])
    plain.load(plain.model, parent, None)

    def evaluate(pool: list[Allocation], n_tokens: int) -> list[float]:
        rows = fitness.sequences(n_tokens)
        return [plain.kl(plain.model, parent, each, tokens[:rows], logits[:rows]) for each in pool]

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


def machine(run: Run[Recipe]) -> Json:
    return {
        "device": str(run.context.device),
        "threads": torch.get_num_threads(),
        "dtype": str(run.context.dtype).removeprefix("torch."),
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--set", action="append", help="section.field=value, as for `darwinlm demo`")
    parser.add_argument("--offspring", type=int, default=16)
    parser.add_argument("--step", type=float, default=0.1, help="longest level switch, as a share of a module's levels")
    measure_rate(parser.parse_args())


if __name__ == "__main__":
    main()
