"""Selection with training against selection without, at equal total cost, on the demo's model and text.

For each seed, which has a split of the text and a database of its own, three contestants search from the same start.
`trained` searches for half of --minutes, then trains its finalists in rounds, and the best trained one wins. `proxy`
searches as long and ranks its finalists by gradient agreement. `plain` spends all the time that `trained` took,
training included, on the search. Every answer is then recovered alike, on the same text, which no finalist saw, with
the same steps; held-out KL before and after. The ranks of all finalists before and after training are in the lines.
Finished ones are in OUT/results.jsonl and aren't repeated.

    python benchmarks/finalists.py --out runs/finalists --minutes 10 --seed 0 --seed 1 --seed 2
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from darwinlm.families.decoder import Decoder
from darwinlm.recipe import TrainingSettings
from darwinlm.search.evaluate.fitness import Fitness
from darwinlm.search.evaluate.modules import PlacedModules
from darwinlm.search.evaluate.training import CandidateTrainer
from darwinlm.search.problem.space import Allocation
from darwinlm.stages.search import search_stage
from search import Bench, common_options, machine, open_bench

Json = dict[str, Any]


class Recovery:
    """Trains an answer on text that no finalist saw, and measures it on evaluation text."""

    def __init__(self, bench: Bench, options: argparse.Namespace, seed: int) -> None:
        run, plan = bench.run(options.out / f"recovery-{seed}")
        model = bench.checkpoint.load(run.dtype, run.device)
        reader = bench.database(run.recipe.units).reader
        placed = PlacedModules(Decoder(model, bench.checkpoint.family), reader, plan.space)
        self.evaluation = Fitness(placed, bench.texts["evaluation"].tokens, batch_tokens=4096)
        tokens = bench.texts["training"].tokens
        self.tokens = options.recovery_tokens
        seen = -(-sum(options.rounds) // tokens.shape[1]) + len(options.rounds)
        if (len(tokens) - seen) * tokens.shape[1] < self.tokens:
            raise SystemExit("there is too little training text for recovery: lower --recovery-tokens")
        training = TrainingSettings(learning_rate=options.learning_rate)
        self.trainer = CandidateTrainer(placed, self.evaluation, tokens[seen:], training)

    def of(self, allocation: Allocation) -> tuple[float, float]:
        """Held-out KL before and after."""
        everything = self.evaluation.n_sequences * self.evaluation.sequence_length
        before = self.evaluation.kl(allocation, everything)
        self.trainer.keep(())
        self.trainer.train([allocation], self.tokens)
        after = self.trainer.kls([allocation], everything)[0]
        self.trainer.keep(())
        return before, after


def contestants(options: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    count = options.finalists
    survivors = [max(1, count // 2 ** (number + 1)) for number in range(len(options.rounds))]
    survivors[-1] = 1
    rounds = ", ".join(
        f"{{training_tokens: {tokens}, survivors: {left}}}"
        for tokens, left in zip(options.rounds, survivors, strict=True)
    )
    training = f"search.training={{learning_rate: {options.learning_rate}}}"
    return {
        "trained": (
            f"search.finalists={count}",
            f"search.finalist_rounds=[{rounds}]",
            "search.proxy=gradient",
            training,
        ),
        "proxy": (f"search.finalists={count}", "search.finalist_rounds=[]", "search.proxy=gradient"),
        "plain": (),
    }


def compete(
    bench: Bench, options: argparse.Namespace, name: str, seed: int, evolution: float
) -> tuple[Json, Allocation]:
    """One search; `evolution` is in minutes."""
    folder = options.out / f"{name}-{seed}"
    settings = ("search.generations=100000", f"search.minutes={evolution}", f"search.seed={seed}")
    run, plan = bench.run(folder, *contestants(options)[name], *settings)
    begun = time.perf_counter()
    found = search_stage(run, bench.texts, bench.database(run.recipe.units), plan)
    seconds = time.perf_counter() - begun
    record = found.record
    row: Json = {
        "contestant": name,
        "seed": seed,
        "total_s": round(seconds, 1),
        "evolution_s": round(record["seconds"], 1),
        "generations": len(record["history"]) - 1,
        "fitness_kl": record["kl"],
        **machine(run),
    }
    if record["finalists"]:
        candidates = record["finalists"]["candidates"]
        row["ranks"] = [[each["rank_before"], each["rank_after"], each["rank_proxy"]] for each in candidates]
        first = [each["kl_after"][0] for each in candidates if each["kl_after"]]
        if first:
            row["spearman_loss_before"] = float(spearmanr([each["kl_before"] for each in candidates], first).statistic)
            row["spearman_proxy"] = -float(spearmanr([each["agreement"] for each in candidates], first).statistic)
    return row, found.allocation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common_options(parser)
    parser.add_argument("--minutes", type=float, default=10.0, help="of every contestant, all in all")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--contestant", action="append", choices=["trained", "proxy", "plain"], help="by default all")
    parser.add_argument("--finalists", type=int, default=6)
    parser.add_argument("--rounds", type=int, nargs="+", default=[8192, 16384], help="training tokens of each round")
    parser.add_argument("--recovery-tokens", type=int, default=65536)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    options = parser.parse_args()
    wanted = sum(options.rounds) + options.recovery_tokens + 8192
    results: Path = options.out / "results.jsonl"
    rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    for seed in options.seed or [0]:
        bench = open_bench(options, f"text.training_tokens={wanted}", f"search.seed={seed}", name=f"run-{seed}")
        if "training" not in bench.texts:
            raise SystemExit(
                "the run has no training text: leave --run out, or give one made with text.training_tokens"
            )
        recovery = Recovery(bench, options, seed)
        for name in contestants(options):
            if options.contestant and name not in options.contestant:
                continue
            if any(row["contestant"] == name and row["seed"] == seed for row in rows):
                continue
            evolution = options.minutes / 2
            if name == "plain":  # as long as the trained one took in all
                took = next(row["total_s"] for row in rows if row["contestant"] == "trained" and row["seed"] == seed)
                evolution = took / 60
            row, allocation = compete(bench, options, name, seed, evolution)
            row["held_out_kl"], row["held_out_kl_recovered"] = recovery.of(allocation)
            row |= {
                "benchmark": "finalists",
                "recovery_tokens": options.recovery_tokens,
            }
            print(json.dumps(row), flush=True)
            with results.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(row) + "\n")
            rows.append(row)


if __name__ == "__main__":
    main()
