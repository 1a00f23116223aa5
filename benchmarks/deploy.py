"""Speed of a pruned model against the dense one in PyTorch and in llama.cpp, one JSON line for each element type.

    python benchmarks/deploy.py runs/demo runs/demo/stages/source --threads 1

The dense model is a folder; in the demo's run it is `stages/source`. The two models are measured alternately. Every
line holds the medians and spreads of both, and the spread of their ratios.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import warnings

from darwinlm.runs.bench import run_bench

CASES = {
    "torch-bfloat16": {"engine": "torch", "dtype": "bfloat16"},
    "torch-float32": {"engine": "torch", "dtype": "float32"},
    "llama.cpp-f16": {"engine": "llama.cpp", "quantisation": "f16"},
    "llama.cpp-q8_0": {"engine": "llama.cpp", "quantisation": "q8_0"},
    "llama.cpp-q4_k_m": {"engine": "llama.cpp", "quantisation": "q4_k_m"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="pruned model or finished run")
    parser.add_argument("dense", help="dense model that it was pruned from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in arguments.cases:
        speeds = run_bench(
            arguments.model,
            arguments.dense,
            prompt_tokens=arguments.prompt_tokens,
            new_tokens=arguments.new_tokens,
            runs=arguments.runs,
            threads=arguments.threads,
            say=lambda message: print(message, file=sys.stderr),
            **CASES[name],
        )
        print(json.dumps({"case": name, **dataclasses.asdict(speeds)}), flush=True)


if __name__ == "__main__":
    main()
