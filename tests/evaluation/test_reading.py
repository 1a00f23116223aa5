"""`darwinlm evaluate` of models that give scores or embeddings, compared with sentence-transformers."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from tests.tiny.checkpoint import tiny_checkpoint, tiny_text
from tests.tiny.damage import edit_config, edit_weights
from tests.tiny.readers import tiny_embedder, tiny_pairs, tiny_scorer

SIZES = ("--sequence-length", 64, "--tokens", 100_000, "--dtype", "float32")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    return tiny_scorer(tmp_path_factory.mktemp("scorer") / "dense")


def changed(model, folder):
    """The model with half of its head's weights."""
    import shutil

    shutil.copytree(model, folder)
    edit_weights(folder, lambda tensors: tensors["score.weight"][:, ::2].zero_())
    return folder


def scores_by_query(model, file):
    from sentence_transformers import CrossEncoder

    read = [json.loads(line) for line in file.read_text().splitlines()]
    encoder = CrossEncoder(str(model), device="cpu", max_length=64)
    texts = [(pair["query"], pair["document"]) for pair in read]
    scores = encoder.predict(texts, activation_fn=torch.nn.Identity()).astype(np.float64)
    groups = {}
    for pair, score in zip(read, scores, strict=True):
        groups.setdefault(pair["query"], []).append((score, pair["label"]))
    return scores, list(groups.values())


def mean_gain(groups):
    """nDCG@10 with one right text in each group."""
    ranks = [sum(score >= right for score, _ in group for right, label in group if label) for group in groups]
    return np.mean([1 / np.log2(rank + 1) for rank in ranks])


def test_scores_are_those_of_sentence_transformers(scorer, pairs, tmp_path, command):
    other, out = changed(scorer, tmp_path / "other"), tmp_path / "out.json"
    ended = command("evaluate", other, "--text", pairs, "--against", scorer, *SIZES, "--out", out).succeeded()
    (text,) = json.loads(out.read_text())["reading"]
    model, dense = text["models"]
    assert text["texts"] == 160
    own, groups = scores_by_query(other, pairs)
    theirs, dense_groups = scores_by_query(scorer, pairs)
    assert model["metrics"]["distance"] == pytest.approx(0.5 * np.mean((own - theirs) ** 2), rel=1e-3)
    assert model["metrics"]["score_correlation"] == pytest.approx(spearmanr(own, theirs).statistic, abs=1e-3)
    gains = {score["name"]: score for score in model["scores"]}
    assert gains["nDCG@10"]["value"] == pytest.approx(mean_gain(groups))
    assert gains["nDCG@10"]["difference"] == pytest.approx(mean_gain(groups) - mean_gain(dense_groups))
    assert gains["nDCG@10"]["count"] == 40
    assert dense["metrics"]["distance"] == 0
    assert "nDCG@10 (40)" in ended.out
    assert "perplexity" not in ended.out


def test_an_embedder_alone_has_scores_without_differences(pairs, tmp_path, command):
    model, out = tiny_embedder(tmp_path), tmp_path / "out.json"
    command("evaluate", model, "--text", pairs, *SIZES, "--out", out).succeeded()
    (found,) = json.loads(out.read_text())["reading"][0]["models"]
    assert {score["name"] for score in found["scores"]} == {"nDCG@10", "MRR@10"}
    assert all(score["difference"] is None for score in found["scores"])
    assert found["metrics"] == {}


def test_texts_without_labels_are_compared_with_the_dense_model(scorer, tmp_path, command):
    text = tiny_text(tmp_path / "text.txt")
    ended = command("evaluate", scorer, "--text", text, "--against", scorer, *SIZES[:2], "--tokens", 256).succeeded()
    assert "distance to dense" in ended.out
    assert "no scores: the texts have no labels" in ended.out


@pytest.mark.parametrize(
    ("problem", "what"), [("regression", "scores"), ("multi_label_classification", "scores of labels")]
)
def test_labels_that_models_with_several_scores_cannot_be_compared_with(problem, what, pairs, tmp_path, command):
    model = tiny_scorer(tmp_path / "dense", labels=3)
    edit_config(model, problem_type=problem)
    ended = command("evaluate", model, "--text", pairs, *SIZES[:2], "--tokens", 256).succeeded()
    assert f"labels aren't compared with its {what}, of which each text has several" in ended.out
    assert "no labels" not in ended.out


def test_contradictory_labels_are_named(scorer, tmp_path, command):
    """Each pair counts once, with the label that was read first."""
    made = tiny_pairs(tmp_path / "pairs.jsonl", queries=20).read_text().splitlines()
    path = tmp_path / "twice.jsonl"
    path.write_text("\n".join([*made, made[4], made[5].replace('"label": 0', '"label": 1')]))
    ended = command("evaluate", scorer, "--text", path, *SIZES).succeeded()
    said = " ".join(ended.out.split())
    assert "80 texts" in said
    assert "1 text or pair repeats another one with a different label, such as" in said
    assert {"line 6 (0)", "line 82 (1)"} <= {place for place in ("line 6 (0)", "line 82 (1)") if place in said}
    plain = command("evaluate", scorer, "--text", tmp_path / "pairs.jsonl", *SIZES).succeeded()
    assert "different label" not in plain.out


REFUSED = {
    "--suite piqa": "--suite: this is for models that write",
    "--chat --against {scorer}": "--chat: this is for models that write",
    "--text {pairs} --against {writer}": "doesn't give the same as",
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_measured_is_refused(options, scorer, pairs, tmp_path, command):
    writer = tiny_checkpoint(tmp_path / "writer")
    given = options.format(scorer=scorer, pairs=pairs, writer=writer).split()
    command("evaluate", scorer, *given, "--out", tmp_path / "out.json").refused(REFUSED[options])
    assert not (tmp_path / "out.json").exists()


def test_answers_and_template_are_those_of_the_run(pairs, tmp_path, command):
    """A language model that was pruned to answer is measured by its answers, though its own files don't name them."""
    model, out = tiny_checkpoint(tmp_path / "writer"), tmp_path / "out.json"
    text = {"answers": "a,b", "template": "{query} light {document}"}
    (model / "darwinlm_recipe.json").write_text(json.dumps({"recipe": {"text": text}}))
    command("evaluate", model, "--text", pairs, *SIZES, "--out", out).succeeded()
    (found,) = json.loads(out.read_text())["reading"][0]["models"]
    assert {"accuracy", "AUC", "nDCG@10"} <= {score["name"] for score in found["scores"]}
