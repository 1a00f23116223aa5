"""Models that read texts one by one, pruned from end to end."""

import json

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import darwinlm
from darwinlm.report.comparison import passages
from darwinlm.runtime.errors import ModelError, RecipeError
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint
from tests.tiny.readers import tiny_embedder, tiny_pairs, tiny_scorer

READING = (*(value for value in SETTINGS if "sequence_length" not in value), "text.sequence_length=64")


def pruned(model, text, out, **more):
    return darwinlm.prune(model, out, text=text, keep=0.6, assignments=READING, **more)


@pytest.mark.parametrize("labels", [1, 3])
def test_a_scorer_is_pruned_and_loads_in_stock_libraries(labels, tmp_path):
    from sentence_transformers import CrossEncoder

    model = tiny_scorer(tmp_path / "dense", labels=labels)
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    result = pruned(model, pairs, tmp_path / "run")
    summary = result.summary
    assert summary.saved.block_params <= 0.6 * summary.dense.block_params
    assert summary.saved.metrics["distance"] > 0 == summary.dense.metrics["distance"]
    assert ("score_correlation" in summary.saved.metrics) == (labels == 1)
    assert {score.name for score in summary.saved.reading.scores} >= (
        {"AUC", "nDCG@10"} if labels == 1 else {"accuracy"}
    )
    assert passages(summary)[0].heading == "Labels"
    config = json.loads((result.model / "config.json").read_text())
    assert config["architectures"] == ["DarwinLlamaForSequenceClassification"]
    loaded = AutoModelForSequenceClassification.from_pretrained(result.model)
    encoder = CrossEncoder(str(result.model), device="cpu", trust_remote_code=True)
    scores = encoder.predict(
        [("river stone", "light winter")], convert_to_tensor=True, activation_fn=torch.nn.Identity()
    )
    inputs = AutoTokenizer.from_pretrained(result.model)("river stone", "light winter", return_tensors="pt")
    torch.testing.assert_close(scores[0].flatten(), loaded(**inputs).logits[0].flatten(), rtol=1e-4, atol=1e-4)
    page = result.report.read_text()
    assert "perplexity" not in page.lower()


def test_an_embedder_keeps_its_folder(tmp_path):
    from sentence_transformers import SentenceTransformer

    model = tiny_embedder(tmp_path / "dense")
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    result = pruned(model, pairs, tmp_path / "run")
    assert 0 < result.summary.saved.metrics["cosine"] < 1
    assert {score.name for score in result.summary.saved.reading.scores} == {"nDCG@10", "MRR@10"}
    kept = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    saved = {path.relative_to(result.model).as_posix() for path in result.model.rglob("*") if path.is_file()}
    assert kept <= saved
    embedder = SentenceTransformer(str(result.model), device="cpu", trust_remote_code=True)
    assert embedder.prompts["query"] == "river: "
    assert embedder.encode(["river stone"]).shape == (1, 48)


def test_a_language_model_that_answers_keeps_its_answers(tmp_path):
    model = tiny_checkpoint(tmp_path / "dense")
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    given = (*READING, "text.template='about {query}: {document} or'")
    result = darwinlm.prune(model, tmp_path / "run", text=pairs, keep=0.6, answers="a,b", assignments=given)
    saved = result.summary.saved
    assert saved.metrics["distance"] > 0
    assert {"same_label", "score_correlation"} <= saved.metrics.keys()
    assert {"accuracy", "AUC", "nDCG@10"} <= {score.name for score in saved.reading.scores}


def test_recovery_brings_scores_closer(tmp_path):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl", queries=160)
    pruned(model, pairs, tmp_path / "run")
    trained = darwinlm.recover(tmp_path / "run", tmp_path / "recovered", tokens=6400).summary
    assert trained.saved.metrics["distance"] < trained.models["before"].metrics["distance"]
    assert trained.steps["recover"].unit == "distance of scores"


def test_the_smaller_model_is_chosen_by_time(tmp_path):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    given = (*READING, "budget.prefill_tokens=64")
    result = darwinlm.prune(model, tmp_path / "run", text=pairs, speedup=1.02, assignments=given)
    assert result.summary.saved.block_params <= result.summary.dense.block_params


REFUSED = {
    "its own text": ({"text": None}, RecipeError, r"gives its score and can't write the text .*--text pairs\.jsonl"),
    "a vocabulary": ({"vocab": 0.5}, RecipeError, r"--vocab is for models that write"),
    "answers": ({"answers": "yes,no"}, RecipeError, r"--answers is for language models that judge texts"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_scorer_cannot_do_is_refused(case, tmp_path):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    options, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        pruned(model, options.pop("text", pairs), tmp_path / "run", **options)
    assert not (tmp_path / "run" / "stages").exists() or not any((tmp_path / "run" / "stages").iterdir())


def test_a_file_budget_is_refused(tmp_path):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(RecipeError, match=r"budget\.file is the size of a GGUF file, .* saved as a folder alone"):
        darwinlm.prune(model, tmp_path / "run", text=pairs, file="1MB", assignments=READING)


@pytest.mark.parametrize("answers", ["yes", "river,river", "river stone light,no"])
def test_answers_must_be_two_tokens(answers, tmp_path):
    model, pairs = tiny_checkpoint(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(RecipeError, match=r"text\.answers"):
        darwinlm.prune(model, tmp_path / "run", text=pairs, answers=answers, assignments=READING)


def test_commands_for_models_that_write_are_refused(tmp_path):
    model = tiny_scorer(tmp_path / "dense")
    with pytest.raises(ModelError, match=r"gives scores or embeddings, not text: load it with CrossEncoder"):
        darwinlm.load(model)
