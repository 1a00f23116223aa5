"""The text of runs: blocks begin with bos, passages come again, documents come from everywhere, short text is cut."""

import io
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tests.tiny.checkpoint import tiny_checkpoint, tiny_text
from tests.tiny.recovering import recover_tiny, watch_text
from tests.tiny.stages import result, run_stages
from tests.tiny.tokenizer import BOS_ID, tiny_tokenizer
from transformers import AutoTokenizer

from darwinlm.evaluation.evaluation_text import pack
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.repeats import ordinary_tokens, with_repeats


@pytest.fixture(scope="module", params=[True, False], ids=["adds bos", "adds none"])
def bos(request, tmp_path_factory):
    """A tiny model and a text, with a tokenizer that adds bos or doesn't."""
    home = tmp_path_factory.mktemp("bos")
    folder = tiny_checkpoint(home / "model")
    tiny_tokenizer(add_bos=request.param).save_pretrained(folder)
    return folder, tiny_text(home / "text.txt"), request.param


def test_blocks_begin_with_bos_in_the_text_of_a_run(bos, make_run, tmp_path):
    """Also where a tokenizer that differs in nothing else gave the text before."""
    folder, text, adds = bos
    model = Path(shutil.copytree(folder, tmp_path / "model"))
    for now in (not adds, adds):
        tiny_tokenizer(add_bos=now).save_pretrained(model)
        texts = result(make_run(model, tmp_path / "out", text=text), "text")
        assert {"calibration", "fitness", "validation", "evaluation"} <= set(texts)
        for purpose, blocks in texts.items():
            assert bool((blocks.tokens[:, 0] == BOS_ID).all()) == now, purpose


def test_blocks_begin_with_bos_in_the_text_that_is_trained_on(bos, tmp_path, monkeypatch):
    folder, text, adds = bos
    blocks, held_out = watch_text(monkeypatch)
    recover_tiny(folder, folder, text, tmp_path / "out", "recovery.tokens=1024")
    assert len(blocks) == 32
    assert bool((torch.stack(blocks + held_out)[:, 0] == BOS_ID).all()) == adds


def test_blocks_begin_with_bos_in_the_text_that_is_measured_on(bos):
    _, text, adds = bos
    blocks = pack(str(text), tiny_tokenizer(add_bos=adds), sequence_length=32, max_tokens=512).tokens
    assert blocks.shape == (16, 32)
    assert bool((blocks[:, 0] == BOS_ID).all()) == adds
    plain = pack(str(text), tiny_tokenizer(), sequence_length=32, max_tokens=512).tokens
    assert torch.equal(blocks[:, 1:], plain[:, 1:])


@pytest.fixture
def texts_of(tiny_llama, make_run, tmp_path):
    """The text of a run in a folder of this name, with more settings."""
    source = tiny_text(tmp_path / "text.txt", documents=200)
    return lambda name, *settings: result(make_run(tiny_llama, tmp_path / name, *settings, text=source), "text")


def test_every_purpose_but_evaluation_has_repeats_of_its_own_documents(texts_of, tiny_llama):
    more = ("search.rounds=[{tokens: 64, survivors: 1, training_tokens: 512}]",)
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


MUCH = ("text.calibration_tokens=65536", "search.rounds=[{tokens: 8192, survivors: 1}]", "refit.tokens=65536")


@pytest.fixture
def sixty(tmp_path):
    return tiny_text(tmp_path / "sixty.txt", documents=60)


def test_sixty_short_documents_make_a_model(tiny_llama, make_run, sixty, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    run = make_run(tiny_llama, tmp_path / "out", *MUCH, text=sixty, reporter=Reporter(console))
    made = run_stages(run, "report")
    said = console.export_text()
    assert made.report.saved.kl > 0
    tokens = {purpose: part.tokens.numel() for purpose, part in made.text.items()}
    assert tokens["calibration"] > tokens["fitness"] >= run.recipe.text.sequence_length
    wanted = sum(getattr(run.recipe.text, f"{name}_tokens") for name in tokens if name != "fitness")
    wanted += run.recipe.search.fitness_needed
    assert f"sixty.txt is short. The recipe asks for {wanted:,} tokens" in said
    assert f"and gets {sum(tokens.values()):,} (calibration {tokens['calibration']:,}, " in said
    hashes = [hashed for part in made.text.values() for hashed in part.document_hashes]
    assert len(hashes) == len(set(hashes)), "no document serves two purposes"


def test_text_that_the_model_wrote_is_not_named_by_its_folder(tiny_llama, make_run, sixty, tmp_path):
    own = tmp_path / "own_text" / "documents"
    own.mkdir(parents=True)
    shutil.copy(sixty, own)
    console = Console(record=True, width=200, file=io.StringIO())
    run = make_run(tiny_llama, tmp_path / "out", *MUCH, text=own, reporter=Reporter(console))
    run_stages(run, "text")
    said = console.export_text()
    assert re.search(r"text: the model's own text has [\d,]+ of [\d,]+ tokens \(calibration .*; the run goes on", said)
    assert "is short" not in said
    (own / sixty.name).write_text("A few words.")
    few = make_run(tiny_llama, tmp_path / "few", *MUCH, text=own)
    with pytest.raises(DataError, match=r"the model's own text has \d+ tokens.*: give text with --text, or"):
        run_stages(few, "text")


@pytest.mark.parametrize("lines", [1, 2])
def test_a_long_text_of_few_documents_is_no_short_one(tiny_llama, make_run, tmp_path, lines):
    """What it lacks is documents. The tokens that were read of it are no more than were asked for."""
    words = tiny_text(tmp_path / "words.txt").read_text(encoding="utf-8").replace("\n", " ")[:30_000]
    line = tmp_path / "line.txt"
    line.write_text("\n\n\n".join([words, words[1:]][:lines]), encoding="utf-8")
    said = rf"line.txt has {lines} documents?, but no document serves two of calibration"
    with pytest.raises(DataError, match=said):
        result(make_run(tiny_llama, tmp_path / "out", *MUCH, text=line), "text")


def test_text_for_training_candidates_is_not_shortened(tiny_llama, make_run, sixty, tmp_path):
    rounds = "search.rounds=[{tokens: 64, survivors: 1, training_tokens: 100000}]"
    with pytest.raises(DataError, match=r"is too short: .*training has"):
        result(make_run(tiny_llama, tmp_path / "out", rounds, text=sixty), "text")
