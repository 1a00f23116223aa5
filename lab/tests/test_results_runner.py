"""All parts of the script for the published comparison, on a tiny model; a rerun reuses everything."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tests.tiny.benchmarks import QUIET, tiny_benchmarks
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint, tiny_text
from tests.tiny.command import Command, sets

from darwinlm.runtime.artifact import read_json
from lab.benchmarks import results
from lab.comparison.methods import BASELINES

pytestmark = QUIET

TINY = (
    *SETTINGS,
    "recovery.batch_tokens=64",
)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path) -> ModuleType:
    """The script, with its commands in this process."""

    def run(line: list[str], *, check: bool) -> None:
        assert check
        assert line[:3] == [sys.executable, "-m", "lab"]
        command(*line[3:]).succeeded()

    monkeypatch.setattr(results, "subprocess", SimpleNamespace(run=run))
    paper = tmp_path / "paper.yaml"
    paper.write_text("search: {method: paper}\nunits: {levels: paper}\n", "utf-8")
    monkeypatch.setattr(results, "PAPER", paper)  # its own numbers are for more text
    # All methods, and the paper's nine tasks with their shots, are run elsewhere; here some of them do.
    monkeypatch.setattr(results, "ALL", ("uniform", "random", "darwinlm", "darwinlm+refit", "paper"))
    monkeypatch.setattr(results, "SEARCHING", ("random", "paper"))
    monkeypatch.setattr(results, "PAPER_ROWS", ("uniform",))
    whole = results.parse_suite
    monkeypatch.setattr(results, "parse_suite", lambda name: whole("sciq:0,winogrande:5" if name == "paper" else name))
    return results


def test_no_method_needs_experts_which_the_model_lacks() -> None:
    assert not [name for name in results.ALL if name in BASELINES and BASELINES[name].mixtures]


@pytest.mark.timeout(900)
def test_all_parts_of_the_comparison(runner, tmp_path, tiny_text_file, monkeypatch):
    model = tiny_checkpoint(tmp_path / "model", max_position_embeddings=512)
    data = tiny_benchmarks(tmp_path / "data")
    other = tiny_text(tmp_path / "other.txt", seed=7)
    out = tmp_path / "out"
    line = ["results.py", "--out", out, "--model", model, "--text", tiny_text_file, "--domain", f"web={other}"]
    line += ["--data-dir", data, "--suite", "piqa:0", "--limit", 2, "--paper-limit", 2, "--seeds", 2, "--keep", "75%"]
    line += ["--minutes", "0.02", "--recovery", 128, "--recovered", "darwinlm+refit+recovery"]
    line += sets(TINY)

    def run() -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [str(word) for word in line])
        runner.main()
        return {name: read_json(out / f"{name}.json") for name in ("half-0", "half-1", "paper-suite", "75")}

    found = run()
    rows = {name: [row["method"] for row in part["rows"]] for name, part in found.items()}
    assert rows == {
        "half-0": ["dense", *runner.ALL, "darwinlm+refit+recovery"],
        "half-1": ["dense", "random", "paper"],
        "paper-suite": ["dense", "uniform", "darwinlm+refit+recovery", "paper"],
        "75": ["dense", *runner.ALL, "darwinlm+refit+recovery"],
    }
    for part in found.values():
        assert set(part["texts"]) == {"held out", "web"}
        assert part["recipe"]["search"]["minutes"] == pytest.approx(0.02)
    assert [score["task"] for score in found["paper-suite"]["rows"][0]["tasks"]] == ["sciq", "winogrande"]
    table = (out / "results.md").read_text(encoding="utf-8")
    assert table.index("## half-0") < table.index("## half-1") < table.index("## 75")
    assert "## Half, 2 seeds: mean and standard deviation" in table
    assert "| DarwinLM + refit + recovery |" in table
    assert "searches are limited to 0.02 minutes" in table

    models = list(out.rglob("*.safetensors"))
    written = {path: path.stat().st_mtime_ns for path in models}
    assert run() == found
    assert {path: path.stat().st_mtime_ns for path in models} == written
