"""Every command that writes, on tiny models: what it is given, and where its result lies.

Each works in a folder of its own, which is empty before; what it reads lies in another one, and nothing may change it.
"""

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


class Given:
    """What commands read.

    Attributes:
        folder: holds all of it.
        model: a dense model.
        text: a file of text.
        finished: the output folder of a run.
        plain: a model with a tokenizer that engines accept.
        published: the same, as the paper's authors publish models.
        gguf: a dense model as a GGUF file.
        benchmarks: local files of benchmark tasks.
        before: what lies where commands write, in a folder for each of them; one that isn't there is an empty one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model, self.text, self.finished = folder / "model", folder / "text.txt", folder / "finished"
        self.plain, self.published = folder / "plain", folder / "published"
        self.gguf, self.benchmarks = folder / "model.gguf", folder / "benchmarks"
        self.before = folder / "before"


def begin(given: Given) -> None:
    """Make what is there before any command ran."""
    given.folder.mkdir()
    tiny_checkpoint(given.model, num_hidden_layers=2)
    (given.model / "README.md").write_text("---\nlicense: mit\nlanguage: [en]\n---\n# Tiny\n", encoding="utf-8")
    (given.model / "LICENSE").write_text("Do what you like.\n", encoding="utf-8")
    (given.folder / "linked").symlink_to(given.model)
    for name in ("prune through links", "export through links"):
        (given.before / name / "real").mkdir(parents=True)
        (given.before / name / "link").symlink_to("real")
    planted = given.before / "evaluate beside planted links"
    planted.mkdir()
    for name in (".scores.json.partial", ".scores.json.123.tmp"):
        (planted / name).symlink_to(given.text)
    tiny_text(given.text)
    plain_checkpoint(given.plain, "llama", num_hidden_layers=2)
    plain_checkpoint(given.published, "llama", num_hidden_layers=2)
    edit_config(given.published, model_type="darwinlm")
    tiny_benchmarks(given.benchmarks)


def preparations(given: Given) -> list[list[object]]:
    """Commands that make the rest of it."""
    return [
        ["prune", given.model, "--keep", "60%", "--out", given.finished, "--text", given.text, *sets(SETTINGS)],
        ["export", given.plain, "--to", "gguf", "--quant", "f32", "--out", given.gguf],
        ["export", given.plain, "--to", "gguf", "--out", given.before / "export over a gguf" / "m.gguf"],
        ["export", given.plain, "--to", "vllm", "--out", given.before / "export over a folder" / "dense"],
        ["export", given.plain, "--to", "vllm", "--out", given.before / "import over a folder" / "imported"],
    ]


def _prune(given: Given, *more: object, model: Path | None = None) -> list[object]:
    return ["prune", model or given.model, "--text", given.text, *sets(SETTINGS), *more]


Words = Callable[[Given, Path], list[object]]

COMMANDS: dict[str, Words] = {
    "prune": lambda given, out: _prune(given, "--keep", "60%", "--out", out / "out"),
    "prune through links": lambda given, out: _prune(
        given, "--keep", "60%", "--until", "stitch", "--out", out / "link" / "out", model=given.folder / "linked"
    ),
    "export through links": lambda given, out: [
        "export", given.finished, "--to", "vllm", "--out", out / "link" / "vllm"
    ],
    "evaluate beside planted links": lambda given, out: [
        "evaluate", given.plain, "--text", given.text, "--tokens", "64", "--sequence-length", "32",
        "--out", out / "scores.json",
    ],
    "prune a GGUF file": lambda given, out: _prune(
        given, "--keep", "60%", "--until", "database", "--out", out / "out", model=given.gguf
    ),
    "prune a sweep": lambda given, out: _prune(given, "--keep", "80%,60%", "--out", out / "out"),
    "prune and recover": lambda given, out: _prune(
        given, "--keep", "60%", "--out", out / "out", *sets(("recovery.tokens=1024", *TRAINING))
    ),
    "database": lambda given, out: [
        "prune", given.model, "--until", "database", "--text", given.text, "--out", out / "out", *sets(SETTINGS)
    ],
    "recover": lambda given, out: [
        "recover", given.finished, "--tokens", "1536", "--text", given.text, "--out", out / "out",
        *sets((*SETTINGS, *TRAINING)),
    ],
    "export to vllm": lambda given, out: [
        "export", given.finished, "--to", "vllm", "--out", out / "vllm"
    ],
    "export over a folder": lambda given, out: [
        "export", given.finished, "--to", "vllm", "--out", out / "dense", "--overwrite"
    ],
    "export to gguf": lambda given, out: [
        "export", given.plain, "--to", "gguf", "--quant", "q8_0", "--out", out / "m.gguf"
    ],
    "export over a gguf": lambda given, out: [
        "export", given.plain, "--to", "gguf", "--quant", "q8_0", "--out", out / "m.gguf", "--overwrite"
    ],
    "import": lambda given, out: ["import", given.published, "--out", out / "imported"],
    "import over a folder": lambda given, out: ["import", given.published, "--out", out / "imported", "--overwrite"],
    "evaluate": lambda given, out: [
        "evaluate", given.finished, "--text", given.text, "--against", given.model, "--tokens", "64",
        "--sequence-length", "32", "--out", out / "scores.json",
    ],
    "evaluate tasks": lambda given, out: [
        "evaluate", given.plain, "--suite", "piqa,boolq,sciq", "--data-dir", given.benchmarks, "--limit", "2",
        "--out", out / "scores.json",
    ],
}  # fmt: skip
