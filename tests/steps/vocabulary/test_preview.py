"""What a plan says of a smaller vocabulary."""

from pathlib import Path

import pytest
from tests.steps.vocabulary.test_languages import TEXTS, TOKENS
from tests.tiny.models import tiny_model
from tests.tiny.vocabulary import byte_level, fast

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import load_recipe
from darwinlm.runs.plan_model import notes_of, plan
from darwinlm.runtime.errors import RecipeError
from darwinlm.steps.vocabulary.preview import preview

KEPT = "576"
"""Tokens to keep, of about 950."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tokenizer knows eleven languages."""
    folder = tmp_path_factory.mktemp("model")
    words = [*TEXTS.values(), *(word for text in TEXTS.values() for word in text.split())]
    tiny_model("llama", vocab_size=TOKENS + 1).save_pretrained(folder)
    fast(byte_level(words, TOKENS)).save_pretrained(folder)
    return folder


@pytest.fixture
def english(tmp_path: Path) -> Path:
    """A text without other scripts."""
    path = tmp_path / "english.txt"
    path.write_text("\n\n".join([TEXTS["English"], TEXTS["code"]]), encoding="utf-8")
    return path


def clauses(model: Path, text: object, vocabulary: str) -> tuple[str, ...]:
    settings = [f"vocabulary={vocabulary}", "budget.params=100k"]
    recipe = load_recipe(None, settings, {"model": str(model), "text.source": str(text)})
    return preview(Checkpoint.open(model), recipe.vocabulary, recipe.text)


def test_it_says_which_scripts_lose_tokens(model: Path, english: Path, tmp_path: Path) -> None:
    said = "\n".join(clauses(model, english, KEPT))
    assert "vocabulary: Arabic: " in said
    assert "vocabulary: Cyrillic: " in said
    assert "tokens go; text in it takes about" in said
    both = tmp_path / "both.txt"
    both.write_text("\n\n".join([TEXTS["English"], TEXTS["Russian"]]), encoding="utf-8")
    assert not any("Cyrillic" in clause for clause in clauses(model, both, KEPT))


def test_it_says_which_scripts_go_first_where_the_run_chooses_the_size(model: Path, english: Path) -> None:
    (clause,) = clauses(model, english, "auto")
    assert clause.startswith("vocabulary: the text uses no token of these scripts, which go first: ")
    assert "Cyrillic (" in clause
    assert "Latin" not in clause


def test_it_says_where_nothing_can_be_known(model: Path, english: Path) -> None:
    for source in ("self", f"self,{english}", "hf:owner/name"):
        (clause,) = clauses(model, source, KEPT)
        assert clause.startswith("the run says which tokens go, by script")


def test_a_whole_vocabulary_needs_no_words_and_one_that_is_too_small_is_refused(model: Path, english: Path) -> None:
    recipe = load_recipe(None, (), {"model": str(model), "text.source": str(english)})
    assert preview(Checkpoint.open(model), recipe.vocabulary, recipe.text) == ()
    with pytest.raises(RecipeError, match="64 tokens requested, but bytes, digits, white space, special tokens"):
        clauses(model, english, "64")


def test_a_plan_shows_it(model: Path, english: Path) -> None:
    settings = ["units.mlp_multiple=8"]
    planned = plan(model, keep=0.5, vocab=KEPT, text=english, device="h100", assignments=settings)
    assert any(note.startswith("vocabulary: Cyrillic: ") for note in notes_of(planned))
    planned = plan(model, keep=0.5, text=english, device="h100", assignments=settings)
    assert not any(note.startswith("vocabulary: ") for note in notes_of(planned))
