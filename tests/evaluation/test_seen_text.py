"""An evaluation says what of its text the run has read before: the same documents, near copies, no text at all."""

import json
import random
import re
import shutil
import string
from pathlib import Path

import numpy as np
import pytest
from tests.tiny.stages import run_stages
from tests.tiny.summaries import made, searched, told
from transformers import AutoTokenizer

from darwinlm.evaluation.seen_text import run_of
from darwinlm.report.card import model_card
from darwinlm.report.page import render_page
from darwinlm.runtime.console import Reporter
from darwinlm.steps.text.shared_passages import PASSAGE, covered, hashes

SETTINGS = ("--tokens", 2048, "--sequence-length", 32, "--dtype", "float32")


def letters(path: Path, seed: int) -> Path:
    """A text whose passages come by chance in no other."""
    rng = random.Random(seed)
    documents = ["".join(rng.choices(string.ascii_letters, k=100)) for _ in range(24)]
    path.write_text("\n\n\n".join(documents), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> Path:
    return letters(tmp_path_factory.mktemp("text") / "seen.txt", 0)


@pytest.fixture(scope="module")
def run(seen, tiny_llama, make_run, tmp_path_factory) -> Path:
    """A run that has read a text, and holds a model."""
    folder = tmp_path_factory.mktemp("run") / "out"
    run_stages(make_run(tiny_llama, folder, text=seen), "text")
    shutil.copytree(tiny_llama, folder / "model")
    return folder


@pytest.fixture
def evaluate(command, run, tmp_path):
    """Evaluate the run's model, or another one, on a text; what was said, and the overlap."""

    def evaluate(text: Path, model: Path = run / "model") -> tuple[str, dict]:
        out = tmp_path / f"{text.name}.json"
        said = command("evaluate", model, "--text", text, *SETTINGS, "--out", out).succeeded().out
        out = json.loads(out.read_text(encoding="utf-8"))
        return said, out["texts"][0]["seen"]

    return evaluate


def test_the_runs_own_text_was_seen(evaluate, seen):
    said, overlap = evaluate(seen)
    count = sum(overlap["seen_documents"].values())
    assert 0 < count < overlap["documents"], "its evaluation text doesn't count"
    assert overlap["seen_documents"].keys() >= {"calibration", "fitness"}
    assert f"{seen}: the run has read {count} of these {overlap['documents']} documents (calibration " in said


def test_near_copies_were_seen(evaluate, seen, tmp_path):
    copies = tmp_path / "copies.txt"
    documents = seen.read_text(encoding="utf-8").split("\n\n\n")
    copies.write_text("\n\n\n".join(f"{number} {text}" for number, text in enumerate(documents)), encoding="utf-8")
    said, overlap = evaluate(copies)
    assert overlap["seen_documents"] == {}
    assert overlap["seen_passages"] > 0.2
    assert re.search(r"copies\.txt: \d\d% of its tokens are in passages that the run has read: near copies", said)


def test_a_run_on_near_copies_says_so_beside_its_figures(tiny_llama, make_run, tmp_path):
    copies, said = tmp_path / "copies.txt", []
    words = "On the river stands a mill of stone, and behind it the house of the miller and a garden. "
    copies.write_text("\n\n\n".join(f"{words}It was built in {1500 + year}." for year in range(400)), encoding="utf-8")
    reporter = Reporter(quiet=True)
    reporter.say = said.append
    opened = make_run(tiny_llama, tmp_path / "out", text=copies, reporter=reporter)
    run_stages(opened, "text")
    (line,) = (line for line in said if line.startswith("text: the evaluation text isn't new"))
    assert re.search(r"new, [89]\d% of it in passages that the run's other text has too \(near copies", line)


def test_a_page_and_a_card_say_what_share_of_their_text_is_not_new():
    for known, stands in ((0.87, True), (0.16, False), (None, False)):
        summary = made(told(searched(), text={"known": known}))
        for report in (render_page(summary), model_card(summary)):
            assert (" 87% of it in passages that the run" in report) == stands


def test_new_text_was_not(evaluate, seen, tiny_llama, tmp_path):
    for text, model in ((letters(tmp_path / "new.txt", 1), ()), (seen, (tiny_llama,))):
        said, overlap = evaluate(text, *model)
        assert (overlap["seen_documents"], overlap["seen_passages"]) == ({}, 0.0)
        assert "read" not in said


def test_special_tokens_are_no_text(evaluate, tiny_llama, tmp_path):
    end = AutoTokenizer.from_pretrained(tiny_llama).eos_token
    (tmp_path / "special.txt").write_text("\n\n\n".join([end * 200, f"a{end * 3}" * 100]), encoding="utf-8")
    said, overlap = evaluate(tmp_path / "special.txt")
    assert overlap["special_tokens"] > 0.5
    assert re.search(r"special\.txt: \d\d% of its tokens are special ones, so this is no usual text", said)


def test_recovery_trained_on_the_same_source(evaluate, run, seen, tmp_path):
    said, overlap = evaluate(seen)
    assert not overlap["trained_on_source"]
    recovered = run / "stages" / "recover"
    recovered.mkdir()
    (recovered / "manifest.json").touch()
    shutil.copy(run / "stages" / "text" / "key.json", recovered)
    try:
        said, overlap = evaluate(seen)
    finally:
        shutil.rmtree(recovered)
    assert overlap["trained_on_source"]
    assert f"{seen}: recovery trained on other documents of this source, or on the same ones" in said


def test_passages_are_found_where_they_are():
    rng = np.random.default_rng(0)
    known, text = rng.integers(0, 1000, 200), rng.integers(0, 1000, 100)
    text[40:60] = known[100:120]
    expected = np.zeros(100, bool)
    expected[40:60] = True
    assert np.array_equal(covered(text, np.unique(hashes(known))), expected)
    assert len(hashes(known[: PASSAGE - 1])) == 0
    assert not covered(text[:5], hashes(known)).any()


def test_a_folder_of_no_run_has_none(tiny_llama):
    assert run_of(str(tiny_llama)) is None
    assert run_of("owner/name") is None
