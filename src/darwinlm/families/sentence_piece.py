"""Detection of SentencePiece models that transformers reads wrongly.

The tokenizer classes of Llama, Gemma and others silently read any `tokenizer.model` as BPE and ignore its Unigram
scores. Text is then split into other tokens than in the model's training (seen in transformers 5.24).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import TOKENIZER_BYTES, read_bytes

MODEL = "tokenizer.model"
UNIGRAM = 1  # of sentencepiece.TrainerSpec.ModelType


def check_sentence_piece(folder: Path, tokenizer: Any) -> None:
    """Refuse a Unigram model from whose folder transformers built another kind of tokenizer.

    Raises CheckpointError if it was read wrongly, or isn't a SentencePiece model at all.
    """
    path = folder / MODEL
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if (folder / "tokenizer.json").is_file() or not path.is_file() or backend is None:
        return
    if json.loads(backend.to_str())["model"]["type"] != "Unigram" and _is_unigram(path):
        raise CheckpointError(
            f"{path} is a Unigram model of SentencePiece, which this release of transformers reads as BPE and so "
            "splits text wrongly: put a tokenizer.json beside it, saved by the release that the model was made with"
        )


def _is_unigram(path: Path) -> bool:
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(read_bytes(path, TOKENIZER_BYTES))
    except (DecodeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a SentencePiece model ({error}): fetch the model again") from error
    return int(model.trainer_spec.model_type) == UNIGRAM
