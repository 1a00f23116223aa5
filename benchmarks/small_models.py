"""Small models of several families, trained on real text, and one whole prune of each.

Random weights have no outlier channels, no grown norms and no structure in the residual stream. Where no package ships
a real model of a style (norms, gates, token mixers), `train` makes a small one with its tokenizer. A tenth of the
documents is held out and written beside the model as `held_out.jsonl`, for `prune`:

    python benchmarks/small_models.py train nemotron --text texts/ --out nemotron
    python benchmarks/small_models.py prune nemotron/model --text nemotron/held_out.jsonl --out nemotron/pruned
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
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from darwinlm.comparison.compare import ComparisonRequest, compare_methods
from darwinlm.comparison.entries import HELD_OUT, parse_methods
from darwinlm.data import read_documents
from darwinlm.recipe import load_recipe
from darwinlm.runtime.console import Reporter

VOCABULARY, LENGTH, HELD_OUT_SHARE = 2048, 256, 0.1
CHARACTERS = 3.2
"""Approximate characters per token."""
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
MIXERS = ["linear_attention", "full_attention"] * 2
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 128},
    "olmo2": {},
    "exaone4": {"sliding_window": 128, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "nemotron": {"intermediate_size": 576},
    "qwen3_5_text": {
        "layer_types": MIXERS,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    "lfm2": {
        "layer_types": [{"linear_attention": "conv"}.get(name, name) for name in MIXERS],
        "block_auto_adjust_ff_dim": False,
    },
    "mixtral": {
        "intermediate_size": 256,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "output_router_logits": True,
        "router_aux_loss_coef": 0.01,
        "sliding_window": None,
    },
}
"""Where a family's model differs from the sizes above."""
METHODS = "uniform,uniform+refit,darwinlm,darwinlm+refit"


def split(source: str) -> tuple[list[str], list[str]]:
    """Documents to train on and held-out ones, by a hash of each."""
    parts: tuple[list[str], list[str]] = ([], [])
    for document in read_documents(source):
        place = int.from_bytes(hashlib.sha256(document.encode()).digest()[:8], "big") / 2**64
        parts[place < HELD_OUT_SHARE].append(document)
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
    """Train a model. Prints a JSON line every 50 steps, and writes the model at the end."""
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
    config = AutoConfig.for_model(options.family, **{**SIZES, **FAMILIES[options.family]})
    model = AutoModelForCausalLM.from_config(config)
    balanced = {"output_router_logits": False} if hasattr(config, "router_aux_loss_coef") else {}
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.95), fused=True)
    steps = math.ceil(options.tokens / (options.rows * LENGTH))
    begun, losses = time.monotonic(), []
    for step, batch in zip(range(steps), batches(rows, options.rows, options.seed), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate((step + 1) / (steps + 1), options.rate)
        with torch.autocast("cpu", torch.bfloat16, enabled=options.bfloat16):
            output = model(input_ids=batch, labels=batch, use_cache=False)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        balance = float(output.aux_loss.detach()) if balanced else 0.0
        losses.append(float(output.loss.detach()) - balance * getattr(config, "router_aux_loss_coef", 0.0))
        if (step + 1) % 50 == 0 or step + 1 == steps:
            with torch.no_grad():
                model.eval()
                held = [float(model(input_ids=b, labels=b, **balanced).loss) for b in unseen.split(8)]
                model.train()
            line = {
                "family": options.family,
                "parameters": sum(p.numel() for p in model.parameters()),
                "step": step + 1,
                "of": steps,
                "loss": round(sum(losses[-50:]) / len(losses[-50:]), 4),
                "held_out": round(sum(held) / len(held), 4),
                **({"balance": round(balance, 4)} if balanced else {}),
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


def prune(options: argparse.Namespace) -> None:
    """Prune a model uniformly and by the search, with and without a refit. Prints a JSON line for each."""
    given = {"model": str(options.model), "text.source": str(options.text), "budget.keep": options.keep}
    seeds = [f"text.seed={options.seed}", f"search.seed={options.seed}"]
    assignments = [f"text.sequence_length={LENGTH}", *seeds, *(options.set or ())]
    recipe = load_recipe(None, assignments, given)
    rows = parse_methods(options.methods, recipe)
    record = compare_methods(recipe, options.out, Reporter(quiet=True), ComparisonRequest(rows))
    for row in record.rows:
        line = {
            "benchmark": "small_models",
            "model": str(options.model),
            "method": row.method,
            "keep": options.keep,
            "seed": options.seed,
            "block_params": row.block_params,
            "kl": round(row.texts[HELD_OUT].kl, 4),
            "perplexity": round(row.texts[HELD_OUT].perplexity, 2),
            "seconds": None if row.seconds is None else round(row.seconds),
            "record": row.record,
        }
        print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="make a model")
    training.add_argument("family", choices=FAMILIES)
    training.add_argument("--text", required=True, help="file or folder of documents")
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("--tokens", type=int, default=1_200_000)
    training.add_argument("--rows", type=int, default=4, help="sequences of 256 tokens in a step")
    training.add_argument("--rate", type=float, default=2e-3)
    training.add_argument("--bfloat16", action="store_true", help="twice as fast on processors with AVX-512 BF16")
    training.add_argument("--seed", type=int, default=0)
    training.set_defaults(run=train)
    pruning = commands.add_parser("prune", help="cut it, uniformly and by the search")
    pruning.add_argument("model", type=Path, help="a folder such as `model` that train makes, or a GGUF file")
    pruning.add_argument("--text", required=True, help="documents outside the model's training text")
    pruning.add_argument("--out", type=Path, required=True)
    pruning.add_argument("--keep", type=float, default=0.5, help="share of the block parameters")
    pruning.add_argument("--methods", default=METHODS)
    pruning.add_argument("--seed", type=int, default=0, help="seed of the split of the text and of the search")
    pruning.add_argument("--set", action="append", metavar="FIELD=VALUE", help="of the recipe")
    pruning.set_defaults(run=prune)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
