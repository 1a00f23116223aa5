"""Gain of the refit of a stitched model, by ridge, amount and breadth of text.

Prints one JSON line for each variant, with perplexity and KL to the dense model on held-out text of each source (blocks
of 512 tokens, disjoint by document from the text for fitting and for choices). Variants whose name is in the file given
by ``--lines`` are skipped, so that an interrupted measurement resumes.

    python benchmarks/refit.py DENSE SMALL --text a=texts/a.jsonl.gz --text b=texts/b.jsonl.gz --lines refit.jsonl \
        --variant tokens=32768,ridges=0.03+0.3,fit=a --variant tokens=65536,ridges=0.1,fit=a+b
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from darwinlm.data import read_documents, split_documents
from darwinlm.evaluation.quality import measure_quality
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.runtime.artifact import StageFolder, read_tensors
from darwinlm.streaming.stream import BlockStream
from darwinlm.surgery.refit import Streams, refit

LENGTH = 512


def texts_of(sources: dict[str, str], tokenizer: Any, seed: int, held_out: int, fitted: int) -> dict[str, Any]:
    """Blocks of each source for each purpose."""
    shares = {"calibration": fitted, "validation": 8192, "evaluation": held_out}
    return {
        name: split_documents(
            read_documents(source), shares, tokenizer, LENGTH, seed, source=source, document_tokens=LENGTH
        )
        for name, source in sources.items()
    }


def mixed(texts: dict[str, Any], names: list[str], purpose: str, tokens: int) -> torch.Tensor:
    """Equally many tokens of each source, alternating."""
    rows = tokens // LENGTH // len(names)
    return torch.stack([texts[name][purpose].tokens[:rows] for name in names], 1).flatten(0, 1)


def measure(dense: Checkpoint, small: Checkpoint, texts: dict[str, Any], variant: dict[str, str]) -> dict[str, Any]:
    names = variant.get("fit", next(iter(texts))).split("+")

    def streams(tokens: torch.Tensor) -> Streams:
        both = (
            BlockStream(c, tokens, dtype=torch.bfloat16, device=torch.device("cpu"), batch_tokens=4096)
            for c in (dense, small)
        )
        return Streams(*both)

    model = small.load(torch.bfloat16)
    begun = time.monotonic()
    if variant.get("refit") != "none":
        ridges = tuple(float(ridge) for ridge in variant.get("ridges", "0.03+0.3").split("+"))
        with tempfile.TemporaryDirectory() as folder:
            stage = StageFolder(Path(folder) / "refit", {})
            stage.begin()
            fit = streams(mixed(texts, names, "calibration", int(variant.get("tokens", 32768))))
            refit(stage, fit, streams(mixed(texts, names, "validation", 8192)), ridges)
            parameters = dict(model.named_parameters())
            for path in stage.folder.glob("block_*.safetensors"):
                prefix = small.block_prefix(int(path.stem.removeprefix("block_")))
                for name, weight in read_tensors(path).items():
                    parameters[prefix + name].data = weight.bfloat16()
    seconds = time.monotonic() - begun
    results = {}
    reference = dense.load(torch.bfloat16)
    for name, parts in texts.items():
        quality = measure_quality(reference, {"model": model}, parts["evaluation"].tokens, batch_tokens=4096)["model"]
        results[name] = {
            "perplexity": round(quality.perplexity, 2),
            "kl": round(quality.kl, 4),
            "tokens": quality.tokens,
        }
    return {"seconds": round(seconds), "load": round(os.getloadavg()[0], 1), "held_out": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("--text", action="append", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--variant", action="append", required=True, metavar="FIELD=VALUE,...")
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0, help="seed of the split of the text")
    parser.add_argument("--held-out", type=int, default=16384, help="evaluation tokens of each source")
    parser.add_argument("--fitted", type=int, default=65536, help="largest number of fitting tokens of each source")
    options = parser.parse_args()
    done = [json.loads(line) for line in options.lines.read_text().splitlines()] if options.lines.exists() else []
    dense, small = Checkpoint.open(options.dense), Checkpoint.open(options.small)
    sources = dict(pair.split("=", 1) for pair in options.text)
    texts = texts_of(sources, dense.tokenizer(), options.seed, options.held_out, options.fitted)
    for variant in options.variant:
        name = {"variant": variant, "split_seed": options.seed}
        if any(line.items() >= name.items() for line in done):
            continue
        fields = dict(pair.split("=", 1) for pair in variant.split(","))
        line = json.dumps({"benchmark": "refit", **name, **measure(dense, small, texts, fields)})
        with options.lines.open("a") as stream:
            stream.write(line + "\n")
        print(line, flush=True)


if __name__ == "__main__":
    main()
