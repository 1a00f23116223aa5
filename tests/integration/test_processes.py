"""Two processes of torchrun give what one gives, to rounding; another single process gives the same bytes."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny.benchmarks import QUIET, tiny_benchmarks
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint, tiny_text
from tests.tiny.command import sets
from tests.tiny.process import python, together
from tests.tiny.stages import run_stages

from darwinlm.runtime.artifact import read_json

pytestmark = QUIET
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="torchrun's standalone mode needs a POSIX system")


def prune(model: Path, text: Path, out: Path, *more: str) -> tuple[object, ...]:
    return "prune", model, "--text", text, "--keep", "60%", "--out", out, *sets(SETTINGS), *more


@POSIX
def test_two_processes_give_the_database_of_one(tiny_folder, tiny_text_file, make_run, tmp_path):
    """The second follows the first one to the end, and only the first one talks."""
    mixtral = tiny_folder("mixtral")
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "darwinlm")
    done = python(*launch, *prune(mixtral, tiny_text_file, tmp_path / "two"), PYTHONWARNINGS="ignore")
    assert done.stdout.count("calibration and database:") == 1
    assert "darwinlm show" in done.stdout
    assert (tmp_path / "two" / "summary.json").is_file()
    run_stages(make_run(mixtral, tmp_path / "one"), "database")
    files = sorted((tmp_path / "one" / "stages" / "database").glob("*.safetensors"))
    assert len(files) == 4
    for file in files:
        one, two = load_file(file), load_file(tmp_path / "two" / "stages" / "database" / file.name)
        assert one.keys() == two.keys() > {"mlp.1.losses"}
        for name, tensor in one.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-5 * float(tensor.abs().max()))
            else:
                assert torch.equal(two[name], tensor), f"{file.name} {name}"


@POSIX
def test_an_error_in_two_processes_is_told_once(tiny_llama, tmp_path):
    first, second = together("darwinlm", *prune(tiny_llama, tmp_path / "none.txt", tmp_path / "out"), status=2)
    assert first.stderr.startswith("error: ")
    assert "none.txt" in first.stderr
    assert (first.stderr.count("\n"), second.stderr) == (1, "")
    assert not (tmp_path / "out").exists()


DIFFERENT = """
import os
from darwinlm.cli.main import main
from darwinlm.steps.search import propose

solve, sign = propose.solve_knapsack, -1 if os.environ["RANK"] == "1" else 1
propose.solve_knapsack = lambda losses, *given, **more: solve(
    [[sign * loss for loss in row] for row in losses], *given, **more
)
main()
"""


@POSIX
def test_processes_whose_losses_differ_search_together(tiny_llama, tiny_text_file, make_run, tmp_path, monkeypatch):
    """Other processors may round losses otherwise, and solve for other children: those of the first one count."""
    (tmp_path / "different.py").write_text(DIFFERENT, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    together("different", *prune(tiny_llama, tiny_text_file, tmp_path / "two", "--until", "search"))
    alone = run_stages(make_run(tiny_llama, tmp_path / "one"), "search").search
    found = read_json(tmp_path / "two" / "stages" / "search" / "result.json")
    assert tuple(found["allocation"]) == alone.allocation


@POSIX
def test_two_processes_evaluate_as_one(command, tmp_path):
    data, model = tiny_benchmarks(tmp_path / "data"), tiny_checkpoint(tmp_path / "model", max_position_embeddings=2048)
    text = tiny_text(tmp_path / "text.txt")
    request = (model, "--suite", "piqa:0,arc_challenge:2", "--data-dir", data, "--text", text, "--against", model)
    request += ("--tokens", 700, "--sequence-length", 100, "--batch-size", 2, "--dtype", "float32")
    first, second = together("darwinlm", "evaluate", *request, "--out", tmp_path / "two.json")
    assert first.stdout.count("\nPIQA:") + first.stdout.startswith("PIQA:") == 1
    assert second.stdout == ""
    assert command("evaluate", *request, "--out", tmp_path / "one.json").code == 0
    one, two = (json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8")) for name in ("one", "two"))
    assert one["copying"][0]["scores"][0]["tokens"] == 7 * 63
    assert [task["items"] for task in one["tasks"]] == [8, 8]
    same_figures(two, one)


def same_figures(ours: Any, theirs: Any, where: str = "") -> None:
    """Compare JSON: the same but for rounding in sums."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for name, value in theirs.items():
            same_figures(ours[name], value, f"{where} {name}")
    elif isinstance(theirs, list):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            same_figures(one, other, f"{where} {number}")
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6), where
    else:
        assert ours == theirs, where


QUICK = """
from darwinlm.cli.main import main
from darwinlm.steps.evaluate import speed
speed.NEW_TOKENS, speed.TIMED_TOKENS, speed.SPEED_ROUNDS = 4, 4, 1
main()
"""
"""The command, with speeds that are hardly measured."""


def same_bytes(ours: Path, theirs: Path) -> None:
    """Compare the weights that two runs wrote, byte for byte, and their allocations."""
    weights, others = (sorted(path.relative_to(run) for path in run.rglob("*.safetensors")) for run in (ours, theirs))
    assert {Path("model/model.safetensors"), Path("stages/database/block_0003.safetensors")} <= set(weights)
    assert weights == others
    for name in weights:
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    found, expected = (read_json(run / "stages/search/result.json") for run in (ours, theirs))
    assert found["allocation"] == expected["allocation"]


def test_another_process_gives_the_same_bytes(finished_llama, tiny_llama, tiny_text_file, tmp_path):
    """In another folder too, and nothing on stderr. Sets and dictionaries come in another order there."""
    done = python("-c", QUICK, *prune(tiny_llama, tiny_text_file, tmp_path / "out"), PYTHONHASHSEED="12345")
    assert done.stderr == ""
    assert str(tmp_path / "out" / "report.html") in done.stdout.replace("\n", "")
    same_bytes(tmp_path / "out", finished_llama)


def test_without_asserts_the_bytes_are_the_same(tiny_folder, tiny_text_file, make_run, tmp_path):
    """Under `python -O`: no assert does any work. A mixture, with every correction."""
    mixtral, training = tiny_folder("mixtral"), ("recovery.tokens=512", "recovery.batch_tokens=256")
    run_stages(make_run(mixtral, tmp_path / "with", *training), "report")
    words = prune(mixtral, tiny_text_file, tmp_path / "without", *sets(training))
    assert python("-O", "-c", QUICK, *words).stderr == ""
    assert (tmp_path / "without" / "report.html").is_file()
    same_bytes(tmp_path / "without", tmp_path / "with")
