"""Measure how well models rank held-out passages: nDCG@10 and MRR@10, as sentence-transformers' evaluator defines them.

    python -m lab.reading.quality MODEL --data BOOLQ --out results/half.json
    python -m lab.reading.quality --compare results/dense.json results/half.json

Figures are kept for every question, so that models can be compared in pairs: most of the error is the questions',
which two models share.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

from lab.reading.boolq import HELD_OUT, Ranking, rankings, word_similarities

NDCG, MRR = "nDCG@10", "MRR@10"


class Mean(NamedTuple):
    """A mean over questions and its standard error."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.error:.3f}"


def mean_of(figures: Sequence[float]) -> Mean:
    """Mean and standard error of figures of many questions."""
    values = np.asarray(figures, dtype=float)
    return Mean(float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))


def ratio_of(figures: Sequence[float], dense: Sequence[float]) -> Mean:
    """A model's mean as a share of the dense model's, with the standard error of their paired difference."""
    if len(figures) != len(dense):
        raise SystemExit(f"{len(figures)} questions for one model and {len(dense)} for the other: measure both alike")
    base = mean_of(dense).mean
    paired = mean_of([one - other for one, other in zip(figures, dense, strict=True)])
    return Mean(1 + paired.mean / base, paired.error / base)


def per_question(scores: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """Both figures for each question; the first candidate is the right one, against which equal scores count."""
    evaluator = CrossEncoderRerankingEvaluator(samples=[], at_k=10, write_csv=False)
    found: dict[str, list[float]] = {NDCG: [], MRR: []}
    for row in scores:
        right = [1] + [0] * (len(row) - 1)
        reciprocal, gain, _ = evaluator.compute_metrics(right, np.asarray(row))
        found[NDCG].append(float(gain))
        found[MRR].append(float(reciprocal))
    return found


def measure(folder: Path, asked: Sequence[Ranking], dtype: torch.dtype = torch.bfloat16) -> dict[str, list[float]]:
    """Both figures of a model for each question."""
    from lab.reading.readers import open_reader

    return per_question(open_reader(folder, dtype).scores(asked))


def by_words(asked: Sequence[Ranking]) -> dict[str, list[float]]:
    """Both figures of TF-IDF similarity, by which the wrong candidates were chosen."""
    return per_question([word_similarities([one.question], one.candidates)[0].tolist() for one in asked])


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", nargs="?", help="folder of sentence-transformers, or 'words' for TF-IDF")
    parser.add_argument("--data", type=Path, help="folder with BoolQ's validation.jsonl.gz")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--candidates", type=int, default=20)
    parser.add_argument("--pool", type=int, default=3000, help="passages among which the similar ones are found")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--compare", type=Path, nargs="+", help="results; the first one is the dense model's")
    given = parser.parse_args()
    if given.compare:
        show(given.compare)
        return
    if not (given.model and given.data and given.out):
        parser.error("name a model, --data and --out, or --compare")
    asked = rankings(given.data, HELD_OUT, questions=given.questions, others=given.candidates - 1, pool=given.pool)
    found = (
        by_words(asked) if given.model == "words" else measure(Path(given.model), asked, getattr(torch, given.dtype))
    )
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found))
    show([given.out])


def show(files: Sequence[Path]) -> None:
    """Print a line for each result, with its share of the first one's nDCG."""
    read = [json.loads(file.read_text()) for file in files]
    for file, found in zip(files, read, strict=True):
        share = ratio_of(found[NDCG], read[0][NDCG])
        print(f"{file.stem}: {NDCG} {mean_of(found[NDCG])}, {MRR} {mean_of(found[MRR])}, {share} of {files[0].stem}")


if __name__ == "__main__":
    main()
