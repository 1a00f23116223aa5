"""Coverage-guided fuzzing of one reader with Atheris, with the corpus as seeds.

`python -m tests.fuzz.guided TARGET SECONDS` stops at the first input that doesn't end as it should, saves it as
`crash-HASH`, and ends with status 1. Further options go to libFuzzer.
"""

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["darwinlm"]):
    from tests.fuzz.case import ANY, Case, alone, replaced
    from tests.fuzz.cases import corpus
    from tests.fuzz.test_corpus import outcome
    from tests.tiny.checkpoint import tiny_checkpoint

TARGETS = {
    "gguf": ("gguf", "model.gguf"),
    "header": ("model", "model.safetensors"),
    "index": ("model", "model.safetensors.index.json"),
    "config": ("model", "config.json"),
    "tokenizer": ("model", "tokenizer.json"),
    "tokenizer-config": ("model", "tokenizer_config.json"),
    "recipe": ("recipe", "recipe.yaml"),
    "lines": ("text", "text.jsonl"),
    "list": ("text", "text.json"),
    "csv": ("text", "text.csv"),
    "arrow": ("text", "text.arrow"),
    "parquet": ("text", "text.parquet"),
    "manifest": ("artifact", "manifest.json"),
}
"""Reader and file of each target."""
LARGEST = 1 << 15
"""Largest input in bytes."""


def main(target: str, seconds: str, options: list[str]) -> None:
    reader, name = TARGETS[target]
    home = Path(tempfile.mkdtemp(prefix="guided-"))
    folder, seeds = home / "work", home / "seeds"
    folder.mkdir()
    seeds.mkdir()
    model = tiny_checkpoint(home / "model")
    weights = (model / "model.safetensors").read_bytes()
    body = weights[8 + int.from_bytes(weights[:8], "little") :] if target == "header" else b""

    for number, case in enumerate(corpus()):
        if case.reader == reader and (name in case.name or reader != "model"):
            case.write(folder, model)
            # Some cases put a pipe there, or a link to what never ends.
            if (folder / name).is_file() and not (folder / name).is_symlink():
                (seeds / str(number)).write_bytes((folder / name).read_bytes()[:LARGEST])
        for path in folder.iterdir():
            path.unlink()
    if (model / name).exists():
        content = (model / name).read_bytes()
        (seeds / "whole").write_bytes(content[: len(content) - len(body)])

    def one(data: bytes) -> None:
        write = (replaced if reader == "model" else alone)(name, data + body)
        wrong = outcome(Case(target, reader, write, ANY), folder, model)
        if wrong is not None:
            raise AssertionError(wrong)

    limits = [f"-max_total_time={seconds}", f"-max_len={LARGEST}", "-timeout=60", "-rss_limit_mb=6000"]
    atheris.Setup([sys.argv[0], str(seeds), *limits, "-print_final_stats=1", *options], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
