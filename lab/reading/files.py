"""Readers as GGUF files: a file for the speed in llama.cpp, and its weights read back for the quality in PyTorch.

    python -m lab.reading.files MODEL --quant q8_0 --out MODEL-q8_0

writes `model.gguf` and the folder `model`, a copy of the reader with the weights of that file. Only the decoder is in
the file: `darwinlm export` writes it as that of a language model, whose head llama.cpp leaves alone when it embeds.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file

from darwinlm.formats.resolve import resolve_model
from darwinlm.runs.exporting import export_model

WEIGHTS, CONFIG = "model.safetensors", "config.json"
DECODER, HEAD = "model.", "score."
"""Beginnings of the names of a language model's weights, and of a classifier's head."""
MODULES = ("modules.json", "*.md", "[0-9]_*")
"""What only a folder of sentence-transformers has."""


def as_language_model(reader: Path, out: Path) -> Path:
    """Write a reader's decoder as a language model with tied embeddings, and return its folder."""
    shutil.copytree(reader, out, ignore=shutil.ignore_patterns(WEIGHTS, *MODULES))
    tensors = load_file(reader / WEIGHTS)
    named = {name if name.startswith(DECODER) else DECODER + name: tensor for name, tensor in tensors.items()}
    save_file({name: named[name] for name in named if HEAD not in name}, out / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    classes = [re.sub(r"(Model|ForSequenceClassification)$", "ForCausalLM", name) for name in config["architectures"]]
    config |= {"architectures": classes, "tie_word_embeddings": True}
    (out / CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")
    return out


def with_weights_of(file: Path, reader: Path, out: Path) -> None:
    """Copy a reader with the decoder's weights of a GGUF file, and its own head."""
    shutil.copytree(reader, out, ignore=shutil.ignore_patterns(WEIGHTS))
    tensors = load_file(reader / WEIGHTS)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        read = load_file(resolve_model(str(file), Path(work) / "read").folder / WEIGHTS)
        for name, tensor in tensors.items():
            if not name.startswith(HEAD):
                stored = read[name if name.startswith(DECODER) else DECODER + name]
                tensors[name] = stored.to(tensor.dtype).clone()
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of sentence-transformers")
    parser.add_argument("--quant", default="f16", help="type of the weights, as in darwinlm export")
    parser.add_argument("--unchecked", action="store_true", help="don't compare the file with the model in llama.cpp")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    file = given.out / "model.gguf"
    with tempfile.TemporaryDirectory(dir=given.out) as work:
        language = as_language_model(given.model, Path(work) / "language")
        export_model(language, file, quantisation=given.quant, unchecked=given.unchecked)
    with_weights_of(file, given.model, given.out / "model")


if __name__ == "__main__":
    main()
