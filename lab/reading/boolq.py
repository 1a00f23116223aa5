"""Rankings from BoolQ: each question has one passage that answers it, among others that share its words.

The other passages are those of highest TF-IDF similarity with the question, without passages of the same article:
these are often as relevant as the question's own.

    python -m lab.reading.boolq --data BOOLQ --out pairs.jsonl

writes pairs for `darwinlm prune --text` from the part for training: each question with its passage, and a similar one.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

TRAINING, HELD_OUT = "train", "validation"


class Ranking(NamedTuple):
    """A question, the passage that answers it, and similar passages that don't, the most similar one first."""

    question: str
    passage: str
    others: tuple[str, ...]

    @property
    def candidates(self) -> list[str]:
        """All passages, the right one first."""
        return [self.passage, *self.others]


def read_questions(data: Path, split: str) -> list[tuple[str, str]]:
    """Questions and passages of `train.jsonl.gz` or `validation.jsonl.gz` in a folder, as they are in the file."""
    with gzip.open(data / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    return [(f"{record['question'].strip()}?", record["passage"].strip()) for record in records]


def rankings(data: Path, split: str, *, questions: int, others: int, pool: int, seed: int = 0) -> list[Ranking]:
    """Draw questions with different passages, and rank a pool of passages for each.

    Args:
        data: Folder of the files.
        split: `TRAINING` or `HELD_OUT`.
        questions: How many questions are drawn.
        others: Wrong passages per question.
        pool: Passages from which these come; those of the drawn questions are among them.
        seed: Seed of the drawing.
    """
    pairs = read_questions(data, split)
    random.Random(seed).shuffle(pairs)
    first = {passage: question for question, passage in reversed(pairs)}
    drawn = [(first[passage], passage) for passage in dict.fromkeys(passage for _, passage in pairs)][:pool]
    if len(drawn) < max(questions, others + 1):
        raise SystemExit(f"{data} has {len(drawn)} passages for {split}: ask for fewer questions or others")
    passages = [passage for _, passage in drawn]
    order = np.argsort(-word_similarities([question for question, _ in drawn[:questions]], passages), kind="stable")
    found = []
    for (question, passage), places in zip(drawn[:questions], order, strict=True):
        wrong = (passages[place] for place in places if _article(passages[place]) != _article(passage))
        found.append(Ranking(question, passage, tuple(other for other, _ in zip(wrong, range(others), strict=False))))
    return found


def word_similarities(questions: Sequence[str], passages: Sequence[str]) -> NDArray[np.float64]:
    """Cosine similarities [question, passage] of TF-IDF vectors."""
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    weights = words.fit_transform(passages)
    similar: NDArray[np.float64] = (words.transform(questions) @ weights.T).toarray()
    return similar


def _article(passage: str) -> str:
    """Title of a passage's article, which stands in front of it."""
    return passage.partition(" -- ")[0].lower()


def write_pairs(data: Path, file: Path, *, questions: int, seed: int) -> None:
    """Write a line of JSON for each pair: `query`, `document`, and the `label` 1 for the passage that answers, or 0."""
    drawn = rankings(data, TRAINING, questions=questions, others=1, pool=8000, seed=seed)
    pairs = [
        {"query": one.question, "document": passage, "label": int(passage == one.passage)}
        for one in drawn
        for passage in one.candidates
    ]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with BoolQ's train.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    write_pairs(given.data, given.out, questions=given.questions, seed=given.seed)


if __name__ == "__main__":
    main()
