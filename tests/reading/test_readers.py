"""Models that read texts one by one, pruned from end to end."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import darwinlm
from darwinlm.report.comparison import passages
from darwinlm.report.wording import told
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import BudgetError, CheckpointError, DataError, ModelError, RecipeError
from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint, tiny_text
from tests.tiny.command import sets
from tests.tiny.readers import tiny_embedder, tiny_pairs, tiny_scorer

READING = (*(value for value in SETTINGS if "sequence_length" not in value), "text.sequence_length=64")


def pruned(model, text, out, keep=0.6, **more):
    return darwinlm.prune(model, out, text=text, keep=keep, assignments=READING, **more)


@pytest.mark.parametrize("labels", [1, 3])
def test_a_scorer_is_pruned_and_loads_in_stock_libraries(labels, tmp_path):
    from sentence_transformers import CrossEncoder

    model = tiny_scorer(tmp_path / "dense", labels=labels)
    pairs = tiny_pairs(tmp_path / "pairs.jsonl")
    result = pruned(model, pairs, tmp_path / "run", keep=0.5)
    summary = result.summary
    assert summary.saved.block_params <= 0.5 * summary.dense.block_params
    assert summary.saved.metrics["distance"] > 0 == summary.dense.metrics["distance"]
    assert ("score_correlation" in summary.saved.metrics) == (labels == 1)
    assert {score.name for score in summary.saved.reading.scores} >= (
        {"AUC", "nDCG@10"} if labels == 1 else {"accuracy"}
    )
    assert passages(summary)[0].heading == "Labels"
    config = json.loads((result.model / "config.json").read_text())
    sizes = {(block.groups, block.heads, block.width) for block in summary.allocation}  # rounding may make them equal
    assert config["architectures"] == [f"{'Darwin' if len(sizes) > 1 else ''}LlamaForSequenceClassification"]
    loaded = AutoModelForSequenceClassification.from_pretrained(result.model)
    encoder = CrossEncoder(str(result.model), device="cpu", trust_remote_code=True)
    scores = encoder.predict(
        [("river stone", "light winter")], convert_to_tensor=True, activation_fn=torch.nn.Identity()
    )
    inputs = AutoTokenizer.from_pretrained(result.model)("river stone", "light winter", return_tensors="pt")
    torch.testing.assert_close(scores[0].flatten(), loaded(**inputs).logits[0].flatten(), rtol=1e-4, atol=1e-4)
    page = result.report.read_text()
    assert "perplexity" not in page.lower()
    assert "narrower layers gained little in our comparison" in page
    assert "--tokens 160k" in page


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
    pruned(model, pairs, tmp_path / "run", keep=0.4)
    trained = darwinlm.recover(tmp_path / "run", tmp_path / "recovered", tokens=6400).summary
    assert trained.saved.metrics["distance"] < trained.models["before"].metrics["distance"]
    assert trained.steps["recover"].unit == "distance of scores"


def test_contradictory_labels_are_named(tmp_path, capsys):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    lines = pairs.read_text().splitlines()
    pairs.write_text("\n".join([*lines, *(line.replace('"label": 0', '"label": 1') for line in lines)]))
    pruned(model, pairs, tmp_path / "run", until="text", reporter=Reporter())
    assert "repeat another one with a different label, such as " in " ".join(capsys.readouterr().out.split())


def test_the_smaller_model_is_chosen_by_time(tmp_path):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    given = (*READING, "budget.prefill_tokens=64")
    result = darwinlm.prune(model, tmp_path / "run", text=pairs, speedup=1.02, assignments=given)
    assert result.summary.saved.block_params <= result.summary.dense.block_params


def records(path, *lines):
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


PAIR = {"query": "river stone", "document": "light winter garden"}
TEXTS = {
    "a label of another model": (3, [{**PAIR, "label": 3}], r"has the label 3, but the model has the labels 0 to 2"),
    "half a label": (3, [{**PAIR, "label": 0.5}], r"has the label 0\.5, but the model has the labels 0 to 2"),
    "a label in words": (3, [{**PAIR, "label": "good"}], r"line 1: the label in 'label' is good, which isn't a number"),
    "a label that isn't finite": (
        1,
        [{**PAIR, "label": float("nan")}],
        r"line 1: the label .* is nan, which isn't a n",
    ),
    "a large label": (
        1,
        [{**PAIR, "label": 10**400}],
        r"line 1: the label in 'label' is a number of 1329 bits, which",
    ),
    "a pair without a query": (
        1,
        [PAIR, {"document": "paper bridge"}],
        r"line 2: this is a pair without a query: name it query, question, anchor or sentence1, or name both fields",
    ),
    "an empty query": (1, [{**PAIR, "query": " "}], r"line 1: the field 'query' of this pair is empty"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_that_does_not_fit_is_refused_before_any_work(case, tmp_path):
    labels, lines, message = TEXTS[case]
    model = tiny_scorer(tmp_path / "dense", labels=labels)
    with pytest.raises(DataError, match=message):
        pruned(model, records(tmp_path / "pairs.jsonl", *lines), tmp_path / "run")
    assert not (tmp_path / "run" / "stages").exists()


def test_a_score_may_be_any_number(tmp_path):
    """A model with one score has no classes."""
    model = tiny_scorer(tmp_path / "dense")
    lines = [
        {**PAIR, "document": f"light {number} winter", "query": f"{number}", "label": number / 7}
        for number in range(160)
    ]
    scores = pruned(model, records(tmp_path / "pairs.jsonl", *lines), tmp_path / "run").summary.saved.reading.scores
    assert [score.name for score in scores] == ["Spearman"]


TEMPLATES = {
    "without the text": ("scorer", "about {query}:", r"has no \{document\}, where the text goes"),
    "an unknown place": ("scorer", "{instruction}: {query} {document}", r"has \{instruction\}, but only \{query\} and"),
    "for an embedder": ("embedder", "{query} {document}", r"is an embedder, which reads each alone"),
    "for a model that writes": ("writer", "{query} {document}", r"text\.template is for models that judge pairs"),
    "without the query": ("scorer", "passage: {document}", r"has no \{query\}, but the text is pairs"),
    "too long": ("scorer", "river stone " * 40 + "{query} {document}", r"doesn't fit into sequences of 64 tokens"),
}
MAKERS = {"scorer": tiny_scorer, "embedder": tiny_embedder, "writer": tiny_checkpoint}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_that_cannot_be_applied_is_refused(case, tmp_path):
    kind, template, message = TEMPLATES[case]
    model, pairs = MAKERS[kind](tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises((RecipeError, DataError), match=message):
        darwinlm.prune(
            model, tmp_path / "run", text=pairs, keep=0.6, assignments=(*READING, f"text.template='{template}'")
        )


def test_a_template_with_a_query_needs_pairs(tmp_path):
    model, texts = tiny_scorer(tmp_path / "dense"), records(tmp_path / "texts.jsonl", {"text": "river stone"})
    with pytest.raises(DataError, match=r"takes a \{query\}, but the text has none: give pairs"):
        darwinlm.prune(
            model, tmp_path / "run", text=texts, keep=0.6, assignments=(*READING, "text.template='{query} {document}'")
        )


def test_a_chat_template_that_fails_is_refused(tmp_path):
    """It names the roles of a reranker and raises an error."""
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    template = "{% for m in messages %}{{ m['query']['document'] | first_of }}{% endfor %}"
    (model / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(ModelError, match=r"chat template can't be applied to query and document .*text\.template"):
        pruned(model, pairs, tmp_path / "run")


def module_settings(model, kind, **changed):
    """Change the settings of a module of a folder of sentence-transformers."""
    folder = next(
        model / entry["path"]
        for entry in json.loads((model / "modules.json").read_text())
        if entry["type"].endswith(kind)
    )
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changed), encoding="utf-8")


def added_module(model, kind, **settings):
    """Put another module behind the others."""
    listed = json.loads((model / "modules.json").read_text())
    listed.append({"idx": len(listed), "name": str(len(listed)), "path": f"{len(listed)}_Added", "type": kind})
    (model / "modules.json").write_text(json.dumps(listed), encoding="utf-8")
    (model / listed[-1]["path"]).mkdir()
    (model / listed[-1]["path"] / "config.json").write_text(json.dumps(settings), encoding="utf-8")


def listed_path(model, path):
    """Change the path of the pooling in the list of modules."""
    listed = json.loads((model / "modules.json").read_text())
    listed[1]["path"] = path
    (model / "modules.json").write_text(json.dumps(listed), encoding="utf-8")


OURS = "sentence_transformers.base.modules"
FOLDERS = {
    "an unknown pooling": (
        lambda model: module_settings(model, "Pooling", pooling_mode="weightedmean"),
        r"1_Pooling.config\.json: the pooling 'weightedmean' isn't known here; known are lasttoken, mean, cls",
    ),
    "two poolings": (
        lambda model: module_settings(model, "Pooling", pooling_mode=["mean", "cls"]),
        r"the pooling 'mean\+cls' isn't known",
    ),
    "pooling of another width": (
        lambda model: module_settings(model, "Pooling", embedding_dimension=64),
        r"the module Pooling takes 64 numbers, but gets 48: it belongs to another model",
    ),
    "a dense module of another width": (
        lambda model: added_module(model, f"{OURS}.dense.Dense", in_features=32, out_features=16),
        r"3_Added.config\.json: the module Dense takes 32 numbers, but gets 48",
    ),
    "a second one that doesn't fit the first": (
        lambda model: [
            added_module(model, f"{OURS}.dense.Dense", in_features=size, out_features=16) for size in (48, 48)
        ],
        r"4_Added.config\.json: the module Dense takes 48 numbers, but gets 16",
    ),
    "a width in quotation marks": (
        lambda model: module_settings(model, "Pooling", embedding_dimension="48"),
        r"the module Pooling takes '48' numbers, but gets 48",
    ),
    "a dense module without a width": (
        lambda model: added_module(model, f"{OURS}.dense.Dense"),
        r"3_Added.config\.json is missing or doesn't say how many numbers the module Dense takes \(in_features\)",
    ),
    "too many modules": (
        lambda model: [added_module(model, f"{OURS}.normalize.Normalize") for _ in range(62)],
        r"modules\.json lists 65 modules, which no model has: fetch the model again",
    ),
    "a path that is none": (
        lambda model: listed_path(model, "1_Poo\0ling"),
        r"modules\.json: '1_Poo\\x00ling' is no path of a module: fetch the model again",
    ),
    "a path that is no text": (lambda model: listed_path(model, None), r"modules\.json: None is no path of a module"),
    "code of its own": (
        lambda model: added_module(model, "custom_pooling.MyPooling"),
        r"modules\.json: the module custom_pooling\.MyPooling is code of its own, which never runs here",
    ),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_of_sentence_transformers_that_cannot_be_kept_are_refused(case, tmp_path, command):
    spoil, message = FOLDERS[case]
    model, pairs = tiny_embedder(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    spoil(model)
    with pytest.raises(CheckpointError, match=message):
        pruned(model, pairs, tmp_path / "run")
    command("prune", model, "--keep", "60%", "--text", pairs, "--out", tmp_path / "cli").refused(str(model))
    assert not any((tmp_path / "cli").rglob("model"))


REFUSED = {
    "its own text": ({"text": None}, RecipeError, r"gives its score and can't write the text .*--text pairs\.jsonl"),
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
    with pytest.raises(RecipeError, match=r"budget\.file is for models that write, .* its GGUF files in the report"):
        darwinlm.prune(model, tmp_path / "run", text=pairs, file="1MB", assignments=READING)


@pytest.mark.parametrize("answers", ["yes", "river,river", "river stone light,no", "\udcff,a"])
def test_answers_must_be_two_tokens(answers, tmp_path):
    model, pairs = tiny_checkpoint(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    with pytest.raises(RecipeError, match=r"text\.answers"):
        darwinlm.prune(model, tmp_path / "run", text=pairs, answers=answers, assignments=READING)


def test_answers_must_be_different_tokens(tmp_path):
    """The tokenizer makes no difference between large and small letters."""
    model, pairs = tiny_checkpoint(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    path = model / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": {"type": "Lowercase"}}), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"text\.answers: 'a,A' are one token of this model, so its answers couldn't"):
        darwinlm.prune(model, tmp_path / "run", text=pairs, answers="a,A", assignments=READING)


@pytest.mark.parametrize(
    "options", [("--keep", "60%"), ("--keep", "80%,60%"), ("--within", "2%"), ("--within", "0.1 nats")]
)
def test_scores_of_models_that_write_are_refused(options, tmp_path, command):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    questions = records(tmp_path / "items.jsonl", {"question": "river?", "answer": "stone"})
    measured = () if "nats" in options[1] else ("--measure", questions)
    found = command("prune", model, *options, *measured, "--text", pairs, "--out", tmp_path / "run", *sets(READING))
    assert found.code == 2
    said = found.err.strip().splitlines()[-1]
    assert said.startswith("error: --measure and --within are for models that write, and ")
    assert "gives its score: choose a size, such as --keep 75%,50%" in said
    assert not list((tmp_path / "run").rglob("database"))


def test_several_sizes_are_scored_on_labels(tmp_path, command):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    given = ("prune", model, "--keep", "80%,60%", "--text", pairs, "--out", tmp_path / "run", *sets(READING))
    command(*given).succeeded()
    for size in ("keep-80", "keep-60"):
        assert darwinlm.Result(tmp_path / "run" / size).summary.saved.reading.scores


def test_a_plan_counts_no_chats(tmp_path, command):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    given = ("--keep", "60%", "--text", pairs, "--set", "text.sequence_length=64")
    assert "\nchats" not in command("plan", model, *given).succeeded().out
    writer = tiny_checkpoint(tmp_path / "writer")
    text = tiny_text(tmp_path / "text.txt")
    assert "\nchats" in command("plan", writer, "--keep", "60%", "--text", text, *given[4:]).succeeded().out


def test_commands_for_models_that_write_are_refused(tmp_path, command):
    model = tiny_scorer(tmp_path / "dense")
    with pytest.raises(ModelError, match=r"not text: load it with CrossEncoder .* darwinlm evaluate --text"):
        darwinlm.load(model)


FIRST = {"scorer": tiny_scorer, "embedder": tiny_embedder, "answers": tiny_checkpoint}


def first(kind, tmp_path, keep="60%", **more):
    """A run that keeps the first layers of a tiny model that reads, and the model."""
    model, pairs = FIRST[kind](tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl", queries=160)
    given = {"answers": "a,b"} if kind == "answers" else {}
    return pruned(model, pairs, tmp_path / "run", keep=keep, layers="first", **given, **more), model


@pytest.mark.parametrize("kind", FIRST)
def test_the_first_layers_stay_as_they_are_and_nothing_is_calibrated(kind, tmp_path):
    result, model = first(kind, tmp_path)
    stages = {folder.name for folder in (result.folder / "stages").iterdir()}
    assert stages == {"text", "search", "stitch", "export", "evaluate"}
    assert set(result.summary.text.purposes) == {"validation", "evaluation"}
    config = json.loads((result.model / "config.json").read_text())
    assert (config["num_hidden_layers"], "auto_map" in config) == (2, False)
    assert not list(result.model.glob("*.py"))
    dense, small = (load_file(folder / "model.safetensors") for folder in (model, result.model))
    assert small.keys() == {name for name in dense if "layers.2." not in name and "layers.3." not in name}
    assert all(torch.equal(tensor, dense[name]) for name, tensor in small.items())
    assert list(result.summary.models) == ["dense", "stitched"]
    assert result.summary.name("stitched") == "first layers"
    page, card = result.report.read_text(), (result.model / "README.md").read_text()
    for text in (page, card):
        assert "The first 2 layers are kept unchanged and the later ones are removed" in text
        assert "equal layers" not in text
    assert "darwinlm recover teaches the first ones" in card
    assert "On held-out texts:" not in page, "that is said of a smaller vocabulary alone"
    assert told(result.summary)[-1][1].startswith("train it (darwinlm recover): the first layers alone then learn")
    assert "the first layers of a reranker need it" in page
    assert "The method is that of DarwinLM" not in card


def test_the_first_layers_are_what_stock_libraries_load(tmp_path):
    from sentence_transformers import CrossEncoder, SentenceTransformer

    scorer, dense = first("scorer", tmp_path / "scorer")
    whole, small = (CrossEncoder(str(folder), device="cpu") for folder in (dense, scorer.model))
    whole.model.model.layers = whole.model.model.layers[:2]
    pairs = [("river stone", "light winter"), ("paper", "garden bridge")]
    assert whole.predict(pairs).tolist() == pytest.approx(small.predict(pairs).tolist(), rel=1e-5)
    embedder, dense = first("embedder", tmp_path / "embedder")
    whole, small = (SentenceTransformer(str(folder), device="cpu") for folder in (dense, embedder.model))
    whole[0].model.layers = whole[0].model.layers[:2]
    torch.testing.assert_close(*(torch.tensor(model.encode(["river stone"])) for model in (whole, small)))


@pytest.mark.parametrize("kind", FIRST)
def test_the_first_layers_are_shown_and_evaluated(kind, tmp_path, command):
    """`evaluate` compares them with the run's dense model, whose figures are then those of the run's own page."""
    result, model = first(kind, tmp_path)
    shown = command("show", result.folder).succeeded().out
    assert (
        "advice train it (darwinlm recover): the first layers alone then learn to give what the whole model gave"
        in shown
    )
    rows = [line.split() for line in shown.splitlines() if line[:1].isdigit()]
    assert [row[2] for row in rows[:4]] == ["6/6", "6/6", "0/6", "0/6"]
    assert any(line.startswith("first layers ") for line in shown.splitlines())
    pairs, out = tiny_pairs(tmp_path / "others.jsonl", seed=1), tmp_path / "out.json"
    command("evaluate", result.folder, "--text", pairs, "--tokens", 2000, "--out", out).succeeded()
    (text,) = json.loads(out.read_text())["reading"]
    small, dense = text["models"]
    assert small["metrics"]["distance"] > 0 == dense["metrics"]["distance"]
    by_hand = tmp_path / "by-hand.json"
    options = ("--tokens", 2000, "--against", model, "--out", by_hand)
    command("evaluate", result.model, "--text", pairs, *options).succeeded()
    (again,) = json.loads(by_hand.read_text())["reading"]
    assert [each["metrics"] for each in again["models"]] == [each["metrics"] for each in text["models"]]


def test_a_stage_that_first_layers_do_not_need_is_not_claimed(tmp_path, command):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl", queries=160)
    given = ("--keep", "60%", "--layers", "first", "--until", "database", "--text", pairs, "--out", tmp_path / "run")
    ended = command("prune", model, *given, *sets(READING)).succeeded()
    assert not (tmp_path / "run" / "stages" / "database").exists()
    assert f"stopped by --until database; the results are in {tmp_path / 'run'}" in ended.out


@pytest.mark.parametrize(("budget", "kept"), [({"keep": "74%"}, 2), ({"keep": "75%"}, 3), ({"params": 70_522}, 2)])
def test_as_many_first_layers_as_the_budget_allows(budget, kept, tmp_path):
    model, pairs = tiny_checkpoint(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    given = {"text": pairs, "answers": "a,b", "layers": "first", "assignments": READING, **budget}
    plan = darwinlm.plan(model, **given)
    assert not {"gradients", "database", "search", "refit"} & {row.step for row in plan.rows}
    result = darwinlm.prune(model, tmp_path / "run", **given)
    assert len({block.block for block in result.summary.allocation if block.heads}) == kept
    assert plan.sizes.saved_params == result.summary.saved.params


def test_the_first_layers_by_time_in_several_sizes_and_again(tmp_path):
    """Rerunning does nothing, and a recovery brings the scores closer, starting from these layers."""
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl", queries=160)
    given = [f"model={model}", f"text.source={pairs}", "search.layers=first", *READING]
    recipes = darwinlm.load_recipes(None, [*given, "budget.keep=75%,50%"])
    sizes = darwinlm.prune_sweep(recipes, tmp_path / "sweep")
    layers = {name: sum(block.heads > 0 for block in size.allocation) for name, size in sizes.items()}
    assert layers == {"keep-75": 3, "keep-50": 2}
    run = tmp_path / "sweep" / "keep-50"
    manifests = {path: path.stat().st_mtime_ns for path in (tmp_path / "sweep").rglob("manifest.json")}
    darwinlm.prune_sweep(recipes, tmp_path / "sweep")
    assert manifests == {path: path.stat().st_mtime_ns for path in manifests}
    assert len(manifests) > 5
    trained = darwinlm.recover(run, tmp_path / "recovered", tokens=6400)
    summary = trained.summary
    assert "advice" not in dict(told(summary))
    assert summary.saved.metrics["distance"] < summary.models["before"].metrics["distance"]
    assert "auto_map" not in json.loads((trained.model / "config.json").read_text())
    timed = darwinlm.load_recipe(None, [*given, "budget.speedup=1.02", "budget.prefill_tokens=64"])
    by_time = darwinlm.prune(recipe=timed, out=tmp_path / "timed").summary
    assert 0 < sum(block.heads > 0 for block in by_time.allocation) < 4


@pytest.mark.parametrize("kind", ["embedder", "answers"])
def test_the_first_layers_learn_what_the_whole_model_gives(kind, tmp_path):
    run, model = first(kind, tmp_path)
    trained = darwinlm.recover(run.folder, tmp_path / "recovered", tokens=6400)
    models = trained.summary.models
    assert models["recovered"].metrics["distance"] < models["before"].metrics["distance"]
    kept = {path.relative_to(model).as_posix() for path in model.rglob("*.json") if "index" not in path.name}
    assert kept <= {path.relative_to(trained.model).as_posix() for path in trained.model.rglob("*.json")}


NOT_FIRST = {
    "writes": (tiny_checkpoint, {}, RecipeError, r"--layers first is for models that read .* keep next to nothing"),
    "writes in time": (tiny_checkpoint, {"speedup": 2}, RecipeError, r"--layers first is for models that read"),
    "not even one": (
        tiny_scorer,
        {"keep": 0.1},
        BudgetError,
        r"the first layer alone has 20,832 .* more than 8,332 bl",
    ),
}


@pytest.mark.parametrize("case", NOT_FIRST)
def test_what_has_no_first_layers(case, tmp_path):
    make, given, error, message = NOT_FIRST[case]
    model, pairs = make(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    given = {"text": pairs, "layers": "first", "assignments": READING, **given}
    for work in (darwinlm.plan, lambda *model, **given: darwinlm.prune(*model, tmp_path / "run", **given)):
        with pytest.raises(error, match=message):
            work(model, **given)
    assert not (tmp_path / "run" / "stages").exists()


def test_layers_that_differ_have_no_first_ones(tmp_path):
    model, pairs = tiny_scorer(tmp_path / "dense"), tiny_pairs(tmp_path / "pairs.jsonl")
    unequal = pruned(model, pairs, tmp_path / "unequal", keep=0.7, layers="unequal").model
    for budget in ({"keep": 0.6}, {"keep": None, "speedup": 1.1}):
        with pytest.raises(RecipeError, match="--layers first: the layers of this model already differ"):
            pruned(unequal, pairs, tmp_path / "run", layers="first", **budget)
    assert not (tmp_path / "run" / "stages").exists()
