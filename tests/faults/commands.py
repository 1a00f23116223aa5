"""Every command that writes, on tiny models: what it is given, and where its result lies.

Each works in a folder of its own, which is empty before; what it reads lies in another one, and nothing may change it.
"""

import json
from collections.abc import Callable
from pathlib import Path

from tests.tiny.benchmarks import tiny_benchmarks
from tests.tiny.checkpoint import SETTINGS as TINY
from tests.tiny.checkpoint import tiny_checkpoint, tiny_text
from tests.tiny.command import sets
from tests.tiny.damage import edit_config
from tests.tiny.pruned import plain_checkpoint

SETTINGS = (
    *TINY,
    "text.calibration_tokens=512",
    "text.evaluation_tokens=64",
    "refit.tokens=512",
    "compute.device=cpu",
    "search.generations=2",
    "search.rounds=[{tokens: 64, survivors: 1}]",
)
TRAINING = ("recovery.batch_tokens=256", "recovery.learning_rate=0.003")


def begin(given: Path) -> None:
    """Make what is there before any command ran: a dense model, a text, a model with a tokenizer that engines accept,
    the same as the paper's authors publish models, and local files of benchmark tasks.
    """
    given.mkdir()
    tiny_checkpoint(given / "model", num_hidden_layers=2)
    (given / "model" / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Tiny\n", encoding="utf-8")
    (given / "model" / "LICENSE").write_text("Do what you like.\n", encoding="utf-8")
    tiny_text(given / "text.txt")
    for name in ("plain", "published"):
        plain_checkpoint(given / name, "llama", num_hidden_layers=2)
    edit_config(given / "published", model_type="darwinlm")
    tiny_benchmarks(given / "benchmarks")
    questions = [{"question": f"the river {word}", "answer": word} for word in ("runs", "stands", "sleeps", "sings")]
    (given / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)), encoding="utf-8")


def preparations(given: Path) -> list[list[object]]:
    """Commands that make the rest of it: a run, a GGUF file, and what lies in place of results before some commands."""
    before = given / "before"
    return [
        _prune(given, "--keep", "60%", "--out", given / "finished"),
        ["export", given / "plain", "--quant", "f32", "--out", given / "model.gguf"],
        ["export", given / "plain", "--out", before / "export over a gguf" / "m.gguf"],
        ["import", given / "published", "--out", before / "import over a folder" / "imported"],
    ]


def _prune(given: Path, *more: object, model: str = "model") -> list[object]:
    return ["prune", given / model, "--text", given / "text.txt", *sets(SETTINGS), *more]


COMMANDS: dict[str, Callable[[Path, Path], list[object]]] = {
    "prune": lambda given, out: _prune(given, "--keep", "60%", "--out", out / "out"),
    "prune a GGUF file": lambda given, out: _prune(
        given, "--keep", "60%", "--until", "database", "--out", out / "out", model="model.gguf"
    ),
    "prune a sweep": lambda given, out: _prune(given, "--keep", "80%,60%", "--out", out / "out"),
    "prune and recover": lambda given, out: _prune(
        given, "--keep", "60%", "--out", out / "out", *sets(("recovery.tokens=1024", *TRAINING))
    ),
    "prune with a measure": lambda given, out: _prune(
        given, "--keep", "60%", "--measure", given / "questions.jsonl", "--out", out / "out"
    ),
    "prune and fit the vocabulary": lambda given, out: _prune(
        given, "--params", "50k", "--vocab", "auto", "--out", out / "out"
    ),
    "prune within a loss": lambda given, out: _prune(given, "--within", "0.5 nats", "--out", out / "out"),
    "recover": lambda given, out: [
        "recover", given / "finished", "--tokens", "1536", "--text", given / "text.txt", "--out", out / "out",
        *sets((*SETTINGS, *TRAINING)),
    ],
    "import over a folder": lambda given, out: [
        "import", given / "published", "--out", out / "imported", "--overwrite"
    ],
    "export to gguf": lambda given, out: [
        "export", given / "plain", "--quant", "q8_0", "--out", out / "m.gguf"
    ],
    "export over a gguf": lambda given, out: [
        "export", given / "plain", "--quant", "q8_0", "--out", out / "m.gguf", "--overwrite"
    ],
    "import": lambda given, out: ["import", given / "published", "--out", out / "imported"],
    "evaluate": lambda given, out: [
        "evaluate", given / "finished", "--text", given / "text.txt", "--against", given / "model", "--tokens", "64",
        "--sequence-length", "32", "--out", out / "scores.json",
    ],
    "evaluate tasks": lambda given, out: [
        "evaluate", given / "plain", "--suite", "piqa,boolq,sciq", "--data-dir", given / "benchmarks", "--limit", "2",
        "--out", out / "scores.json",
    ],
}  # fmt: skip
