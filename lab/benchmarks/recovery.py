"""Recovery of several allocations: perplexity and KL to the dense model on held-out text against training tokens.

The smaller models are those of finished runs, or any folders. Each is trained by distillation, in two ways:

- one long training with the first seed, up to the last of the points, and measured at every point on the way. Its
  learning rate follows `--schedule`. With `wsd`, the default, all points but the last must lie before the decay. They
  show the progress of this training, not the result of a training that ends there;
- for every further seed one short training on the first `--cheap` tokens of the text, with a complete schedule.
  `--short-first` adds one with the first seed, so that all seeds can be compared.

A seed sets the order of the text; the tokens are the same for all models. Held-out text shares no document with them,
nor with any text of the run that a model's folder lies in (calibration, fitness, validation, evaluation).
`--cached-top-k K` runs the dense model over the text once, stores its K likeliest tokens at each position, and distils
all models and seeds from these.

Prints one JSON line for each model, seed, kind of training (`start`, `long` or `short`) and number of tokens, with the
seconds of training so far in this process. `--untrained NAME=FOLDER` is measured without training, such as a model
before its refit. `--keep` writes every measured model, for other evaluations. The same command resumes: it skips lines
that the file given by `--lines` holds, and continues an interrupted training from its last checkpoint. Short trainings
come first; `--seeds 0` makes only the long ones. `--plot FILE.svg` draws the lines at the end. Without a dense model it
only draws.

    python -m lab.benchmarks.recovery DENSE --model ours=runs/half/model --model uniform=runs/uniform/model \
        --text c4=texts/c4.jsonl.gz --text books=texts/books.jsonl.gz --points 100k,300k,1M --seeds 0,1,2 \
        --cheap 100k --cached-top-k 64 --out runs/recovery --plot runs/recovery/curves.svg
    python -m lab.benchmarks.recovery --lines runs/recovery/lines.jsonl --plot docs/recovery.svg
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from darwinlm.data import TokenSequences, read_documents, split_documents
from darwinlm.data.packed import PackedText, pack_documents
from darwinlm.data.packing import added_bos, document_hash
from darwinlm.evaluation.quality import measure_quality
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import RecoverySettings
from darwinlm.recipe.quantities import COUNTS, parse_quantity
from darwinlm.recovery import train as recovery_train
from darwinlm.recovery.cache import cached_text
from darwinlm.recovery.checks import check_teacher
from darwinlm.recovery.schedule import LEAST_RATE, plan_steps, rate_share, warm_up_steps
from darwinlm.runtime.compute import fast_dtype
from darwinlm.runtime.errors import DarwinLMError, RecipeError
from lab.benchmarks.recovery_plot import draw

DTYPE = fast_dtype(torch.device("cpu"))
"""Element type of forward passes and of the dense model; training uses it with float32 weights."""


DECAY = 0.2
"""Share of the steps in which `wsd` lowers the rate."""


def steady_share(steps: int, step: int) -> float:
    """Share of the learning rate that stays until the last steps, and then falls linearly (WSD, arXiv 2404.06395)."""
    if step < warm_up_steps(steps):
        return rate_share(steps, step)
    return LEAST_RATE + (1 - LEAST_RATE) * min((steps - step) / max(round(DECAY * steps), 1), 1.0)


class Mixed(Dataset[dict[str, Tensor]]):
    """Alternating blocks of several texts."""

    def __init__(self, parts: list[PackedText]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __getitem__(self, block: int) -> dict[str, Tensor]:
        number, place = block % len(self.parts), block // len(self.parts)
        return self.parts[number][place]


@dataclass
class Lines:
    """Finished lines, and the file that receives further ones.

    Attributes:
        path: The file.
        settings: Settings of this call, which a line must match to count as done.
    """

    path: Path
    settings: dict[str, Any]
    done: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.done = [json.loads(line) for line in self.path.read_text().splitlines()]

    def lack(self, **name: Any) -> bool:
        """Whether no line has these values."""
        return not any(line.items() >= (self.settings | name).items() for line in self.done)

    def add(self, facts: dict[str, Any]) -> None:
        """Print a line and store it."""
        line = {"benchmark": "recovery", **facts, **self.settings, "load": round(os.getloadavg()[0], 1)}
        self.done.append(line)
        with self.path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


@dataclass
class Bench:
    """Inputs that all trainings share."""

    options: argparse.Namespace
    lines: Lines
    dense: Any
    text: Dataset[dict[str, Tensor]]
    held_out: dict[str, Any]

    def measured(self, models: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Perplexity and KL of models, by name, on the evaluation text of each source."""
        results: dict[str, dict[str, Any]] = {name: {} for name in models}
        for source, parts in self.held_out.items():
            tokens = parts["evaluation"].tokens
            for name, quality in measure_quality(self.dense, models, tokens, batch_tokens=4096).items():
                figures = {"perplexity": round(quality.perplexity, 3), "kl": round(quality.kl, 4)}
                results[name][source] = {**figures, "tokens": quality.tokens}
        return results

    def start(self, smalls: dict[str, Checkpoint]) -> None:
        """Measure the models before training."""
        lacking = [name for name in smalls if self.lines.lack(model=name, kind="start")]
        results = self.measured({name: smalls[name].load(getattr(torch, DTYPE)) for name in lacking}) if lacking else {}
        for name, held_out in results.items():
            self.lines.add({"model": name, "kind": "start", "seed": None, "tokens": 0, "held_out": held_out})

    def training(self, name: str, small: Checkpoint, kind: str, seed: int, points: list[int]) -> None:
        """Train a model up to the last of the points, and measure it at every unfinished point."""
        options = self.options
        title = {"model": name, "kind": kind, "seed": seed, "until": points[-1]}
        lacking = [point for point in points if self.lines.lack(**title, tokens=point)]
        if not lacking:
            return
        settings = RecoverySettings(
            tokens=points[-1],
            batch_tokens=options.batch_tokens,
            learning_rate=options.learning_rate,
            embeddings=not options.blocks_alone,
            save_every=options.save_every,
            seed=seed,
        )
        plan = plan_steps(settings, options.length, options.micro_tokens)
        steps = {point // options.batch_tokens * plan.tokens: point for point in lacking}
        ready = small.load(getattr(torch, DTYPE))
        begun, measuring = time.monotonic(), 0.0

        def look(tokens: int, model: Any) -> None:
            nonlocal measuring
            if tokens not in steps:
                return
            at = time.monotonic()
            ready.load_state_dict(model.state_dict())
            facts = {"tokens": steps[tokens], "trained": tokens, "seconds": round(at - begun - measuring)}
            if options.keep:
                kept = options.out / "models" / f"{name}-{seed}-{kind}-{steps[tokens]}"
                save_model(ready, kept, tokenizer=small.tokenizer())
            self.lines.add(title | facts | {"held_out": self.measured({name: ready})[name]})
            measuring += time.monotonic() - at

        rates = {"wsd": steady_share, "cosine": rate_share}
        with mock.patch.object(recovery_train, "rate_share", rates[options.schedule]):
            trained = recovery_train.Training(
                lambda: small.load(torch.float32),
                self.dense,
                Subset(self.text, range(plan.sequences)),
                torch.cat([parts["validation"].tokens for parts in self.held_out.values()]),
                plan,
                settings,
                options.out / f"{name}-{seed}-{kind}-{points[-1]}",
                {"model": small.digest, "kind": kind, "tokens": points[-1], "seed": seed, **self.lines.settings},
                device=torch.device("cpu"),
                dtype=getattr(torch, DTYPE),
                say=lambda message: print(message, flush=True),
                each_step=look,
            ).train()
        if self.lines.lack(**title, tokens=points[-1]):
            # The last checkpoint was complete, but its lines are missing.
            look(trained.record["tokens"], trained.model)


def count(text: str) -> int:
    return round(parse_quantity(text, COUNTS, "300k"))


def held_out_of(
    sources: dict[str, str], tokenizer: Any, length: int, tokens: int, seen: set[str]
) -> dict[str, dict[str, TokenSequences]]:
    """Validation and evaluation text of each source without seen documents, the same for every model and seed."""
    shares = {"validation": 4096, "evaluation": tokens}
    splits = {}
    for name, source in sources.items():
        unseen = (text for text in read_documents(source) if document_hash(text) not in seen)
        splits[name] = split_documents(unseen, shares, tokenizer, length, 0, source=source, document_tokens=length)
    return splits


def documents_behind(folder: Path) -> set[str]:
    """Hashes of the documents for calibration, search and refit in the run that a model's folder lies in."""
    texts = [path for parent in folder.resolve().parents for path in (parent / "stages" / "text").glob("*/blocks.json")]
    return {hashed for path in texts for hashed in TokenSequences.load(path.parent).document_hashes}


def training_text(
    sources: dict[str, str], held_out: dict[str, Any], tokenizer: Any, out: Path, tokens: int, length: int, size: int
) -> Mixed:
    """Equally many tokens of each source, without held-out documents."""
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
        parts.append(PackedText(folder, length, blocks, bos=added_bos(tokenizer)))
    return Mixed(parts)


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path, nargs="?")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--untrained", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=SOURCE")
    parser.add_argument(
        "--points", default="100k,300k,1M", help="numbers of tokens at which to measure; training ends at the last"
    )
    parser.add_argument("--cheap", default="100k", help="tokens of the short trainings")
    parser.add_argument("--seeds", default="0", help="seeds of the order of the text; the long training uses the first")
    parser.add_argument("--short-first", action="store_true", help="also make a short training with the first seed")
    parser.add_argument("--schedule", default="wsd", choices=("wsd", "cosine"))
    parser.add_argument("--cached-top-k", type=int, metavar="K", help="distil from the K likeliest tokens, stored once")
    parser.add_argument("--cache", type=Path, help="default: teacher-cache in the output folder")
    parser.add_argument("--keep", action="store_true", help="write the measured models")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--lines", type=Path, help="default: lines.jsonl in the output folder")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a file of any type that matplotlib writes")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--held-out", type=int, default=16384, help="evaluation tokens of each source")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--micro-tokens", type=int, default=2048)
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--blocks-alone", action="store_true", help="don't train the embedding and the head")
    parser.add_argument("--save-every", type=int, default=40960, help="tokens between checkpoints")
    options = parser.parse_args()
    if options.dense is not None and not (options.model and options.text and options.out):
        parser.error("a dense model needs --model, --text and --out beside it")
    if options.dense is None and not (options.plot and options.lines):
        parser.error("name the dense model, or --lines and --plot to draw what was measured")
    if options.lines is None:
        options.lines = options.out / "lines.jsonl"
    return options


def run(options: argparse.Namespace) -> None:
    points = sorted(count(point) for point in options.points.split(","))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    falls = (1 - DECAY) * points[-1]
    if options.schedule == "wsd" and any(falls < point < points[-1] for point in points):
        raise RecipeError(f"--points: {options.points}, but the learning rate falls from {falls:,.0f} tokens on")
    options.out.mkdir(parents=True, exist_ok=True)
    teacher = Checkpoint.open(options.dense)
    tokenizer = teacher.tokenizer()
    smalls, seen = {}, set()
    for pair in (*options.model, *options.untrained):
        name, folder = pair.split("=", 1)
        smalls[name] = Checkpoint.open(Path(folder))
        check_teacher(teacher, smalls[name], tokenizer)
        seen |= documents_behind(Path(folder))
    print(f"{len(seen)} documents of the runs that the models come from aren't measured on", flush=True)
    sources = dict(pair.split("=", 1) for pair in options.text)
    held_out = held_out_of(sources, tokenizer, options.length, options.held_out, seen)
    text: Any = training_text(
        sources, held_out, tokenizer, options.out, points[-1], options.length, int(teacher.config.vocab_size)
    )
    dense = teacher.load(getattr(torch, DTYPE))
    if options.cached_top_k:
        text = cached_text(
            text,
            dense,
            options.cache or options.out / "teacher-cache",
            {"teacher": teacher.digest, "dtype": DTYPE},
            batch_rows=max(1, options.micro_tokens // options.length),
            top_k=options.cached_top_k,
            say=lambda message: print(message, flush=True),
        )
    settings = {"learning_rate": options.learning_rate, "batch_tokens": options.batch_tokens}
    settings |= {"schedule": options.schedule, "top_k": options.cached_top_k, "dtype": DTYPE}
    settings |= {"embeddings": not options.blocks_alone}
    bench = Bench(options, Lines(options.lines, settings), dense, text, held_out)
    bench.start(smalls)
    for pair in options.untrained:
        del smalls[pair.split("=", 1)[0]]
    for seed in seeds[0 if options.short_first else 1 :]:
        for name, small in smalls.items():
            bench.training(name, small, "short", seed, [count(options.cheap)])
    for name, small in smalls.items():
        bench.training(name, small, "long", seeds[0], points)


def main() -> None:
    options = options_of()
    try:
        if options.dense is not None:
            run(options)
        if options.plot is not None:
            draw(options.lines, options.plot)
    except DarwinLMError as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
