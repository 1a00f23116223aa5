"""Modules of a dense model that copying depends on: each is removed alone, and with `--groups` each KV group too.

Each prints one JSON line: KL to the whole model on plain text (`kl`), and the loss and accuracy on the second
occurrence of repeated lists of random words, as in `darwinlm evaluate`. `--plot` draws one against the other.

    python benchmarks/looking_back_modules.py --text c4.jsonl.gz --lines modules.jsonl --plot docs/looking_back.svg
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from darwinlm.evaluation.divergence import DenseDistribution, token_losses
from darwinlm.evaluation.looking_back import word_lists
from darwinlm.evaluation.text import pack
from darwinlm.families.family import family_of
from darwinlm.models.opened import open_model
from darwinlm.runs.demo import demo_model
from darwinlm.streaming.decoder import Absent, Decoder

WORDS = 16

LEAST = 0.02
"""Smallest drawn loss in nats; points with less, or with a gain, are drawn here."""


class Measured:
    """Losses on text and lists, computed from any block onwards."""

    def __init__(self, decoder: Decoder, text: Tensor, lists: Tensor) -> None:
        self.decoder, self.text, self.lists = decoder, text, lists
        self.before = [self._hidden(tokens) for tokens in (text, lists)]
        self.reference = DenseDistribution(decoder.logits(text).flatten(0, 1))

    def _hidden(self, tokens: Tensor) -> list[Tensor]:
        """The residual stream before each block."""
        hidden = [self.decoder.embed(tokens)]
        for block, arguments in enumerate(self.decoder.block_arguments(tokens)):
            hidden.append(self.decoder.run_block(block, hidden[-1], arguments))
        return hidden

    def losses(self, block: int) -> dict[str, float]:
        """Figures of the model in its present state, which is unchanged before this block."""
        text, lists = (
            self.decoder.logits(tokens, hidden[block], block)
            for tokens, hidden in zip((self.text, self.lists), self.before, strict=True)
        )
        second, targets = lists[:, -WORDS:-1].flatten(0, 1), self.lists[:, 1 - WORDS :].flatten()
        return {
            "kl": round(float(self.reference.kl(text.flatten(0, 1)).mean()), 5),
            "copying_loss": round(float(token_losses(second, targets).mean()), 4),
            "copying": round(float((second.argmax(-1) == targets).double().mean()), 4),
        }


@contextmanager
def without(decoder: Decoder, block: int, kind: Any, group: int | None) -> Iterator[None]:
    """Remove a module, or the query heads of one KV group, within the context."""
    module = decoder.module(block, kind)
    if group is None:
        decoder.set_module(block, kind, Absent(kind))
        try:
            yield
        finally:
            decoder.set_module(block, kind, module)
        return
    config = decoder.model.config
    size = config.num_attention_heads // config.num_key_value_heads * config.head_dim

    def silence(_: Any, given: tuple[Tensor]) -> tuple[Tensor]:
        kept = given[0].clone()
        kept[..., group * size : (group + 1) * size] = 0
        return (kept,)

    hook = module.get_submodule(decoder.family.module(kind).output).register_forward_pre_hook(silence)
    try:
        yield
    finally:
        hook.remove()


def plot(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw loss of copying against KL on plain text, with a point for each part."""
    from matplotlib.figure import Figure

    whole = next(line for line in lines if line["block"] is None)
    parts = [line for line in lines if line["block"] is not None]
    figure = Figure(figsize=(8.0, 4.6), layout="constrained")
    axis = figure.subplots()
    kinds = (("attention", "#2b6cb0", "attention"), ("group", "#90bce8", "one KV group"), ("mlp", "#c05621", "MLP"))
    for kind, colour, label in kinds:
        those = [line for line in parts if kind == ("group" if line["group"] is not None else line["kind"])]
        more = [max(line["copying_loss"] - whole["copying_loss"], LEAST) for line in those]
        if those:
            axis.scatter([line["kl"] for line in those], more, s=20, color=colour, label=label)
    for line in sorted(parts, key=lambda line: line["copying_loss"])[-14:]:
        group = "" if line["group"] is None else f".{line['group']}"
        place = (line["kl"], line["copying_loss"] - whole["copying_loss"])
        axis.annotate(f"{line['kind']} {line['block']}{group}", place, (4, 3), textcoords="offset points", fontsize=7)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("KL on plain text with this part taken out, nats per token")
    axis.set_ylabel("loss added to copying, nats per token (0.02 or less at the bottom)")
    axis.grid(visible=True, linewidth=0.4)
    axis.legend()
    figure.savefig(path, metadata={"Date": None})


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True)
    parser.add_argument("--lines", type=Path, required=True)
    parser.add_argument("--model", default=None, help="model; default: the demo's")
    parser.add_argument("--tokens", type=int, default=1024, help="of plain text")
    parser.add_argument("--groups", action="store_true", help="also remove each KV group of the attentions")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    done = [json.loads(line) for line in options.lines.read_text().splitlines()] if options.lines.exists() else []
    opened = open_model(options.model or str(demo_model()), dtype="float32")
    decoder = Decoder(opened.model, family_of(opened.model.config))
    text = pack(options.text, opened.tokenizer, sequence_length=512, max_tokens=options.tokens)
    measured = Measured(decoder, text, word_lists(opened.tokenizer, WORDS).tokens)
    groups = (None, *range(opened.model.config.num_key_value_heads if options.groups else 0))
    kinds = [("attention", group) for group in groups] + [("mlp", None)]
    parts = [(block, kind, group) for block in range(len(decoder.blocks)) for kind, group in kinds]
    for block, kind, group in [(None, None, None), *parts]:
        name = {"block": block, "kind": kind, "group": group}
        if any(line.items() >= name.items() for line in done):
            continue
        if block is None:
            losses = measured.losses(0)
        else:
            with without(decoder, block, kind, group):
                losses = measured.losses(block)
        done.append(name | losses)
        with options.lines.open("a") as stream:
            stream.write(json.dumps(done[-1]) + "\n")
        print(json.dumps(done[-1]), flush=True)
    if options.plot:
        plot(done, options.plot)


if __name__ == "__main__":
    main()
