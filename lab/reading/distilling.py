"""Distil the dense reader into smaller ones with sentence-transformers' trainers, on the same texts in the same order.

    python -m lab.reading.distilling labels DENSE --data BOOLQ --out runs/reading/labels.json
    python -m lab.reading.distilling train SMALLER --labels runs/reading/labels.json --out SMALLER-distilled

The first command keeps what the dense model gives: logits of pairs, or vectors of texts. The second lowers the squared
error to it. However a model was made smaller, it is trained alike.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import MSELoss as ScoreLoss
from sentence_transformers.sentence_transformer.losses import MSELoss as VectorLoss

from lab.reading.boolq import TRAINING, Ranking, rankings
from lab.reading.readers import BATCH, Reranker, open_reader
from lab.reading.training import embedding_of, trainer_settings

NEAREST = 8
"""Similar passages of a question, of which every other one is read."""


def labelled(folder: Path, read: list[Ranking]) -> dict[str, list[Any]]:
    """Columns of a training set with the dense model's outputs as `label`."""
    reader = open_reader(folder)
    if isinstance(reader, Reranker):
        pairs = [(one.question, passage) for one in read for passage in one.candidates[::2]]
        scores = reader.model.predict(pairs, batch_size=BATCH, activation_fn=torch.nn.Identity())
        questions, passages = (list(column) for column in zip(*pairs, strict=True))
        return {"query": questions, "document": passages, "label": scores.tolist()}
    assert isinstance(reader.model, SentenceTransformer)
    texts = [text for one in read for text in (one.question, one.passage)]
    return {"text": texts, "label": reader.model.encode(texts, batch_size=BATCH).tolist()}


def train(given: argparse.Namespace) -> None:
    """Train a model of sentence-transformers on the labels and save it."""
    reader = open_reader(given.model, torch.float32)
    model, settings = reader.model, trainer_settings(given)
    data = Dataset.from_dict(json.loads(given.labels.read_text())).shuffle(given.seed)
    embedding_of(model).requires_grad_(False)
    if isinstance(model, CrossEncoder):
        CrossEncoderTrainer(
            model=model, args=CrossEncoderTrainingArguments(**settings), train_dataset=data, loss=ScoreLoss(model)
        ).train()
    else:
        assert isinstance(model, SentenceTransformer)
        SentenceTransformerTrainer(
            model=model,
            args=SentenceTransformerTrainingArguments(**settings),
            train_dataset=data,
            loss=VectorLoss(model),
        ).train()
    model.save_pretrained(str(given.out))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("work", choices=("labels", "train"))
    parser.add_argument("model", type=Path, help="folder of sentence-transformers: the dense one, or a smaller one")
    parser.add_argument("--data", type=Path, help="folder with BoolQ's train.jsonl.gz")
    parser.add_argument("--labels", type=Path, help="file that the work `labels` wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--pool", type=int, default=8000, help="passages among which similar ones are found")
    parser.add_argument("--batch", type=int, default=16, help="texts or pairs per step")
    parser.add_argument("--rate", type=float, default=2e-4, help="learning rate")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bfloat16", action="store_true", help="for processors with AVX-512 BF16 or AMX")
    given = parser.parse_args()
    if given.work == "labels" and given.data is not None:
        read = rankings(
            given.data, TRAINING, questions=given.questions, others=NEAREST, pool=given.pool, seed=given.seed
        )
        given.out.write_text(json.dumps(labelled(given.model, read)))
    elif given.work == "train" and given.labels is not None:
        train(given)
    else:
        parser.error("labels needs --data, and train needs --labels")


if __name__ == "__main__":
    main()
