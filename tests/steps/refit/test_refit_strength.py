"""The interpolation factor between stitched and fitted weights."""

import pytest
import torch
from tests.tiny.stages import result, run_stages
from tests.tiny.whole import Whole

from darwinlm.runtime.artifact import read_tensors
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.refit import strength as refit_strength


@pytest.fixture(scope="module")
def whole(finished_llama, tiny_llama, make_run):
    run = make_run(tiny_llama, finished_llama)
    return Whole(run, run_stages(run, "refit"))


@pytest.fixture
def refitted(whole, tiny_llama, make_run, tmp_path, monkeypatch):
    """Refit the finished run's stitched model again, with other strengths."""

    def make(*strengths):
        monkeypatch.setattr(refit_strength, "STRENGTHS", strengths)
        return result(make_run(tiny_llama, tmp_path / "out"), "refit")

    return make


def test_it_goes_as_far_as_is_best_on_validation_text(whole):
    record = whole.refit.record
    losses = {float(strength): loss for strength, loss in record["kl_by_strength"].items()}
    assert set(losses) == {0.0, *refit_strength.STRENGTHS}
    assert losses[record["strength"]] == min(losses.values()) == record["kl_after"]
    assert record["kl_before"] == losses[0.0]
    assert record["kept"] == "refit"


@pytest.mark.parametrize("strengths", [(1.0,), (0.25, 1.0), (0.5, 0.75, 1.0)])
def test_weights_and_losses_are_those_of_the_way_there(whole, refitted, strengths):
    found = refitted(*strengths)
    losses = {float(strength): loss for strength, loss in found.record["kl_by_strength"].items()}
    assert set(losses) == {0.0, *strengths}
    assert found.record["strength"] in strengths, "any of them is better than none here"
    checkpoint = whole.stitch.checkpoint
    stitched, corrected = (each.state_dict() for each in (checkpoint.load(torch.float32), found.model()))
    changed = {name: weight for name, weight in corrected.items() if not torch.equal(weight, stitched[name])}
    paths = list(found.folder.glob("block_*.safetensors"))
    for path in paths:
        prefix = checkpoint.block_prefix(int(path.stem.removeprefix("block_")))
        for name, fitted in read_tensors(path).items():
            before = stitched[prefix + name]
            expected = before + found.record["strength"] * (fitted - before)
            torch.testing.assert_close(changed.pop(prefix + name), expected, rtol=1e-5, atol=1e-6)
    assert paths
    assert not changed
    tokens = whole.text["validation"].tokens
    models = {"0": checkpoint.load(torch.float32), "best": found.model()}
    measured = measure_quality(whole.checkpoint.load(torch.float32), models, tokens, batch_tokens=256)
    assert losses[0.0] == pytest.approx(measured["0"].kl, rel=1e-3)
    assert found.record["kl_after"] == pytest.approx(measured["best"].kl, rel=1e-3)


def test_none_of_it_is_taken_where_all_is_worse(whole, refitted, monkeypatch):
    given = iter([2.0, 1.0, 1.5])  # all the way, none of it, half
    monkeypatch.setattr(refit_strength, "stream_divergence", lambda dense, other: next(given))
    found = refitted(0.5, 1.0)
    assert found.record["kept"] == "stitched"
    assert found.record["strength"] == 0
    assert (found.record["kl_before"], found.record["kl_after"]) == (1.0, 1.5)
    stitched = found.checkpoint.read(found.checkpoint.block_prefix(0))
    assert all(torch.equal(weight, stitched[name]) for name, weight in found.block(0).items())
