"""Drop a reader's last layers, as L3Prune (arXiv:2410.14578) does with embedders: the rival of narrower layers.

python -m lab.reading.depth MODEL --layers 15 --out MODEL-dropped
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import nn
from transformers import PreTrainedModel

from lab.reading.readers import open_reader


def drop_last(model: CrossEncoder | SentenceTransformer, layers: int) -> None:
    """Keep so many layers, the first ones, in place; the norm after the last one stays."""
    transformer = model[0]
    assert isinstance(transformer, Transformer)
    inside: PreTrainedModel = transformer.model
    decoder: PreTrainedModel = inside.base_model
    present = decoder.layers
    assert isinstance(present, nn.ModuleList)
    if not 0 < layers <= len(present):
        raise SystemExit(f"the model has {len(present)} layers: ask for 1 to {len(present)}")
    decoder.layers = present[:layers]
    inside.config.num_hidden_layers = decoder.config.num_hidden_layers = layers


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of sentence-transformers")
    parser.add_argument("--layers", type=int, required=True, help="layers to keep")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    reader = open_reader(given.model, torch.float32)
    drop_last(reader.model, given.layers)
    reader.model.save_pretrained(str(given.out))


if __name__ == "__main__":
    main()
