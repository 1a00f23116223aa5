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
from darwinlm.run import Run

from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.evaluation.text import pack
from darwinlm.pipeline import run_stages
from darwinlm.recipe import load_recipe
from darwinlm.runs.sweep import SHARED
from darwinlm.runtime.console import Reporter
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
    layers, keep = arm.split()
    given = {"model": options.model, "text.source": options.text, "search.seed": seed, "search.layers": layers}
    recipe = load_recipe(None, options.set or (), {**given, "budget.keep": keep})
    first = options.out / str(seed)
    shared = {stage: first / "stages" / stage for stage in SHARED}
    run = Run(recipe, first / arm.replace(" ", "-").rstrip("%"), Reporter(), elsewhere=shared)
    results = run_stages(run, "recover")
    tokens = pack(options.held_out, run.checkpoint.tokenizer(), sequence_length=512, max_tokens=options.tokens)
    dense = run.checkpoint.load(torch.float32)
    row: Json = {"benchmark": "layers", "arm": arm, "seed": seed, "search": round(results.search.record["kl"], 4)}
    stages = {"one_shot": results.stitch, "refit": results.refit, "recovered": results.recover}
    row |= {name: round(kl(dense, stage.model(), tokens), 4) for name, stage in stages.items() if stage is not None}
    plan = results.plan
    levels = plan.space.levels(results.search.allocation)
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
    used = plan.space.params(results.search.allocation) / plan.space.params(plan.space.dense)
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
