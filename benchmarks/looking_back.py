"""What a share of text that has to be looked back at is worth: the pipeline with several shares, each with its seed.

Every arm is one run on the demo's model at half of its block parameters, with the same tokens, seed and settings; only
`--set` of the arm differs. One JSON line for each of its models (dense, uniform, stitched, refit, recovered): KL and
perplexity on held-out plain text, KL split by whether the next token stood before, and copying of lists and passages.

    python benchmarks/looking_back.py --text c4.jsonl.gz --out runs/looking_back --seed 0 \
        --arm plain:text.looking_back=0 --arm fifth:text.looking_back=20%
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from darwinlm.console import Reporter
from darwinlm.data import read_documents
from darwinlm.demo import demo_model
from darwinlm.evaluation.looking_back import measure_copying, passages, word_lists
from darwinlm.evaluation.quality import measure_quality
from darwinlm.pipeline import run_stages
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from darwinlm.surgery.stitch import as_dtype, stitch

SETTINGS = {
    "budget.keep": 0.5,
    "text.calibration_tokens": 24576,
    "text.fitness_tokens": 4096,
    "text.validation_tokens": 4096,
    "text.evaluation_tokens": 8192,
    "refit.tokens": 24576,
    "search.generations": 3,
    "search.offspring": 6,
    "search.stages": [{"tokens": 2048, "survivors": 2}, {"tokens": 4096, "survivors": 1}],
    "recovery.batch_tokens": 2048,
    "recovery.embeddings": False,
    "recovery.evaluate_every": 10_000_000,
}
"""Small enough for two processor cores: about ten minutes an arm."""


def measure(run: Run, found: dict[str, Any]) -> dict[str, Any]:
    """Figures of the models that a run has made so far."""
    tokenizer, tokens = run.checkpoint.tokenizer(), found["text"]["evaluation"].tokens
    copying = [
        word_lists(tokenizer, 16),
        word_lists(tokenizer, 64),
        passages(tokenizer, tokens, 64),
        passages(tokenizer, tokens, 64, 192),
    ]
    dense = run.checkpoint.load(run.dtype)
    models = {"dense": dense}
    if "stitch" in found:
        models["uniform"] = as_dtype(stitch(found["database"].reader, found["search"].uniform), run.dtype)
        models["stitched"] = found["stitch"].checkpoint.load(run.dtype)
    if found.get("refit") is not None:
        models["refit"] = as_dtype(found["refit"].model(found["stitch"].checkpoint), run.dtype)
    if found.get("recover") is not None:
        models["recovered"] = found["recover"].checkpoint.load(run.dtype)
    quality = measure_quality(dense, models, tokens, batch_tokens=4096)
    scores = measure_copying(models, copying, batch_tokens=4096)
    return {
        name: {
            **asdict(quality[name]),
            "copying": {s.name: [round(s.accuracy, 4), round(s.loss, 3)] for s in scores[name]},
        }
        for name in models
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=None, help="the demo's if none is named")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME:FIELD=VALUE;...")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all arms")
    parser.add_argument("--until", default="recover", choices=["stitch", "refit", "recover"])
    options = parser.parse_args()
    next(iter(read_documents(options.text)))
    lines = options.out / "lines.jsonl"
    options.out.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for seed in options.seed or [0]:
        for arm in options.arm:
            name, _, settings = arm.partition(":")
            if any((line["arm"], line["seed"], line["until"]) == (name, seed, options.until) for line in done):
                continue
            assigned = [f"search.seed={seed}", *options.set, *(part for part in settings.split(";") if part)]
            taken = {assignment.partition("=")[0] for assignment in assigned}
            fixed = {field: value for field, value in SETTINGS.items() if field not in taken}
            fixed |= {"model": options.model or str(demo_model()), "text.source": options.text}
            run = Run(load_recipe(None, tuple(assigned), fixed), options.out / f"{name}-{seed}", Reporter())
            found: dict[str, Any] = {}
            begun = time.monotonic()
            run_stages(run, options.until, found)
            line = {
                "benchmark": "looking back",
                "arm": name,
                "seed": seed,
                "until": options.until,
                "settings": assigned,
                "seconds": round(time.monotonic() - begun),
                "timings": {each["name"]: each["seconds"] for each in run.timings},
                "threads": torch.get_num_threads(),
                "load": round(os.getloadavg()[0], 1),
                "search_kl": [found["search"].record["uniform_kl"], found["search"].record["kl"]],
                "models": measure(run, found),
            }
            with lines.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
