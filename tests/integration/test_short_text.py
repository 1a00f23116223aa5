"""If the text is shorter than the recipe requests, every part shrinks, and the run reports it."""

from __future__ import annotations

import io
import random

import pytest
from rich.console import Console

from darwinlm.console import Reporter
from darwinlm.errors import DataError
from darwinlm.pipeline import run_stages
from darwinlm.recipe import load_recipe
from darwinlm.run import Run
from darwinlm.stages.text import text_stage

WORDS = ("river", "stone", "light", "under", "water", "runs", "over", "cold", "hills", "into", "quiet", "fields")
MUCH = ("text.calibration_tokens=65536", "search.stages=[{tokens: 8192, survivors: 1}]", "refit.tokens=65536")


@pytest.fixture
def sixty(tmp_path):
    rng = random.Random(0)
    path = tmp_path / "sixty.txt"
    path.write_text("\n\n\n".join(" ".join(rng.choices(WORDS, k=40)) for _ in range(60)))
    return path


def opened(model, text, folder, console, *settings):
    recipe = load_recipe(None, settings, {"model": str(model), "text.source": str(text), "budget.keep": "60%"})
    return Run(recipe, folder, Reporter(console))


def test_sixty_short_documents_make_a_model(tiny_llama, tiny_run_settings, sixty, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    run = opened(tiny_llama, sixty, tmp_path / "out", console, *tiny_run_settings, *MUCH)
    made = run_stages(run, "report")
    said = console.export_text()
    assert made.report.saved.kl > 0
    tokens = {purpose: part.tokens.numel() for purpose, part in made.text.items()}
    assert tokens["calibration"] > tokens["fitness"] >= run.recipe.text.sequence_length
    assert f"sixty.txt is short. The recipe asks for {sum(wanted(run).values()):,} tokens" in said
    assert f"and gets {sum(tokens.values()):,} (calibration {tokens['calibration']:,}, " in said
    hashes = [hashed for part in made.text.values() for hashed in part.document_hashes]
    assert len(hashes) == len(set(hashes)), "no document serves two purposes"


def wanted(run):
    text = {name: getattr(run.recipe.text, f"{name}_tokens") for name in ("calibration", "validation", "evaluation")}
    return {**text, "fitness": run.recipe.search.fitness_needed}


def test_enough_text_is_not_called_short(make_run, tiny_llama, tmp_path):
    console = Console(record=True, width=200, file=io.StringIO())
    text_stage(make_run(tiny_llama, tmp_path / "out", reporter=Reporter(console)))
    assert "is short" not in console.export_text()


def test_less_than_a_block_for_each_purpose_is_refused(tiny_llama, tiny_run_settings, tmp_path):
    (tmp_path / "short.txt").write_text("the river runs under the stone")
    run = opened(tiny_llama, tmp_path / "short.txt", tmp_path / "out", Console(quiet=True), *tiny_run_settings)
    with pytest.raises(DataError, match=r"short\.txt has [\d,]+ tokens, less than a block of \d+ for each"):
        text_stage(run)


def test_text_for_training_candidates_is_not_shortened(tiny_llama, tiny_run_settings, sixty, tmp_path):
    settings = (*tiny_run_settings, "search.stages=[{tokens: 64, survivors: 1, training_tokens: 100000}]")
    with pytest.raises(DataError, match=r"is too short: .*training has"):
        text_stage(opened(tiny_llama, sixty, tmp_path / "out", Console(quiet=True), *settings))
