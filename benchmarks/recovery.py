"""Recovery of several allocations: perplexity and KL to the dense model on held-out text against tokens trained on.

Starts from smaller models that exist: a finished run (its searched allocation, stitched and refitted, and on request
the uniform one of the same database), or any folder. Each is trained by distillation on the same tokens in the same
order, once for every point with a schedule of its own, since a cosine that is cut short isn't recovery. Prints one JSON
line for each model, seed and number of tokens; lines that stand in the file given by ``--lines`` are left out, and a
training that was killed goes on from its last checkpoint, so the same command resumes.

    python benchmarks/recovery.py DENSE --model ours=runs/half/model --model uniform=runs/uniform/model \
        --text c4=texts/c4.jsonl.gz --text books=texts/books.jsonl.gz --points 100k,300k,1M --seeds 0,1,2 \
        --cheap 100k --out runs/recovery
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.data import read_documents, split_documents
from darwinlm.data.packed import PackedText, pack_documents
from darwinlm.evaluation.quality import measure_quality
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import Recovery
from darwinlm.recipe.quantities import COUNTS, parse_quantity
from darwinlm.recovery.checks import accumulation, check_teacher
from darwinlm.recovery.train import plan_steps, train


class Mixed(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Blocks of several texts in turn."""

    def __init__(self, parts: list[PackedText]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, block: int) -> dict[str, Tensor]:
        number, place = block % len(self.parts), block // len(self.parts)
        return self.parts[number][place]


def count(text: str) -> int:
    return round(parse_quantity(text, COUNTS, "300k"))


def held_out_of(sources: dict[str, str], tokenizer: Any, length: int, tokens: int) -> dict[str, Any]:
    """Validation and evaluation text of each source, the same for every model and seed."""
    shares = {"validation": 4096, "evaluation": tokens}
    return {
        name: split_documents(read_documents(source), shares, tokenizer, length, 0, source=source)
        for name, source in sources.items()
    }


def training_text(
    sources: dict[str, str], held_out: dict[str, Any], tokenizer: Any, out: Path, tokens: int, length: int, size: int
) -> Mixed:
    """As many tokens of each source, without what is held out."""
    blocks = -(-tokens // length // len(sources)) + 1
    parts = []
    for name, source in sources.items():
        reserved = {hashed for part in held_out[name].values() for hashed in part.document_hashes}
        folder = out / "text" / f"{name}-{blocks * length}"
        pack_documents(
            read_documents(source),
            folder,
            blocks * length,
            tokenizer,
            reserved=reserved,
            vocabulary=size,
            source=source,
        )
        parts.append(PackedText(folder, length, blocks))
    return Mixed(parts)


def measured(dense: Any, model: Any, held_out: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for name, parts in held_out.items():
        quality = measure_quality(dense, {"model": model}, parts["evaluation"].tokens, batch_tokens=4096)["model"]
        found[name] = {"perplexity": round(quality.perplexity, 3), "kl": round(quality.kl, 4), "tokens": quality.tokens}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=SOURCE")
    parser.add_argument("--points", default="100k,300k,1M", help="tokens at which to measure; the last one ends it")
    parser.add_argument("--cheap", default="100k", help="the last point for all seeds but the first")
    parser.add_argument("--seeds", default="0", help="of the order of the text")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lines", type=Path, help="by default lines.jsonl in the output folder")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=16384, help="tokens of each source that are measured on")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--micro-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--save-every", type=int, default=40960, help="tokens between checkpoints")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lines = options.lines or options.out / "lines.jsonl"
    done = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    teacher = Checkpoint.open(options.dense)
    tokenizer = teacher.tokenizer()
    sources = dict(pair.split("=", 1) for pair in options.text)
    held_out = held_out_of(sources, tokenizer, options.length, options.held_out)
    points = [count(point) for point in options.points.split(",")]
    text = training_text(
        sources, held_out, tokenizer, options.out, points[-1], options.length, int(teacher.config.vocab_size)
    )
    dense = teacher.load(torch.bfloat16)
    validation = torch.cat([parts["validation"].tokens for parts in held_out.values()])

    def tell(name: str, seed: int, tokens: int, model: Any, **facts: Any) -> None:
        line = {"benchmark": "recovery", "model": name, "seed": seed, "tokens": tokens, **facts}
        line |= {"learning_rate": options.learning_rate, "batch_tokens": options.batch_tokens}
        line |= {"load": round(os.getloadavg()[0], 1), "held_out": measured(dense, model, held_out)}
        with lines.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def is_done(name: str, seed: int, tokens: int) -> bool:
        return any((line["model"], line["seed"], line["tokens"]) == (name, seed, tokens) for line in done)

    for number, seed in enumerate(int(seed) for seed in options.seeds.split(",")):
        last = points[-1] if number == 0 else count(options.cheap)
        for pair in options.model:
            name, folder = pair.split("=", 1)
            small = Checkpoint.open(Path(folder))
            check_teacher(teacher, small, tokenizer)
            if number == 0 and not is_done(name, seed, 0):
                tell(name, seed, 0, small.load(torch.bfloat16))
            for tokens in (point for point in points if point <= last):
                if is_done(name, seed, tokens):
                    continue
                settings = Recovery(
                    tokens=tokens,
                    batch_tokens=options.batch_tokens,
                    learning_rate=options.learning_rate,
                    evaluate_every=max(tokens // 5, options.batch_tokens),
                    save_every=options.save_every,
                    keep_checkpoints=1,
                    seed=seed,
                )
                rows, times = accumulation(settings, options.length, options.micro_tokens, 1)
                plan = plan_steps(settings, options.length, rows, times)
                begun = time.monotonic()
                trained = train(
                    small.load(torch.float32),
                    dense,
                    torch.utils.data.Subset(text, range(plan.blocks)),
                    validation,
                    plan,
                    settings,
                    options.out / f"{name}-{seed}-{tokens}",
                    {"model": small.digest, "tokens": tokens, "seed": seed, "rate": options.learning_rate},
                    device=torch.device("cpu"),
                    say=lambda message: print(message, flush=True),
                )
                seconds = round(time.monotonic() - begun)
                curve = [entry for entry in trained.record["log"] if "eval_kl" in entry]
                tell(name, seed, tokens, trained.model.bfloat16(), seconds=seconds, validation=curve)


if __name__ == "__main__":
    main()
