"""Half of the experts of a trained mixture, chosen by their loss after a refit instead of before it.

The output projections of the kept experts are fitted towards the dense stream on part of the calibration text. The loss
is measured on another part: `kl`, of the whole model with dense later blocks; `lens`, KL if the error were added to the
stream after the last block; `squared`, error of the block's output. `removal` removes experts one at a time from
the dense model (a nested order). `swaps` cuts the blocks from first to last. It starts with the best of the sets by
frequency, REAP and our order, and exchanges two experts while that helps.

    python benchmarks/expert_removal.py mixture/model --text mixture/held_out.jsonl --out compared --choice swaps
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import product

import torch
from torch import Tensor

from darwinlm.calibration.expert_order import chosen_weights
from darwinlm.calibration.experts import Routing, expert_inputs, watch_experts
from darwinlm.comparison.importance import expert_scores
from darwinlm.comparison.ranked import ExpertReader
from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.families.decoder import Decoder
from darwinlm.run import Run
from darwinlm.stages.database import database_stage, stream_of
from darwinlm.stages.text import text_stage
from mixture import allocations, expert_orders, measured, options_parser, run_of

FITTED, JUDGED = 32, 16  # rows of text
RIDGE, STRENGTH, ROUNDS = 0.1, 0.75, 2  # damping, applied share of a change, fits of each expert

Kept = tuple[int, ...]
Loss = Callable[[Kept], float]
State = tuple[
    Tensor, Tensor
]  # of a block on a text: input of its mixture and stream before its output is added, [n, m]


class Blocks:
    """The small Mixtral, whose blocks are cut one by one; streams are [b, t, m], for fits and for losses."""

    def __init__(self, run: Run, tokens: Tensor) -> None:
        self.decoder = Decoder(run.checkpoint.load(torch.float32).eval().requires_grad_(False), run.checkpoint.family)
        self.names, self.k = run.checkpoint.family.mlp.experts, run.checkpoint.config.num_experts_per_tok
        rows = tokens[:: max(1, len(tokens) // (FITTED + JUDGED))]
        self.texts = (rows[:FITTED], rows[FITTED : FITTED + JUDGED])
        self.p = DenseDistribution(self.decoder.logits(self.texts[1]).flatten(0, 1))
        self.dense = [[self.decoder.embed(text) for text in self.texts]]
        for block in range(len(self.decoder.blocks)):
            self.dense.append(self.run(block, self.dense[-1])[0])

    def run(self, block: int, streams: list[Tensor]) -> tuple[list[Tensor], list[State]]:
        """Streams after a dense block, and its states."""
        after, states = [], []
        for text, stream in zip(self.texts, streams, strict=True):
            calls: list[tuple[Routing, Tensor]] = []
            with watch_experts(self.decoder.blocks[block].mlp.experts, lambda *call, to=calls: to.append(call)):
                after.append(self.decoder.run_block(block, stream, self.decoder.block_arguments(text)[block]))
            states.append((calls[0][0].hidden, after[-1].flatten(0, 1) - calls[0][1]))
        return after, states

    def cut(self, block: int, states: list[State], kept: Kept) -> list[Tensor]:
        """Streams after a block with only some experts, refitted."""
        mixture, router = self.decoder.blocks[block].mlp.experts, self.decoder.blocks[block].mlp.gate.weight
        streams, inputs = [], []
        for hidden, before in states:
            logits = hidden @ router.T
            alive = torch.isin(torch.arange(len(router)), torch.tensor(kept))
            chosen = logits.masked_fill(~alive, -torch.inf).topk(self.k).indices
            routing = Routing(hidden, chosen, chosen_weights(logits, chosen, alive, normalised=True))
            inputs.append({expert: expert_inputs(mixture, self.names, routing, expert) for expert in kept})
            streams.append(before.clone())
            for expert, (token, x) in inputs[-1].items():
                streams[-1].index_add_(0, token, x @ mixture.down_proj[expert].T)
        missing = self.dense[block + 1][0].flatten(0, 1) - streams[0]
        for expert in kept * ROUNDS:
            token, x = inputs[0][expert]
            H = x.T @ x
            H.diagonal().add_(RIDGE * H.diagonal().mean())
            change = torch.linalg.solve(H, x.T @ missing[token])
            missing.index_add_(0, token, x @ change, alpha=-1)
            for stream, own in zip(streams, inputs, strict=True):
                stream.index_add_(0, own[expert][0], own[expert][1] @ change, alpha=STRENGTH)
        return [stream.view(*text.shape, -1) for stream, text in zip(streams, self.texts, strict=True)]

    def loss(self, block: int, stream: Tensor, by: str) -> float:
        """Loss of a stream after a block on the second text."""
        error = stream - self.dense[block + 1][1]
        if by == "squared":
            return float(error.square().sum(-1).mean())
        first, hidden = (len(self.decoder.blocks), self.dense[-1][1] + error) if by == "lens" else (block + 1, stream)
        return float(self.p.kl(self.decoder.logits(self.texts[1], hidden, first).flatten(0, 1)).mean())


def removal(loss: Loss, kept: Kept, wanted: int) -> Kept:
    """Remove experts one at a time, each time the one without which the loss is lowest."""
    while len(kept) > wanted:
        kept = min((tuple(other for other in kept if other != expert) for expert in kept), key=loss)
    return kept


def swaps(loss: Loss, kept: Kept, experts: int) -> Kept:
    """Exchange two experts while that lowers the loss."""
    pairs = product(kept, set(range(experts)).difference(kept))
    best = min((tuple(sorted({*kept, new} - {old})) for old, new in pairs), key=loss)
    return swaps(loss, best, experts) if loss(best) < loss(kept) else kept


@torch.no_grad()
def main() -> None:
    parser = options_parser(__doc__)
    parser.add_argument("--by", choices=["kl", "lens", "squared"], default="kl")
    parser.add_argument("--choice", choices=["removal", "swaps"], default="removal")
    options = parser.parse_args()
    run = run_of(options)
    texts = text_stage(run)
    tokens, database = texts["calibration"].tokens, database_stage(run, texts)
    orders, blocks = expert_orders(database, expert_scores(stream_of(run, tokens))), Blocks(run, tokens)
    streams, scores, count = blocks.dense[0], {}, len(orders["reap"][0])
    for block in orders["reap"]:
        streams, states = blocks.run(block, streams)
        loss = cache(lambda kept, at=block, states=states: blocks.loss(at, blocks.cut(at, states, kept)[1], options.by))
        if options.choice == "removal":
            kept = removal(loss, tuple(range(count)), count // 2)
        else:
            own = [orders[name][block].topk(count // 2).indices for name in ("frequency", "reap", "second moment")]
            kept = swaps(loss, min((tuple(score.sort().values.tolist()) for score in own), key=loss), count)
            streams = blocks.cut(block, states, kept)
        scores[block] = torch.zeros(count).index_fill_(0, torch.tensor(kept), 1.0)
        print(block, kept, round(loss(kept), 4), f"{loss.cache_info().misses} sets", flush=True)
    cut = f"{options.choice} by {options.by}"
    source = ExpertReader(run.checkpoint, run.recipe.units, scores)
    line = measured(run, texts, cut, source, allocations(database.reader, options.keep)[0]["drop"])
    print(json.dumps({"benchmark": "expert_removal", "cut": cut, "seed": options.seed, **line}))


if __name__ == "__main__":
    main()
