"""Published versions of other pruning packages, compared on the same dense model, size and held-out text.

The packages are installed from PyPI into a separate environment, OUT/env. They cut the model by their rules to the same
share of the block parameters. Every model, including ours, is then measured by `darwinlm evaluate`: perplexity and KL
to the dense model on held-out text, and copying. Prints one JSON line for each; finished ones aren't repeated.

    python benchmarks/peers.py --model DENSE --text TEXT --held-out WEB --out runs/peers --ours runs/half/model

- OptiPFair 0.4.2, static: MLP neurons by the peak-to-peak magnitude of their weights.
- OptiPFair 0.4.2, data-driven: the same, weighted by activations on TEXT.
- OptiPFair 0.4.2, depth: the last blocks, its default.
- Torch-Pruning 1.6.1, magnitude and Taylor: MLP neurons in coupled groups; Taylor uses gradients on TEXT.

Neither package updates the remaining weights or chooses sizes per block by their effect. DENSE is a folder in the
format of transformers. Nothing is trained.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import venv
from pathlib import Path

from darwinlm.data import read_documents, split_documents
from darwinlm.families.checkpoint import Checkpoint

PACKAGES = ("optipfair==0.4.2", "torch-pruning==1.6.1", "torch", "transformers", "safetensors")
PEERS = ("optipfair-static", "optipfair-data", "optipfair-depth", "torch-pruning-magnitude", "torch-pruning-taylor")
CUT = Path(__file__).with_name("peers_cut.py")
LENGTH = 512


def calibration(dense: Path, text: str, tokens: int, path: Path) -> Path:
    """Token ids that the data-driven methods may read, as JSON."""
    if not path.exists():
        tokenizer = Checkpoint.open(dense).tokenizer()
        blocks = split_documents(
            read_documents(text, tokenizer=tokenizer),
            {"calibration": tokens},
            tokenizer,
            LENGTH,
            0,
            source=text,
            document_tokens=LENGTH,
        )
        path.write_text(json.dumps(blocks["calibration"].tokens.tolist()))
    return path


def environment(folder: Path) -> Path:
    """Interpreter of the packages' environment, which is created once."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True)
        (folder / "done").touch()
    return python


def measured(model: Path, options: argparse.Namespace, name: str) -> dict[str, object]:
    """Results of `darwinlm evaluate`."""
    out = options.out / f"{name}.json"
    words = [sys.executable, "-m", "darwinlm", "evaluate", str(model), "--text", options.held_out]
    words += ["--against", str(options.model), "--tokens", str(options.tokens), "--out", str(out), "-q"]
    subprocess.run(words, check=True)
    found: dict[str, object] = json.loads(out.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="dense model, a folder")
    parser.add_argument("--text", required=True, help="text that data-driven methods may read")
    parser.add_argument("--held-out", required=True, help="text to measure on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--keep", type=float, default=0.5, help="share of the block parameters")
    parser.add_argument("--tokens", type=int, default=8192, help="held-out tokens")
    parser.add_argument("--calibration", type=int, default=65536, help="tokens that data-driven methods read")
    parser.add_argument("--peer", action="append", choices=PEERS)
    parser.add_argument("--ours", type=Path, action="append", default=[], help="models of ours to measure beside them")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    python = environment(options.out / "env")
    text = calibration(options.model, options.text, options.calibration, options.out / "calibration.json")
    models = {"dense": options.model} | {f"darwinlm-{path.parent.name}": path for path in options.ours}
    for peer in options.peer or PEERS:
        models[peer] = options.out / peer
        if not (models[peer] / "config.json").exists():
            subprocess.run([python, CUT, peer, options.model, text, str(options.keep), models[peer]], check=True)
    for name, model in models.items():
        if not (options.out / f"{name}.json").exists():
            measured(model, options, name)
        print(json.dumps({"model": name, **json.loads((options.out / f"{name}.json").read_text())}), flush=True)


if __name__ == "__main__":
    main()
