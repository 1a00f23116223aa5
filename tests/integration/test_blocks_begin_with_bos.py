"""Where the tokenizer adds bos, every block of text begins with it, whatever the text is for: models expect it."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from tests.tiny.checkpoint import tiny_checkpoint, tiny_text
from tests.tiny.recovering import recover_tiny
from tests.tiny.tokenizer import BOS_ID, tiny_tokenizer

from darwinlm.artifact import read_json
from darwinlm.console import Reporter
from darwinlm.evaluation.text import pack
from darwinlm.recipe import load_recipe
from darwinlm.recovery import train as training
from darwinlm.run import Run
from darwinlm.stages.text import text_stage

QUIET = Reporter(Console(quiet=True))


@pytest.fixture(scope="module", params=[True, False], ids=["adds bos", "adds none"])
def model(request, tmp_path_factory):
    """A tiny model and a text, with a tokenizer that adds bos or doesn't."""
    home = tmp_path_factory.mktemp("bos")
    folder = tiny_checkpoint(home / "model")
    tiny_tokenizer(add_bos=request.param).save_pretrained(folder)
    return folder, tiny_text(home / "text.txt"), request.param


def test_in_the_text_of_a_run(model, tiny_run_settings, tmp_path):
    folder, text, adds = model
    overrides = {"model": str(folder), "text.source": str(text), "budget.keep": "60%"}
    run = Run(load_recipe(None, tiny_run_settings, overrides), tmp_path / "out", QUIET)
    texts = text_stage(run)
    assert {"calibration", "fitness", "validation", "evaluation"} <= set(texts)
    for purpose, blocks in texts.items():
        assert bool((blocks.tokens[:, 0] == BOS_ID).all()) == adds, purpose
    key = read_json(tmp_path / "out" / "stages" / "text" / "key.json")
    assert (key["blocks_begin_with"] is not None) == adds


def test_in_the_text_that_is_trained_on(model, tmp_path, monkeypatch):
    folder, text, adds = model
    seen = []
    whole = training.train

    def watched(student, teacher, blocks, held_out, *rest, **more):
        seen.extend(blocks[number]["input_ids"] for number in range(len(blocks)))
        seen.extend(held_out)
        return whole(student, teacher, blocks, held_out, *rest, **more)

    monkeypatch.setattr(training, "train", watched)
    recover_tiny(folder, folder, text, tmp_path / "out", "recovery.tokens=1024")
    assert len(seen) > 32
    assert bool((torch.stack(seen)[:, 0] == BOS_ID).all()) == adds


def test_in_the_text_that_is_measured_on(model):
    _, text, adds = model
    blocks = pack(str(text), tiny_tokenizer(add_bos=adds), sequence_length=32, max_tokens=512)
    assert blocks.shape == (16, 32)
    assert bool((blocks[:, 0] == BOS_ID).all()) == adds
    plain = pack(str(text), tiny_tokenizer(), sequence_length=32, max_tokens=512)
    assert torch.equal(blocks[:, 1:], plain[:, 1:])
