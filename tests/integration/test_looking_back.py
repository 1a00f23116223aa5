"""All text of a run except evaluation text repeats earlier passages, including the text of recovery."""

from __future__ import annotations

import pytest
import torch
from rich.console import Console
from tests.tiny.checkpoint import tiny_text
from tests.tiny.recovering import recover_tiny
from transformers import AutoTokenizer

from darwinlm.artifact import read_json
from darwinlm.console import Reporter
from darwinlm.data import document_hash
from darwinlm.data.looking_back import ordinary_tokens, with_repeats
from darwinlm.errors import RecipeError
from darwinlm.recipe import load_recipe
from darwinlm.recovery import train as training
from darwinlm.run import Run
from darwinlm.stages.text import text_stage

QUIET = Reporter(Console(quiet=True))


@pytest.fixture
def texts_of(tiny_llama, tiny_run_settings, tmp_path):
    """The text of a run in a folder of this name, with more settings."""
    source = tiny_text(tmp_path / "text.txt", documents=200)

    def made(name, *settings):
        overrides = {"model": str(tiny_llama), "text.source": str(source), "budget.keep": "60%"}
        return text_stage(Run(load_recipe(None, (*tiny_run_settings, *settings), overrides), tmp_path / name, QUIET))

    return made


def test_every_purpose_but_evaluation_has_repeats_of_its_own_documents(texts_of, tiny_llama):
    more = ("search.stages=[{tokens: 64, survivors: 1, training_tokens: 512}]",)
    plain, mixed = texts_of("plain", "text.looking_back=0", *more), texts_of("mixed", "text.looking_back=25%", *more)
    ordinary = ordinary_tokens(AutoTokenizer.from_pretrained(tiny_llama))
    assert set(plain) == {"calibration", "fitness", "validation", "training", "evaluation"}
    for purpose, blocks in plain.items():
        found = mixed[purpose]
        assert found.document_hashes == blocks.document_hashes, "no document changes its purpose"
        assert found.tokens.shape == blocks.tokens.shape
        share = 0 if purpose == "evaluation" else 0.25
        expected = with_repeats(blocks.tokens, share=share, seed=0, ordinary=ordinary)
        assert torch.equal(found.tokens, expected), purpose
        assert torch.equal(found.tokens, blocks.tokens) == (purpose == "evaluation")


def test_the_share_is_part_of_what_the_text_is_and_off_leaves_no_trace(texts_of, tmp_path):
    key = tmp_path / "run" / "stages" / "text" / "key.json"
    some = texts_of("run")["fitness"].digest
    assert read_json(key)["looking_back"] == 0.2
    other = texts_of("run", "text.looking_back=0.1")["fitness"].digest
    assert read_json(key)["looking_back"] == 0.1
    assert other != some
    texts_of("run", "text.looking_back=0")
    assert "looking_back" not in read_json(key), "runs from before there was a share go on"
    assert texts_of("run")["fitness"].digest == some


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_what_is_trained_on_has_the_share_too(tiny_llama, tmp_path, monkeypatch, share):
    seen = []
    whole = training.train

    def watched(student, teacher, blocks, held_out, *rest, **more):
        seen.extend(blocks[number]["input_ids"] for number in range(len(blocks)))
        return whole(student, teacher, blocks, held_out, *rest, **more)

    monkeypatch.setattr(training, "train", watched)
    text = tmp_path / "text.txt"
    # One byte is one token, and no document has one twice: what repeats is ours.
    letters = [chr(code) for code in range(33, 127)]
    order = torch.Generator().manual_seed(0)
    documents = ["".join(letters[i] for i in torch.randperm(len(letters), generator=order)) for _ in range(400)]
    text.write_text("\n\n\n".join(documents))
    assert len({document_hash(document) for document in documents}) == 400
    settings = ("recovery.tokens=1024", f"text.looking_back={share}")
    recover_tiny(tiny_llama, tiny_llama, text, tmp_path / "out", *settings)
    repeated = [32 - len(block.unique()) for block in seen]
    assert sum(each >= 4 for each in repeated) / len(repeated) == pytest.approx(1 if share else 0, abs=0.35)


def test_more_than_half_is_refused(tiny_llama):
    with pytest.raises(RecipeError, match=r"text.looking_back.* 0\.5"):
        load_recipe(None, ("text.looking_back=0.6",), {"model": str(tiny_llama), "budget.keep": "60%"})
