"""Tiny models that read texts one by one, and texts and pairs for them."""

import json
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForSequenceClassification

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.steps.stitch.stitch import stitch
from tests.tiny.checkpoint import WORDS
from tests.tiny.models import randomised, tiny_config
from tests.tiny.pruned import ENGINE_SIZES, Row, level_of, word_tokenizer
from tests.tiny.reader import FirstUnits
from tests.tiny.tokenizer import tiny_tokenizer


def tiny_scorer(
    folder: Path, model_type: str = "llama", labels: int = 1, tokenizer: Any = None, **overrides: Any
) -> Path:
    """Save a random model with a head of scores and a tokenizer."""
    config = tiny_config(model_type, **{"num_labels": labels, **overrides})
    randomised(lambda: AutoModelForSequenceClassification.from_config(config)).save_pretrained(folder)
    (tokenizer or tiny_tokenizer()).save_pretrained(folder)
    return folder


def tiny_embedder(
    folder: Path, model_type: str = "qwen3", pooling: str = "lasttoken", tokenizer: Any = None, **overrides: Any
) -> Path:
    """Save a random model without a head as sentence-transformers does."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    bare = folder / "bare"
    config = tiny_config(model_type, **overrides)
    randomised(lambda: AutoModel.from_config(config)).save_pretrained(bare)
    (tokenizer or tiny_tokenizer()).save_pretrained(bare)
    transformer = Transformer(str(bare), max_seq_length=64)
    modules = [transformer, Pooling(transformer.get_embedding_dimension(), pooling_mode=pooling), Normalize()]
    prompts = {"query": "river: ", "document": ""}
    SentenceTransformer(modules=modules, prompts=prompts, device="cpu").save_pretrained(str(folder / "model"))
    return folder / "model"


def scorer_for_engines(folder: Path, model_type: str = "llama", **overrides: Any) -> Path:
    """A scorer with a tokenizer and sizes that engines accept."""
    sizes = {key: value for key, value in ENGINE_SIZES.items() if key != "max_position_embeddings"}
    return tiny_scorer(folder, model_type, **{"tokenizer": word_tokenizer(), **sizes, **overrides})


def embedder_for_engines(folder: Path, model_type: str, pooling: str = "lasttoken", **overrides: Any) -> Path:
    """An embedder of the same kind."""
    return tiny_embedder(folder, model_type, pooling, tokenizer=word_tokenizer(), **{**ENGINE_SIZES, **overrides})


def narrowed(source: Path, folder: Path, rows: Mapping[int, Row]) -> Path:
    """Save the first units of a reader, so many in each layer, beside its other files."""
    reader = FirstUnits(Checkpoint.open(source), UnitsSettings(mlp_multiple=8))
    allocation = (level_of(module, rows[module.block]) if module.block in rows else -1 for module in reader.modules)
    levels = (at % len(module.levels) for module, at in zip(reader.modules, allocation, strict=True))
    model = stitch(reader, tuple(levels))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("model.safetensors"))
    model.save_pretrained(folder)
    return folder


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
