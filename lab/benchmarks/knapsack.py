"""The search's knapsack against HiGHS (scipy's `milp`), in models of three sizes; one JSON line for each size.

Losses fall with the level as those of modules do, and costs are those of the recipes' levels: of 30 blocks with 4 and
49 levels (SmolLM2-135M), of 32 with 33 and 33 (Llama-2-7B), and of 48 with 9 and 33 (Qwen2.5-14B). A line has the
processor seconds of each instance, and the largest share of the loss by which a choice of HiGHS is better.

    python -m lab.benchmarks.knapsack
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_matrix

from darwinlm.steps.search.knapsack import solve_knapsack

Table = list[list[float]]
Prices = list[list[int]]
MODELS = {
    "135M": (30, (4, 884_736), (49, 2_654_208)),
    "7B": (32, (33, 67_108_864), (33, 135_266_304)),
    "14B": (48, (9, 62_914_560), (33, 212_336_640)),
}
"""Blocks; levels and parameters of an attention, and of an MLP."""
KEEP, TOLERANCE, GAP, LIMIT = 0.4, 0.005, 1e-4, 30.0
"""The budget, HiGHS's relative gap, and its limit in seconds."""


def instance(model: str, seed: int) -> tuple[Table, Prices]:
    """Losses and costs of every level of every module."""
    rng = np.random.default_rng(seed)
    blocks, *kinds = MODELS[model]
    losses: Table = []
    costs: Prices = []
    for _ in range(blocks):
        for levels, params in kinds:
            removed = 1 - np.arange(levels) / (levels - 1)
            noise = np.exp(rng.normal(0, 0.02, levels))
            losses.append((np.exp(rng.normal()) * removed ** rng.uniform(1, 3) * noise).tolist())
            costs.append([params // (levels - 1) * level for level in range(levels)])
    return losses, costs


def by_highs(losses: Table, costs: Prices, lower: int, upper: int) -> tuple[int, ...]:
    """The best choice that HiGHS finds within its limit."""
    lengths = [len(row) for row in losses]
    loss, cost = np.concatenate(losses), np.concatenate(costs) / upper
    owner = csr_matrix((np.ones(len(loss)), (np.repeat(np.arange(len(lengths)), lengths), np.arange(len(loss)))))
    found = milp(
        loss,
        constraints=[LinearConstraint(owner, 1, 1), LinearConstraint(csr_matrix(cost[None]), lower / upper, 1)],
        integrality=np.ones(len(loss), dtype=np.int64),
        bounds=Bounds(0, 1),
        options={"time_limit": LIMIT, "mip_rel_gap": GAP},
    )
    assert found.x is not None, "no choice found within the limit"
    return tuple(int(part.argmax()) for part in np.split(found.x, np.cumsum(lengths)[:-1]))


def timed(solve: Callable[..., tuple[int, ...]], *given: object) -> tuple[float, tuple[int, ...]]:
    """Processor seconds, and the choice."""
    begun = time.process_time()
    choice = solve(*given)
    return round(time.process_time() - begun, 3), choice


def total(losses: Table, choice: Sequence[int]) -> float:
    """The loss of a choice."""
    return sum(row[level] for row, level in zip(losses, choice, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--instances", type=int, default=8, help="of each size")
    given = parser.parse_args()
    for model in MODELS:
        seconds: dict[str, list[float]] = {"HiGHS": [], "darwinlm": []}
        worse = 0.0
        for seed in range(given.instances):
            losses, costs = instance(model, seed)
            upper = int(KEEP * sum(row[-1] for row in costs))
            problem = (losses, costs, int((1 - TOLERANCE) * upper), upper)
            theirs, ours = timed(by_highs, *problem), timed(solve_knapsack, *problem)
            seconds["HiGHS"].append(theirs[0])
            seconds["darwinlm"].append(ours[0])
            worse = max(worse, total(losses, ours[1]) / total(losses, theirs[1]) - 1)
        print(json.dumps({"model": model, "seconds": seconds, "HiGHS is better by": round(worse, 6)}), flush=True)


if __name__ == "__main__":
    main()
