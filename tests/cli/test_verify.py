"""`darwinlm verify`: a run is what its records claim, or it is said what isn't."""

import json

from tests.tiny.damage import flip


def test_a_finished_run(command, finished_llama):
    ended = command("verify", finished_llama).succeeded()
    assert "stage database: as recorded" in ended.out
    assert "model/model.safetensors: as recorded" in ended.out
    assert "budget: as recorded" in ended.out


def test_what_is_not_as_recorded(command, finished_copy, tmp_path):
    finished = finished_copy
    flip(finished / "model" / "model.safetensors")
    command("verify", finished).refused("model/model.safetensors", "was changed after the export")
    flip(finished / "model" / "model.safetensors")
    flip(finished / "stages" / "search" / "result.json")
    command("verify", finished).refused("stage search", "is damaged")
    flip(finished / "stages" / "search" / "result.json")
    path = finished / "summary.json"
    summary = json.loads(path.read_text())
    summary["budget"]["block_params"] += 1
    path.write_text(json.dumps(summary))
    command("verify", finished).refused("block parameters", "are stated")
    path.unlink()
    command("verify", finished).refused("hasn't written it yet")
    command("verify", tmp_path).refused("isn't the output folder of a run")
