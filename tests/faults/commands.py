"""Every command that writes, on tiny models: what it is given, and where its result lies.

Each works in a folder of its own, which is empty before; what it reads lies in another one, and nothing may change it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.tiny.benchmarks import tiny_benchmarks
from tests.tiny.checkpoint import tiny_checkpoint, tiny_text
from tests.tiny.pruned import plain_checkpoint

SETTINGS = (
    "text.sequence_length=32",
    "text.calibration_tokens=512",
    "text.validation_tokens=64",
    "text.evaluation_tokens=64",
    "refit.tokens=512",
    "compute.device=cpu",
    "compute.dtype=float32",
    "compute.batch_tokens=256",
    "units.mlp_multiple=8",
    "budget.tolerance=0.05",
    "search.generations=2",
    "search.offspring=4",
    "search.stages=[{tokens: 64, survivors: 1}]",
    "evaluation.prompts=['the river']",
)
TRAINING = (
    "recovery.batch_tokens=256",
    "recovery.learning_rate=0.003",
    "recovery.save_every=512",
)


@dataclass(frozen=True)
class Given:
    """What commands read.

    Attributes:
        model: a dense model.
        text: a file of text.
        finished: the output folder of a run.
        zeros: a model that another tool pruned.
        gguf: a dense model as a GGUF file.
        benchmarks: local files of benchmark tasks.
        scores: a saved evaluation.
    """

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    @property
    def finished(self) -> Path:
        return self.folder / "finished"

    @property
    def zeros(self) -> Path:
        return self.folder / "zeros"

    @property
    def gguf(self) -> Path:
        return self.folder / "model.gguf"

    @property
    def benchmarks(self) -> Path:
        return self.folder / "benchmarks"

    @property
    def scores(self) -> Path:
        return self.folder / "scores.json"

    @property
    def before(self) -> Path:
        """What lies where commands write, in a folder for each of them; a folder that isn't there is an empty one."""
        return self.folder / "before"


def begin(given: Given) -> None:
    """Make what is there before any command ran."""
    given.folder.mkdir()
    tiny_checkpoint(given.model, num_hidden_layers=2)
    tiny_text(given.text)
    plain_checkpoint(given.zeros, "llama", num_hidden_layers=2)
    tiny_benchmarks(given.benchmarks)


def preparations(given: Given) -> list[list[object]]:
    """Commands that make the rest of it."""
    evaluated = ["evaluate", given.zeros, "--text", given.text, "--tokens", "64", "--sequence-length", "32"]
    return [
        ["prune", given.model, "--keep", "60%", "--out", given.finished, "--text", given.text, *_sets(SETTINGS)],
        [*evaluated, "--out", given.scores],
        ["export", given.zeros, "--to", "gguf", "--quant", "f32", "--out", given.gguf],
        ["export", given.zeros, "--to", "gguf", "--out", given.before / "export over a gguf" / "m.gguf"],
        ["export", given.zeros, "--to", "hf", "--out", given.before / "export over a folder" / "dense"],
        ["export", given.zeros, "--to", "hf", "--out", given.before / "import over a folder" / "imported"],
    ]


def _sets(settings: tuple[str, ...]) -> list[object]:
    return [word for setting in settings for word in ("--set", setting)]


def _prune(given: Given, *more: object, model: Path | None = None) -> list[object]:
    return ["prune", model or given.model, "--text", given.text, *_sets(SETTINGS), *more]


Words = Callable[[Given, Path], list[object]]

COMMANDS: dict[str, Words] = {
    "prune": lambda given, out: _prune(given, "--keep", "60%", "--out", out / "out"),
    "prune a GGUF file": lambda given, out: _prune(
        given, "--keep", "60%", "--until", "database", "--out", out / "out", model=given.gguf
    ),
    "prune a sweep": lambda given, out: _prune(given, "--keep", "80%,60%", "--out", out / "out"),
    "prune in rounds": lambda given, out: _prune(
        given, "--out", out / "out", *_sets(("rounds=[80%,60%]", "recovery.tokens=1024", *TRAINING))
    ),
    "database": lambda given, out: [
        "database", given.model, "--text", given.text, "--out", out / "out", *_sets(SETTINGS)
    ],
    "recover": lambda given, out: [
        "recover", given.finished, "--tokens", "1536", "--text", given.text, "--out", out / "out",
        *_sets((*SETTINGS, *TRAINING)),
    ],
    "recover with a cache": lambda given, out: [
        "recover", given.finished, "--tokens", "1024", "--text", given.text, "--out", out / "out",
        *_sets((*SETTINGS, *TRAINING, f"recovery.teacher_cache={out / 'cache'}")),
    ],
    "compare": lambda given, out: [
        "compare", given.model, "--keep", "60%", "--text", given.text, "--out", out / "out",
        "--methods", "uniform,magnitude", *_sets(SETTINGS),
    ],
    "export to hf": lambda given, out: [
        "export", given.finished, "--to", "hf", "--dtype", "bfloat16", "--out", out / "hf"
    ],
    "export over a folder": lambda given, out: [
        "export", given.finished, "--to", "dense", "--out", out / "dense", "--overwrite"
    ],
    "export to gguf": lambda given, out: [
        "export", given.zeros, "--to", "gguf", "--quant", "q8_0", "--out", out / "m.gguf"
    ],
    "export over a gguf": lambda given, out: [
        "export", given.zeros, "--to", "gguf", "--quant", "q8_0", "--out", out / "m.gguf", "--overwrite"
    ],
    "import": lambda given, out: ["import", given.zeros, "--out", out / "imported"],
    "import over a folder": lambda given, out: ["import", given.zeros, "--out", out / "imported", "--overwrite"],
    "evaluate": lambda given, out: [
        "evaluate", given.finished, "--text", given.text, "--against", given.model, "--tokens", "64",
        "--sequence-length", "32", "--out", out / "scores.json", "--markdown", out / "scores.md",
    ],
    "evaluate tasks": lambda given, out: [
        "evaluate", given.zeros, "--suite", "piqa,boolq,sciq", "--data-dir", given.benchmarks, "--limit", "2",
        "--out", out / "scores.json",
    ],
    "scores": lambda given, out: ["scores", given.scores, "--markdown", out / "table.md"],
    "bench": lambda given, out: [
        "bench", given.zeros, "--prompt-tokens", "8", "--new-tokens", "2", "--runs", "1", "--out", out / "speed.json"
    ],
    "inspect": lambda given, out: ["inspect", given.finished, "--html", out / "sizes.html"],
    "plan": lambda given, out: ["plan", given.model, "--keep", "50%", "--out", out / "plan.json"],
    "push, without uploading": lambda given, out: ["push", given.finished, "me/half", "--dry-run"],
}  # fmt: skip
