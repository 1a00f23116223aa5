"""Pruning in several rounds against pruning in one, with the same total of recovery tokens and search time.

Each arm is one `darwinlm prune` in a separate folder, so that an interrupted one resumes. `once` prunes to the last
share and trains on all tokens. `rounds` prunes to each share in turn, trains on an equal part of the tokens after each,
and builds a new database from the result. Its searches share the time of the single search of `once`. The original
model is always the teacher, and both arms are measured on the same held-out text.

Prints one JSON line for each arm and seed, with the seconds of the run in this process, and the differences at the end.
Lines in OUT/lines.jsonl are not computed again.

    python benchmarks/rounds.py --out runs/rounds --text TEXTS --tokens 98304 --minutes 6 --seeds 0,1,2
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from darwinlm.runs.demo import REASON, demo_model, demo_text

ARMS = ("once", "rounds")


def command(options: argparse.Namespace, arm: str, seed: int) -> list[str]:
    """The command line of one arm."""
    shares = options.rounds.split(",")
    minutes = options.minutes if arm == "once" else options.minutes / len(shares)
    settings = [
        f"search.seed={seed}",
        f"recovery.seed={seed}",
        f"search.minutes={minutes * 60:.0f}s",
        "search.generations=100000",
        f"recovery.tokens={options.tokens}",
        f"recovery.batch_tokens={options.batch_tokens}",
    ]
    settings += [f"budget.keep={shares[-1]}"] if arm == "once" else [f"rounds=[{options.rounds}]"]
    settings += [] if options.text else [f"text.allow_benchmark_text={REASON}"]
    line = [sys.executable, "-m", "darwinlm", "prune", options.model or str(demo_model())]
    line += ["--out", str(options.out / f"{arm}-{seed}"), "--text", options.text or demo_text()]
    for setting in (*settings, *options.settings):
        line += ["--set", setting]
    return line


def facts(folder: Path) -> dict[str, Any]:
    """Figures of a finished run."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    trained = summary["models"]["recovered"]
    return {
        "perplexity": trained["perplexity"],
        "kl": trained["kl"],
        "kl_before_recovery": summary["models"]["refit"]["kl"],
        "block_params": trained["block_params"],
        "tokens_of_last_round": summary["recovery"]["tokens"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/rounds"))
    parser.add_argument("--model", help="default: the demo's")
    parser.add_argument("--text", help="default: the demo's")
    parser.add_argument("--rounds", default="75%,50%", help="shares of the block parameters, falling")
    parser.add_argument("--tokens", type=int, default=98304, help="tokens of recovery, in all rounds together")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--minutes", type=float, default=6.0, help="minutes of search, in all rounds together")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    path: Path = options.out / "lines.jsonl"
    for seed in map(int, options.seeds.split(",")):
        for arm in options.arms:
            if any(line["arm"] == arm and line["seed"] == seed for line in _lines(path)):
                continue
            begun = time.monotonic()
            subprocess.run(command(options, arm, seed), check=True)
            line = {"benchmark": "rounds", "arm": arm, "seed": seed, **facts(options.out / f"{arm}-{seed}")}
            line |= {"seconds": round(time.monotonic() - begun), "rounds": options.rounds, "minutes": options.minutes}
            line |= {"load": round(os.getloadavg()[0], 1)}
            with path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)
    _compare(_lines(path))


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def _compare(lines: list[dict[str, Any]]) -> None:
    """Print the KL of the seeds common to both arms, and the difference of the arms."""
    kl = {(line["arm"], line["seed"]): line["kl"] for line in lines}
    seeds = sorted(seed for arm, seed in kl if arm == "once" and ("rounds", seed) in kl)
    for seed in seeds:
        print(f"seed {seed}: once {kl['once', seed]:.4f}, rounds {kl['rounds', seed]:.4f}")
    if seeds:
        added = [kl["rounds", seed] - kl["once", seed] for seed in seeds]
        print(f"rounds - once: mean {statistics.mean(added):+.4f}, from {min(added):+.4f} to {max(added):+.4f}")


if __name__ == "__main__":
    main()
