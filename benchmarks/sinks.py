"""Attention sinks: first tokens of a sequence that lose their sink in a smaller model, and the cost of this loss.

In many models a sequence's first token has a residual stream with a far larger norm than any other, and all later
tokens attend to it. This depends on the first token alone, so every distinct token of the text is run as a sequence of
length one. Its sink counts as lost if the largest norm of the residual stream between two blocks is less than a third
of the dense model's. Tokens without a sink in the dense model are left out.

Prints one JSON line for each model: distinct tokens with a lost sink, their share of the text's tokens, the most
frequent ones, and whether the tokenizer's bos token is among them. The share is the probability that a sequence with a
random start in the text lacks its sink. The line also holds KL to the dense model on sequences of `--length` tokens,
separately for those with and without a sink.

    python benchmarks/sinks.py DENSE runs/half/model runs/uniform/model --text texts/web.jsonl --tokens 16384
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.evaluation.text import pack
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.models.opened import open_model
from darwinlm.runtime.compute import fast_dtype

AT_ONCE = 512
"""Number of one-token sequences in a pass."""

LOST = 1 / 3
"""Share of the dense model's norm below which a sink counts as lost."""

LONG = 10.0
"""Smallest ratio of a sink's norm to the norm of the text's other tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--text", required=True)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of text for KL")
    parser.add_argument("--length", type=int, default=512)
    options = parser.parse_args()

    dtype = fast_dtype(torch.device("cpu"))
    dense = open_model(options.dense, dtype=dtype)
    text = pack(options.text, dense.tokenizer, sequence_length=options.length, max_tokens=1 << 40)
    counts = Counter(text.flatten().tolist())
    bos = dense.tokenizer.bos_token_id
    ids = torch.tensor(sorted({*counts, *([] if bos is None else [bos])}))
    rows = text[: max(1, options.tokens // options.length)]
    wanted = longest(dense.model, ids)
    usual = longest(dense.model, rows[:1], skip=1).median()
    has_one = wanted > LONG * usual
    reference = [DenseDistribution(logits(dense.model, row)) for row in rows]
    for name in options.models:
        model = Checkpoint.open(Path(name)).load(dtype)
        lost = has_one & (longest(model, ids) < LOST * wanted)
        gone = {int(token) for token in ids[lost]}
        kl = torch.stack([each.kl(logits(model, row)).mean() for each, row in zip(reference, rows, strict=True)])
        without = torch.tensor([int(row[0]) in gone for row in rows])
        line = {
            "model": name,
            "tokens": int(has_one.sum()),
            "lost": len(gone),
            "lost_share": sum(counts[token] for token in gone) / sum(counts.values()),
            "bos": None if bos is None else bos in gone,
            "most_frequent": [dense.tokenizer.decode([t]) for t in sorted(gone, key=lambda t: -counts[t])[:12]],
            "kl": float(kl.mean()),
            "rows": len(rows),
            "rows_without": int(without.sum()),
            "kl_with": float(kl[~without].mean()) if (~without).any() else None,
            "kl_without": float(kl[without].mean()) if without.any() else None,
        }
        print(json.dumps(line, ensure_ascii=False))
        sys.stdout.flush()


@torch.no_grad()
def longest(model: Any, tokens: Tensor, skip: int = 0) -> Tensor:
    """Largest norm of the residual stream between two blocks.

    Args:
        model: Model of transformers.
        tokens: Tokens [n], each a separate sequence; or sequences [n, t].
        skip: Number of ignored tokens at the start of every sequence.

    Returns:
        Norm at each token that counts, float32.
    """
    norms = []
    for batch in torch.split(tokens.view(len(tokens), -1), AT_ONCE):
        states = model(input_ids=batch, output_hidden_states=True, use_cache=False, logits_to_keep=1).hidden_states
        lengths = torch.stack([state[:, skip:].float().norm(dim=-1) for state in states[:-1]])
        norms.append(lengths.amax(0).flatten())
    return torch.cat(norms)


@torch.no_grad()
def logits(model: Any, row: Tensor) -> Tensor:
    """Logits [t, v] of tokens [t]."""
    return model(input_ids=row[None], use_cache=False).logits[0]


if __name__ == "__main__":
    main()
