"""A run takes its documents from all of its files, not from where they begin."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console
from tests.tiny.recovering import recover_tiny

from darwinlm.artifact import read_json
from darwinlm.console import Reporter
from darwinlm.data import document_hash
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from darwinlm.stages import recover
from darwinlm.stages.text import text_stage

QUIET = Reporter(Console(quiet=True))
ASKED = ("text.evaluation_tokens=1024", "text.document_tokens=32")


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A thousand documents in a row, and where each stands by its hash."""
    texts = [
        f"The number {number} is followed by {number + 1}, and so on without an end." * 3 for number in range(1000)
    ]
    path = tmp_path_factory.mktemp("order") / "text.txt"
    path.write_text("\n\n\n".join(texts))
    return path, {document_hash(text): place for place, text in enumerate(texts)}


@pytest.fixture(scope="module")
def places(documents, tiny_llama, tiny_run_settings):
    """Where the evaluation text of a run stands in its file."""

    def found(folder, *settings):
        overrides = {"model": str(tiny_llama), "text.source": str(documents[0]), "budget.keep": "60%"}
        run = Run(load_recipe(None, (*tiny_run_settings, *ASKED, *settings), overrides), folder, QUIET)
        return [documents[1][hashed] for hashed in text_stage(run)["evaluation"].document_hashes]

    return found


def test_documents_come_from_all_of_a_file(places, tmp_path):
    drawn, ordered = places(tmp_path / "a"), places(tmp_path / "b", "text.shuffle_documents=0")
    assert max(ordered) < 500 < max(drawn)
    assert 300 < np.mean(drawn) < 700
    assert ordered == sorted(ordered)
    assert places(tmp_path / "a", "text.shuffle_documents=0") == ordered, "the order is part of what the text is"
    assert set(places(tmp_path / "c", "search.seed=5")) != set(drawn)


def test_training_takes_its_text_from_all_of_a_file(documents, inputs, tmp_path, monkeypatch):
    taken = {}
    pack = recover.pack_documents

    def watched(texts, *arguments, **options):
        def noted():
            for text in texts:
                read.append(documents[1][document_hash(text)])
                yield text

        read = taken.setdefault(len(taken), [])
        return pack(noted(), *arguments, **options)

    monkeypatch.setattr(recover, "pack_documents", watched)
    small, teacher, _ = inputs
    for out, held in (("drawn", 10000), ("ordered", 0)):
        recover_tiny(small, teacher, documents[0], tmp_path / out, f"text.shuffle_documents={held}")
        assert read_json(tmp_path / out / "darwinlm.json")
    drawn, ordered = taken.values()
    assert ordered == sorted(ordered)
    assert drawn != sorted(drawn)
    assert max(ordered) < max(drawn)
