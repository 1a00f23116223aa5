"""Make the dense models with the trainers of sentence-transformers.

    python -m lab.reading.training reranker --data BOOLQ --out runs/reading/reranker
    python -m lab.reading.training embedder --data BOOLQ --out runs/reading/embedder

Both start from the model of `darwinlm demo`, SmolLM2-135M-Instruct. The reranker is a `LlamaForSequenceClassification`
with one label, which ranks a question's passage above similar ones; the embedder averages over tokens, and other
passages of its batch are the wrong ones. One thread with bfloat16 trains 300 tokens a second, in 3 GB of memory: the
embedding isn't trained, and Adafactor keeps little.
"""

from __future__ import annotations

import argparse
import random
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
from sentence_transformers.cross_encoder.losses import MultipleNegativesRankingLoss as RankingLoss
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss as InBatchLoss
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

from darwinlm.formats.resolve import resolve_model
from darwinlm.runs.demo_recipe import demo_model
from lab.reading.boolq import TRAINING, Ranking, rankings

NEAREST = 8
"""The wrong passages of a question are drawn from so many of the most similar ones."""


def base_folder(out: Path) -> Path:
    """The checkpoint of the demo's model, converted to the folder `base` beside `out`."""
    return resolve_model(str(demo_model()), out.parent / "base").folder


def with_head(given: argparse.Namespace) -> Path:
    """The base with a new head of one label; of a language model, CrossEncoder would take the tokens yes and no."""
    base, folder = base_folder(given.out), Path(given.out) / "with-head"
    set_seed(given.seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def columns(read: list[Ranking], wrong: int, seed: int) -> Dataset:
    """Training data: a question, its passage, and so many wrong ones."""
    draw = random.Random(seed)
    names = [f"negative_{number}" for number in range(wrong)]
    rows = [dict(zip(names, draw.sample(ranking.others, wrong), strict=True)) for ranking in read]
    pairs = [{"anchor": ranking.question, "positive": ranking.passage} for ranking in read]
    return Dataset.from_list([pair | row for pair, row in zip(pairs, rows, strict=True)])


def embedding_of(model: CrossEncoder | SentenceTransformer) -> nn.Module:
    """The embedding of tokens, which isn't trained here."""
    transformer = model[0]
    assert isinstance(transformer, Transformer)
    embedding: nn.Module = transformer.model.get_input_embeddings()
    return embedding


def trainer_settings(given: argparse.Namespace) -> dict[str, Any]:
    """Settings that all trainers of sentence-transformers share."""
    return {
        "output_dir": str(given.out / "training"),
        "num_train_epochs": 1,
        "per_device_train_batch_size": given.batch,
        "learning_rate": given.rate,
        "warmup_steps": 0.1,
        "weight_decay": 0.01,
        "bf16": given.bfloat16,
        "optim": "adafactor",
        "use_cpu": True,
        "seed": given.seed,
        "save_strategy": "no",
        "logging_steps": 5,
        "report_to": "none",
        "disable_tqdm": True,
    }


def train_reranker(given: argparse.Namespace) -> None:
    """Train a cross-encoder to score the right passage above a similar one and another of its batch."""
    read = rankings(given.data, TRAINING, questions=given.questions, others=NEAREST, pool=given.pool, seed=given.seed)
    model = CrossEncoder(str(with_head(given)), device="cpu", max_length=given.length)
    model.model.config.use_cache = False
    embedding_of(model).requires_grad_(False)
    trainer = CrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(**trainer_settings(given)),
        train_dataset=columns(read, 1, given.seed),
        loss=RankingLoss(model, num_negatives=1, scale=1, activation_fn=nn.Identity()),
    )
    trainer.train()
    model.save_pretrained(str(given.out / "model"))


def train_embedder(given: argparse.Namespace) -> None:
    """Train an embedder with mean pooling; the wrong passages are those of the other questions of its batch."""
    read = rankings(given.data, TRAINING, questions=given.questions, others=NEAREST, pool=given.pool, seed=given.seed)
    transformer = Transformer(
        str(base_folder(given.out)), max_seq_length=given.length, model_kwargs={"dtype": torch.float32}
    )
    transformer.model.config.use_cache = False
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device="cpu")
    embedding_of(model).requires_grad_(False)
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**trainer_settings(given)),
        train_dataset=columns(read, 0, given.seed),
        loss=InBatchLoss(model),
    )
    trainer.train()
    model.save_pretrained(str(given.out / "model"))


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("kind", choices=("reranker", "embedder"))
    parser.add_argument("--data", type=Path, required=True, help="folder with BoolQ's train.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--pool", type=int, default=8000, help="passages among which similar ones are found")
    parser.add_argument("--length", type=int, default=64, help="longest input in tokens")
    parser.add_argument("--batch", type=int, default=8, help="questions per step")
    parser.add_argument("--rate", type=float, default=1e-4, help="learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bfloat16", action="store_true", help="for processors with AVX-512 BF16 or AMX")
    given = parser.parse_args()
    train = train_reranker if given.kind == "reranker" else train_embedder
    train(given)


if __name__ == "__main__":
    main()
