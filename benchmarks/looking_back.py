"""Effect of text with long-range repetition: the whole pipeline with several shares of it and several seeds.

Every arm is one run on the demo's model at half of its block parameters. Arms share tokens, seed and settings, and
differ only in the settings that they name. Each prints one JSON line with the figures of its report: KL and perplexity
on held-out plain text, KL by position and token novelty, and copying. The models are the dense, uniform, stitched,
refitted and recovered one. Finished arms are skipped, and an interrupted one resumes.

    python benchmarks/looking_back.py --text c4.jsonl.gz --out runs/looking_back --set recovery.tokens=49152 \
        --seed 0 --seed 1 --seed 2 --arm plain:text.looking_back=0 --arm fifth:text.looking_back=20%
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from tests.tiny.stages import run_stages

from darwinlm.execution.run import Run
from darwinlm.recipe import load_recipe
from darwinlm.runs.demo import demo_model
from darwinlm.runtime.console import Reporter

SETTINGS = {
    "budget.keep": 0.5,
    "text.calibration_tokens": 24576,
    "text.validation_tokens": 4096,
    "text.evaluation_tokens": 8192,
    "refit.tokens": 24576,
    "search.generations": 3,
    "search.offspring": 6,
    "search.stages": [{"tokens": 2048, "survivors": 2}, {"tokens": 4096, "survivors": 1}],
    "recovery.batch_tokens": 2048,
    "recovery.embeddings": False,
}
"""Settings small enough for two processor cores."""

FIGURES = ("block_params", "perplexity", "kl", "looking_back")


def run_arm(options: argparse.Namespace, name: str, settings: str, seed: int) -> dict[str, Any]:
    """Make one run, and return the figures of its models."""
    assigned = [f"search.seed={seed}", *options.set, *filter(None, settings.split(";"))]
    given = {assignment.partition("=")[0] for assignment in assigned}
    fixed = {field: value for field, value in SETTINGS.items() if field not in given}
    fixed |= {"model": options.model or str(demo_model()), "text.source": options.text}
    run = Run(load_recipe(None, tuple(assigned), fixed), options.out / f"{name}-{seed}", Reporter())
    summary = run_stages(run, "report").report.as_json()
    return {
        "benchmark": "looking back",
        "arm": name,
        "seed": seed,
        "settings": assigned,
        "seconds": {stage["name"]: stage["seconds"] for stage in summary["stages"]},
        "machine": summary["machine"],
        "load": round(os.getloadavg()[0], 1),
        "models": {
            key: {figure: model[figure] for figure in FIGURES} for key, model in summary["models"].items() if model
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default=None, help="model; default: the demo's")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--arm", action="append", required=True, metavar="NAME:FIELD=VALUE;...")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="for all arms")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = options.out / "lines.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for seed in options.seed or [0]:
        for arm in options.arm:
            name, _, settings = arm.partition(":")
            if any((line["arm"], line["seed"]) == (name, seed) for line in done):
                continue
            line = json.dumps(run_arm(options, name, settings, seed))
            with lines.open("a") as stream:
                stream.write(line + "\n")
            print(line, flush=True)


if __name__ == "__main__":
    main()
