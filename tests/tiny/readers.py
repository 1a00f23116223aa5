"""Tiny models that read texts one by one, and texts and pairs for them."""

import json
import random
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForSequenceClassification

from tests.tiny.checkpoint import WORDS
from tests.tiny.models import randomised, tiny_config
from tests.tiny.tokenizer import tiny_tokenizer


def tiny_scorer(folder: Path, model_type: str = "llama", labels: int = 1, **overrides: Any) -> Path:
    """Save a random model with a head of scores and a tokenizer."""
    config = tiny_config(model_type, **{"num_labels": labels, **overrides})
    randomised(lambda: AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_embedder(folder: Path, model_type: str = "qwen3", pooling: str = "lasttoken", **overrides: Any) -> Path:
    """Save a random model without a head as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    bare = folder / "bare"
    config = tiny_config(model_type, **overrides)
    randomised(lambda: AutoModel.from_config(config)).save_pretrained(bare)
    tiny_tokenizer().save_pretrained(bare)
    transformer = Transformer(str(bare), max_seq_length=64)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling), Normalize()]
    prompts = {"query": "river: ", "document": ""}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def tiny_pairs(path: Path, queries: int = 40, texts: int = 4, seed: int = 0) -> Path:
    """Write queries with texts, of which one fits each."""
    rng = random.Random(seed)
    lines = []
    for number in range(queries):
        query = " ".join(rng.choices(WORDS, k=rng.randint(2, 6))) + f" {number}"
        for place in range(texts):
            document = " ".join(rng.choices(WORDS, k=rng.randint(4, 20)))
            lines.append({"query": query, "document": document, "label": int(place == 0)})
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path
