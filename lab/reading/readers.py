"""Rerankers and embedders behind one method: scores of passages for questions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer

from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.inputs import DOCUMENT, QUERY
from lab.reading.boolq import Ranking

BATCH = 32
AT_ONCE = 512
"""Most tokens of a pair in llama.cpp."""


class Reader(ABC):
    """A model that tells how well passages answer a question."""

    model: CrossEncoder | SentenceTransformer

    @abstractmethod
    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """Scores [question][candidate]; a higher one is better."""


class Reranker(Reader):
    """A cross-encoder, which reads a question and a passage together."""

    model: CrossEncoder

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.model = CrossEncoder(
            str(folder), device="cpu", trust_remote_code=True, local_files_only=True, model_kwargs={"dtype": dtype}
        )

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """Logits of the pairs."""
        pairs = [(ranking.question, passage) for ranking in rankings for passage in ranking.candidates]
        found = iter(self.model.predict(pairs, batch_size=BATCH, activation_fn=torch.nn.Identity()).tolist())
        return [[next(found) for _ in ranking.candidates] for ranking in rankings]


class Embedder(Reader):
    """A model of vectors, which reads every text once."""

    model: SentenceTransformer

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.model = SentenceTransformer(
            str(folder), device="cpu", trust_remote_code=True, local_files_only=True, model_kwargs={"dtype": dtype}
        )

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """Cosine similarities."""
        passages = list(dict.fromkeys(passage for ranking in rankings for passage in ranking.candidates))
        place = {passage: number for number, passage in enumerate(passages)}
        questions = [ranking.question for ranking in rankings]
        asked, read = (
            self.model.encode_query(questions, batch_size=BATCH, convert_to_tensor=True),
            self.model.encode_document(passages, batch_size=BATCH, convert_to_tensor=True),
        )
        similar = self.model.similarity(asked.float(), read.float())
        return [
            similar[row, [place[passage] for passage in ranking.candidates]].tolist()
            for row, ranking in enumerate(rankings)
        ]


class RerankerFile(Reader):
    """A GGUF file of a reranker in llama.cpp, which puts pairs in the file's template as its server does."""

    def __init__(self, path: Path) -> None:
        from darwinlm.formats.gguf.pooling_llama_cpp import PoolingLlamaCpp

        self.template = str(read_header(path).keys.get("tokenizer.chat_template.rerank", QUERY + DOCUMENT))
        self.engine = PoolingLlamaCpp(str(path), threads=torch.get_num_threads())

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """Scores of the pairs."""
        return [[self._score(ranking.question, passage) for passage in ranking.candidates] for ranking in rankings]

    def _score(self, question: str, passage: str) -> float:
        pair = self.template.replace(QUERY, question).replace(DOCUMENT, passage)
        return float(self.engine.outputs([self.engine.tokenize(pair, written=True)[:AT_ONCE]])[0, 0])


def open_reader(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Reader:
    """The reader in a folder of sentence-transformers, by the classes that its files name, or in a GGUF file."""
    if folder.suffix == ".gguf":
        return RerankerFile(folder)
    named = folder / "config_sentence_transformers.json"
    kind = Reranker if '"CrossEncoder"' in named.read_text(encoding="utf-8") else Embedder
    return kind(folder, dtype)
