"""Equal layers against unequal ones of the same number of parameters, from one database for each seed.

A line has the KL to the dense model on `--held-out`, which isn't the source of any other text: of the stitched model
(one shot), after the refit, and after the recovery of `--set recovery.tokens=N`. Finished lines are in
OUT/results.jsonl and aren't repeated.

    python benchmarks/layers.py MODEL --text c4.jsonl.gz --held-out wikitext.jsonl.gz#page --seed 0 --seed 1 --seed 2 \
      --set recovery.tokens=49152 --set recovery.batch_tokens=4096 --set recovery.embeddings=false
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.evaluation.text import pack
from darwinlm.pipeline import open_run
from darwinlm.recipe import Recipe, load_recipe
from darwinlm.runtime.console import Reporter
from darwinlm.stages.model import DENSE
from darwinlm.stages.plan import PLAN
from darwinlm.stages.recover import RECOVER
from darwinlm.stages.refit import REFIT
from darwinlm.stages.search import SEARCH
from darwinlm.stages.stitch import STITCH
from search import Json, each_arm, machine

ARMS = [f"{layers} {keep}" for keep in ("75%", "50%") for layers in ("unequal", "equal")]


@torch.no_grad()
def kl(dense: torch.nn.Module, model: torch.nn.Module, tokens: torch.Tensor) -> float:
    """Mean KL in nats per token on [n, t]."""
    total = 0.0
    for row in tokens:
        reference = DenseDistribution(dense(input_ids=row[None], use_cache=False).logits[0])
        total += float(reference.kl(model(input_ids=row[None], use_cache=False).logits[0]).double().sum())
    return total / tokens.numel()


def compete(options: argparse.Namespace, arm: str, seed: int) -> Json:
    """Prune to one size with one kind of layers."""
    given = {"model": options.model, "text.source": options.text, "text.seed": seed, "search.seed": seed}

    def of(arm: str) -> Recipe:
        layers, keep = arm.split()
        return load_recipe(None, options.set or (), {**given, "search.layers": layers, "budget.keep": keep})

    every = [of(each) for each in ARMS]
    base = open_run(every[0], options.out / str(seed), Reporter())
    folder = options.out / str(seed) / arm.replace(" ", "-").rstrip("%")
    run = open_run(of(arm), folder, Reporter(), parent=base, alike=every)
    tokens = pack(options.held_out, run[DENSE].tokenizer(), sequence_length=512, max_tokens=options.tokens)
    dense, search = run[DENSE].load(torch.float32), run[SEARCH]
    row: Json = {"benchmark": "layers", "arm": arm, "seed": seed, "search": round(search.record["kl"], 4)}
    models = {"one_shot": run[STITCH], "refit": run[REFIT], "recovered": run[RECOVER]}
    row |= {name: round(kl(dense, stage.model(), tokens), 4) for name, stage in models.items() if stage is not None}
    plan = run[PLAN]
    levels = plan.space.levels(search.allocation)
    widths = sorted(
        {level.width for module, level in zip(plan.space.modules, levels, strict=True) if module.kind == "mlp"}
    )
    heads = sorted(
        {
            (level.groups, level.heads)
            for m, level in zip(plan.space.modules, levels, strict=True)
            if m.kind == "attention"
        }
    )
    used = plan.space.params(search.allocation) / plan.space.params(plan.space.dense)
    return row | {"used": round(used, 5), "mlp": widths, "attention": heads, "tokens": tokens.numel()} | machine(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, default=Path("runs/layers"))
    parser.add_argument("--text", required=True)
    parser.add_argument("--held-out", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--set", action="append", help="section.field=value")
    options = parser.parse_args()
    each_arm(options, ARMS, compete)


if __name__ == "__main__":
    main()
