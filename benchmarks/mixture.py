"""A small mixture of experts, trained on real text, and the cost of removing or narrowing half of its experts.

Random experts are all alike, so methods that choose among experts need trained experts for a comparison.
`train` makes a small Mixtral (8 experts in every block, 2 of them for each token) and its tokenizer. A tenth of the
documents is held out and written beside the model as `held_out.jsonl`, for `compare`:

    python benchmarks/mixture.py train --text texts/ --out mixture --tokens 2500000
    python benchmarks/mixture.py compare mixture/model --text mixture/held_out.jsonl --out compared
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from bisect import bisect
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedTokenizerFast

from darwinlm.artifact import read_tensors
from darwinlm.comparison.entries import MethodRow, StepsRun
from darwinlm.comparison.importance import ExpertScores, expert_scores
from darwinlm.comparison.ranked import ExpertReader
from darwinlm.console import Reporter
from darwinlm.data import read_documents
from darwinlm.database.blocks import block_file
from darwinlm.database.store import DatabaseReader
from darwinlm.evaluation.quality import measure_quality
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from darwinlm.search.predict.module_losses import estimated_losses
from darwinlm.search.problem.budget import Budget
from darwinlm.search.problem.cost import parameter_costs
from darwinlm.search.problem.problem import Problem
from darwinlm.search.problem.space import Allocation, SearchSpace
from darwinlm.search.propose.start import knapsack_start
from darwinlm.stages.database import PruningDatabase, database_stage, stream_of
from darwinlm.stages.refit import refit_stage
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import text_stage
from darwinlm.surgery.stitch import stitch

VOCABULARY, LENGTH, HELD_OUT = 2048, 256, 0.1
CHARACTERS = 3.2
"""Approximate characters per token."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "output_router_logits": True,
    "router_aux_loss_coef": 0.01,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "sliding_window": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def split(source: str) -> tuple[list[str], list[str]]:
    """Documents to train on and held-out ones, by a hash of each."""
    parts: tuple[list[str], list[str]] = ([], [])
    for document in read_documents(source):
        place = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
        parts[place < HELD_OUT].append(document)
    return parts


def make_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE tokenizer of these documents, which begins each text with its first token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents[:: max(1, len(documents) // 500)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=1024
    )


def sequences(documents: list[str], tokenizer: Any, seed: int) -> Tensor:
    """Packed documents in a random order, [n, LENGTH]; each row begins with the first token."""
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    stream = []
    for index in order:
        stream += [*tokenizer(documents[index], add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    rows = torch.tensor(stream[: len(stream) // (LENGTH - 1) * (LENGTH - 1)]).view(-1, LENGTH - 1)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    return torch.cat([torch.full((len(rows), 1), tokenizer.bos_token_id), rows], dim=1)


def batches(rows: Tensor, count: int, seed: int) -> Iterator[Tensor]:
    """Endless batches of rows, in a new order in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for batch in torch.randperm(len(rows), generator=generator).split(count):
            if len(batch) == count:
                yield rows[batch]


def rate(done: float, peak: float, warm: float = 0.03, fall: float = 0.5) -> float:
    """Learning rate with a short warm-up, a plateau, and a decay to zero over the last part."""
    return peak * min(1.0, done / warm, (1 - done) / fall)


def train(options: argparse.Namespace) -> None:
    """Train the mixture. Prints a JSON line every 50 steps, and writes the model at the end."""
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    seen, held_out = split(options.text)
    with (options.out / "held_out.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": document}) + "\n" for document in held_out)
    tokenizer = make_tokenizer(seen)
    random.Random(options.seed).shuffle(seen)
    ends = list(accumulate(map(len, seen)))
    seen = seen[: bisect(ends, CHARACTERS * options.tokens) + 1]
    held_out_rows = held_out[: len(held_out) // 4]
    rows, unseen = (sequences(documents, tokenizer, options.seed) for documents in (seen, held_out_rows))
    unseen = unseen[:32]
    model = MixtralForCausalLM(MixtralConfig(**SIZES))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95), fused=True)
    steps = math.ceil(options.tokens / (options.rows * LENGTH))
    begun, losses = time.monotonic(), []
    for step, batch in zip(range(steps), batches(rows, options.rows, options.seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate((step + 1) / (steps + 1), options.rate)
        output = model(input_ids=batch, labels=batch, use_cache=False)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(output.loss.detach() - SIZES["router_aux_loss_coef"] * output.aux_loss.detach()))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            with torch.no_grad():
                model.eval()
                held = [float(model(input_ids=b, labels=b, output_router_logits=False).loss) for b in unseen.split(8)]
                model.train()
            line = {
                "step": step + 1,
                "of": steps,
                "loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
                "held_out": round(sum(held) / len(held), 4),
                "balance": round(float(output.aux_loss.detach()), 4),
                "seconds": round(time.monotonic() - begun),
            }
            print(json.dumps(line), flush=True)
            with (options.out / "train.jsonl").open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
        if (step + 1) % 100 == 0 or step + 1 == steps:
            partial = options.out / "partial"
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    (options.out / "partial").replace(options.out / "model")


FORBIDDEN = 1e3
"""Loss of levels that a kind of cut excludes."""
ORDERS = ("frequency", "reap", "second moment", "gradients", "next choice")


def expert_orders(database: PruningDatabase, scores: dict[int, ExpertScores]) -> dict[str, dict[int, Tensor]]:
    """Scores of all experts, by order and block; the experts with the highest scores are removed last."""
    orders: dict[str, dict[int, Tensor]] = {name: {} for name in ORDERS}
    for block, own in scores.items():
        stored = read_tensors(database.stage.folder / block_file(block))
        order = stored["mlp.order"].long()
        places = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))
        for name, score in zip(
            ORDERS,
            (own.asked, own.added, stored["mlp.1.errors"][:, 0], stored["mlp.1.losses"][:, 0], -places),
            strict=True,
        ):
            orders[name][block] = score
    return orders


def allocations(reader: DatabaseReader, keep: float) -> tuple[dict[str, Allocation], int]:
    """Equal cuts, and the smallest sum of estimated losses, each with at most the parameters of narrowing."""
    space = SearchSpace(reader.modules)
    cost = parameter_costs(space)

    def equal(experts: float, width: float) -> Allocation:
        chosen = []
        for module in space.modules:
            full = module.levels[-1]
            wanted = (round(experts * full.experts), round(width * full.width))
            at = [place for place, level in enumerate(module.levels) if (level.experts, level.width) == wanted]
            chosen.append(at[0] if full.experts else len(module.levels) - 1)
        return tuple(chosen)

    rows = {"narrow": equal(1, keep), "drop": equal(keep, 1)}
    limit = cost.of(rows["narrow"])
    budget = Budget(int(0.98 * limit), limit)
    losses = estimated_losses(space, reader)
    assert losses is not None
    for name, allowed in {
        "narrow, unequal": lambda level, full: level.experts == full.experts,
        "drop, unequal": lambda level, full: level.width == full.width,
        "both, unequal": lambda level, full: level.width > 0,
    }.items():
        curves = [
            [
                loss if allowed(level, module.levels[-1]) else FORBIDDEN
                for level, loss in zip(module.levels, row, strict=True)
            ]
            for module, row in zip(space.modules, losses, strict=True)
        ]
        rows[name] = knapsack_start(Problem(space, cost, budget), curves)
    return rows, limit


def compare(options: argparse.Namespace) -> None:
    """Cut the mixture in several ways to one size. Prints a JSON line for each, with and without a refit."""
    assignments = [
        f"text.sequence_length={LENGTH}",
        f"search.seed={options.seed}",
        *(options.set or ()),
    ]
    given = {"model": str(options.model), "text.source": str(options.text), "budget.keep": options.keep}
    run = Run(load_recipe(None, assignments, given), options.out, Reporter(quiet=True))
    texts = text_stage(run)
    database = database_stage(run, texts)
    reader, units = database.reader, run.recipe.units
    orders = expert_orders(database, expert_scores(stream_of(run, texts["calibration"])))
    rows, limit = allocations(reader, options.keep)
    cuts: dict[str, tuple[DatabaseReader, Allocation]] = {name: (reader, rows[name]) for name in rows if name != "drop"}
    cuts |= {f"drop: {name}": (ExpertReader(run.checkpoint, units, own), rows["drop"]) for name, own in orders.items()}
    dense = run.checkpoint.load(torch.float32)
    for name, (source, allocation) in cuts.items():
        if options.only and not any(part in name for part in options.only):
            continue
        place = name.replace(": ", "_").replace(", ", "_").replace(" ", "_")
        with run.stage(f"method_{place}", {"allocation": allocation, "seed": options.seed}, name) as (stage, work):
            if work:
                save_model(stitch(source, allocation), stage.folder / "model")
        stitched = Stitched(stage, Checkpoint.open(stage.folder / "model"))
        refitted = refit_stage(StepsRun(run, MethodRow(place, ("refit",))), texts, stitched)
        assert refitted is not None
        models = {"kl": stitched.checkpoint.load(torch.float32), "kl refitted": refitted.model(stitched.checkpoint)}
        qualities = measure_quality(dense, models, texts["evaluation"].tokens, batch_tokens=4096)
        parameters = sum(level.params for level in SearchSpace(source.modules).levels(allocation))
        line = {
            "benchmark": "mixture",
            "cut": name,
            "seed": options.seed,
            "keep": options.keep,
            "block_params": parameters,
            "limit": limit,
            **{key: round(own.kl, 4) for key, own in qualities.items()},
            "perplexity refitted": round(qualities["kl refitted"].perplexity, 2),
            "kept": [
                [level.experts, level.width]
                for level in SearchSpace(source.modules).levels(allocation)
                if level.experts
            ],
        }
        with (options.out / "compare.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="make the mixture")
    training.add_argument("--text", required=True, help="file or folder of documents")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--tokens", type=int, default=2_500_000)
    training.add_argument("--rows", type=int, default=8, help="sequences of 256 tokens in a step")
    training.add_argument("--rate", type=float, default=2e-3)
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train)
    comparing = commands.add_parser("compare", help="cut it in several ways")
    comparing.add_argument("model", type=Path, help="a mixture, such as the folder `model` that train makes")
    comparing.add_argument("--text", required=True, help="documents outside the mixture's training text")
    comparing.add_argument("--out", type=Path, required=True)
    comparing.add_argument("--keep", type=float, default=0.5, help="share of the experts' parameters")
    comparing.add_argument("--seed", type=int, default=0, help="seed of the split of the text")
    comparing.add_argument("--only", action="append", help="only cuts whose name contains this; default: all")
    comparing.add_argument("--set", action="append", metavar="FIELD=VALUE", help="of the recipe")
    comparing.set_defaults(run=compare)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
