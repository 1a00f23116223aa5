"""A run takes its documents from the whole of each file."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from rich.console import Console
from tests.tiny.recovering import recover_tiny

from darwinlm.console import Reporter
from darwinlm.data import document_hash, split_documents
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from darwinlm.stages import recover
from darwinlm.stages.text import text_stage

QUIET = Reporter(Console(quiet=True))
ASKED = ("text.evaluation_tokens=1024",)


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A thousand documents, and the place of each in the file by its hash."""
    texts = [
        f"The number {number} is followed by {number + 1}, and so on without an end." * 3 for number in range(1000)
    ]
    path = tmp_path_factory.mktemp("order") / "text.txt"
    path.write_text("\n\n\n".join(texts))
    return path, {document_hash(text): place for place, text in enumerate(texts)}


@pytest.fixture(scope="module", autouse=True)
def short_passages():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("darwinlm.stages.text.split_documents", partial(split_documents, document_tokens=32))
        yield


@pytest.fixture(scope="module")
def places(documents, tiny_llama, tiny_run_settings):
    """Places of a run's evaluation documents in their file."""

    def found(folder, *settings):
        overrides = {"model": str(tiny_llama), "text.source": str(documents[0]), "budget.keep": "60%"}
        run = Run(load_recipe(None, (*tiny_run_settings, *ASKED, *settings), overrides), folder, QUIET)
        return [documents[1][hashed] for hashed in text_stage(run)["evaluation"].document_hashes]

    return found


def test_documents_come_from_all_of_a_file(places, tmp_path):
    drawn = places(tmp_path / "a")
    assert max(drawn) > 500
    assert 300 < np.mean(drawn) < 700
    assert set(places(tmp_path / "c", "search.seed=5")) != set(drawn)


def test_training_takes_its_text_from_all_of_a_file(documents, inputs, tmp_path, monkeypatch):
    read = []
    pack = recover.pack_documents

    def watched(texts, *arguments, **options):
        def noted():
            for text in texts:
                read.append(documents[1][document_hash(text)])
                yield text

        return pack(noted(), *arguments, **options)

    monkeypatch.setattr(recover, "pack_documents", watched)
    small, teacher, _ = inputs
    recover_tiny(small, teacher, documents[0], tmp_path / "out")
    assert 300 < np.mean(read) < 700
    assert read != sorted(read)
