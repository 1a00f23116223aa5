"""Documents per second of readers in PyTorch and llama.cpp, all models in turns.

    python -m lab.reading.speed dense=DENSE half=RUN/model --data BOOLQ --tokenizer TOKENIZER --out speed.json
    python -m lab.reading.speed dense=dense.gguf half=half.gguf --data BOOLQ --tokenizer TOKENIZER --out gguf.json

GGUF files are those of `darwinlm export`.

Time is that of the processor, of one thread, so that a busy machine counts little: the figures are documents per second
of one core. The first model is the one that the others are compared with.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from lab.reading.boolq import HELD_OUT, read_questions
from lab.reading.readers import open_reader

Read = Callable[[list[list[int]]], object]
"""Reads documents, given as tokens."""


def in_pytorch(folder: Path) -> Read:
    """Reads documents of equal length with a folder of sentence-transformers in bfloat16, head or pooling included."""
    model = open_reader(folder, torch.bfloat16).model.eval()

    def read(documents: list[list[int]]) -> object:
        tokens = torch.tensor(documents)
        with torch.inference_mode():
            return model({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})

    return read


def in_llama_cpp(path: Path) -> Read:
    """Reads documents with a GGUF file."""
    from darwinlm.formats.gguf.pooling_llama_cpp import PoolingLlamaCpp

    return PoolingLlamaCpp(str(path), threads=1).outputs


def documents_of(data: Path, tokenizer: Path, *, number: int, tokens: int) -> list[list[int]]:
    """Documents of exactly so many tokens, from joined passages."""
    from tokenizers import Tokenizer

    text = "\n\n".join(passage for _, passage in read_questions(data, HELD_OUT)[: number * 4])
    splitter = Tokenizer.from_file(str(tokenizer))
    splitter.no_truncation()  # a reader's tokenizer cuts what is longer than its inputs
    ids = splitter.encode(text).ids
    assert len(ids) >= number * tokens
    return [ids[start : start + tokens] for start in range(0, number * tokens, tokens)]


def timed(readers: dict[str, Read], documents: list[list[int]], rounds: int) -> dict[str, list[float]]:
    """Documents per processor second of each reader in each round, after one that isn't counted."""
    found: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, read in readers.items():
            start = time.process_time()
            read(documents)
            if number:
                found[name].append(len(documents) / (time.process_time() - start))
    return found


def show(found: dict[str, dict[str, list[float]]]) -> None:
    """Print medians, and of the ratios to the first model, round by round, also the range."""
    for batch, rates in found.items():
        first = next(iter(rates.values()))
        for name, rate in rates.items():
            ratios = sorted(one / other for one, other in zip(rate, first, strict=True))
            times = f"{statistics.median(ratios):.2f} times the first ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{batch}, {name}: {statistics.median(rate):.2f} documents/s, {times}")


def measure(models: Sequence[tuple[str, Path]], given: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Rates by batch and model."""
    torch.set_num_threads(1)
    found = {}
    for size in given.batches:
        documents = documents_of(given.data, given.tokenizer, number=size, tokens=given.tokens)
        readers = {name: in_llama_cpp(path) if path.suffix == ".gguf" else in_pytorch(path) for name, path in models}
        found[f"batch {size}"] = timed(readers, documents, given.rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("models", nargs="+", metavar="NAME=PATH", help="folders, or GGUF files")
    parser.add_argument("--data", type=Path, required=True, help="folder with BoolQ's validation.jsonl.gz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--tokens", type=int, default=256, help="length of a document")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    models = [(name, Path(path)) for name, _, path in (model.partition("=") for model in given.models)]
    found = measure(models, given)
    given.out.write_text(json.dumps(found))
    show(found)


if __name__ == "__main__":
    main()
