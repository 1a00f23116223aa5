"""Folders of sentence-transformers: what is read as that library reads it, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny.damage import edit_config
from tests.tiny.readers import tiny_embedder, tiny_scorer

from darwinlm.model.families.checkpoint import CARRIED, READING, TOKENIZER, Checkpoint
from darwinlm.model.families.sentence_transformers import answers_in, pooling_of, prompts_of
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.objective.scores import Scores
from darwinlm.runtime.errors import CheckpointError, DataError, ModelError, RecipeError
from darwinlm.runtime.reads import noted
from darwinlm.steps.text.reading import encoder_of, with_answers
from darwinlm.steps.text.samples import Sample
from darwinlm.steps.text.text_settings import TextSettings


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an embedder. It is shared: don't write into it."""
    return tiny_embedder(tmp_path_factory.mktemp("embedder"))


@pytest.fixture
def embedder(saved: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def change(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def list_modules(folder: Path, kinds: tuple[str, ...]) -> None:
    """List modules in the folder, those that it lacks with empty settings."""
    path = folder / "modules.json"
    known = {entry["type"].rpartition(".")[2]: entry for entry in json.loads(path.read_text())}
    for kind in kinds:
        if kind not in known:
            (folder / kind).mkdir()
            (folder / kind / "config.json").write_text("{}")
            known[kind] = {"path": kind, "type": f"sentence_transformers.models.{kind}"}
    path.write_text(json.dumps([known[kind] for kind in kinds]))


@pytest.mark.parametrize("longest", ["in the tokenizer", "beside the model"])
def test_texts_are_truncated_where_the_library_truncates_them(embedder: Path, longest: str) -> None:
    from sentence_transformers import SentenceTransformer

    if longest == "beside the model":
        change(embedder / "sentence_bert_config.json", max_seq_length=8)
    else:
        change(embedder / "tokenizer_config.json", model_max_length=8)
    text = "river stone light winter"
    encoder = encoder_of(Checkpoint.open(embedder), TextSettings(sequence_length=64))
    theirs = SentenceTransformer(str(embedder), device="cpu").preprocess([text])
    assert encoder.text(Sample(None, text)) == theirs["input_ids"][0].tolist()
    assert len(theirs["input_ids"][0]) == 8


@pytest.mark.parametrize(("length", "advice"), [(12, "raise text.sequence_length"), (64, "use a model whose max_seq_")])
def test_a_prompt_that_leaves_no_room_for_texts_is_refused(embedder: Path, length: int, advice: str) -> None:
    """All inputs would be the prompt alone."""
    change(embedder / "sentence_bert_config.json", max_seq_length=20)
    change(embedder / "config_sentence_transformers.json", prompts={"query": "river stone, light: "})
    said = (
        rf"the prompt 'river stone, light:' of .* takes 20 tokens, but inputs are cut to {min(length, 20)}, .*{advice}"
    )
    with pytest.raises(DataError, match=said):
        encoder_of(Checkpoint.open(embedder), TextSettings(sequence_length=length))


def test_a_tokenizer_without_a_limit_leaves_the_length_to_the_recipe(embedder: Path) -> None:
    change(embedder / "tokenizer_config.json", model_max_length=int(1e30))
    assert encoder_of(Checkpoint.open(embedder), TextSettings(sequence_length=48)).length == 48


REFUSED = {
    "no pooling": ("Transformer", "Normalize"),
    "pooling first": ("Pooling", "Transformer"),
    "layers before the pooling": ("Transformer", "LSTM", "Pooling"),
    "two poolings": ("Transformer", "Pooling", "Pooling"),
    "a choice of models": ("Router", "Pooling"),
}


@pytest.mark.parametrize("kinds", REFUSED.values(), ids=REFUSED)
def test_modules_that_change_what_is_pooled_are_refused(embedder: Path, kinds: tuple[str, ...]) -> None:
    list_modules(embedder, kinds)
    with pytest.raises(CheckpointError, match=r"modules\.json lists .*; known are a Transformer, a Pooling"):
        pooling_of(embedder)


def test_modules_behind_the_pooling_are_kept(embedder: Path) -> None:
    list_modules(embedder, ("Transformer", "Pooling", "Dense", "Normalize"))
    assert pooling_of(embedder) == "lasttoken"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (None, r"config\.json is missing or doesn't say how many numbers are pooled \(embedding_dimension\)"),
        ({}, r"config\.json is missing or doesn't say how many numbers are pooled"),
        ({"embedding_dimension": 48, "pooling_mode": None}, r"the pooling 'None' isn't known here"),
    ],
)
def test_a_pooling_that_does_not_say_what_it_pools_is_refused(
    embedder: Path, settings: dict[str, object] | None, said: str
) -> None:
    pooling = embedder / "1_Pooling" / "config.json"
    pooling.unlink()
    if settings is not None:
        pooling.write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=said):
        pooling_of(embedder)


@pytest.mark.parametrize(
    ("flags", "pooling"),
    [({}, "mean"), ({"lasttoken": 1}, "lasttoken"), ({"cls_token": True, "mean_tokens": False}, "cls")],
)
def test_a_pooling_of_an_older_release_is_read_as_the_library_reads_it(
    embedder: Path, flags: dict[str, object], pooling: str
) -> None:
    settings = {"word_embedding_dimension": 48, **{f"pooling_mode_{name}": value for name, value in flags.items()}}
    (embedder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    assert pooling_of(embedder) == pooling


def test_a_pooling_without_the_prompt_is_refused_where_it_matters(embedder: Path) -> None:
    pooling = embedder / "1_Pooling" / "config.json"
    change(pooling, include_prompt=False)
    assert pooling_of(embedder) == "lasttoken"
    change(pooling, pooling_mode="mean")
    with pytest.raises(CheckpointError, match=r"a pooling without the tokens of the prompt"):
        pooling_of(embedder)
    change(embedder / "config_sentence_transformers.json", prompts={"query": ""})
    assert pooling_of(embedder) == "mean"


def test_settings_that_cannot_be_followed_are_refused(embedder: Path) -> None:
    settings = embedder / "sentence_bert_config.json"
    change(settings, max_seq_length="8")
    with pytest.raises(CheckpointError, match=r"max_seq_length is '?8'?, but must be a number of tokens"):
        _ = Checkpoint.open(embedder).longest_input
    change(settings, max_seq_length=8, do_lower_case=True)
    with pytest.raises(CheckpointError, match=r"texts in lower case \(do_lower_case\) aren't known here"):
        _ = Checkpoint.open(embedder).longest_input
    change(embedder / "config_sentence_transformers.json", default_prompt_name="passage")
    with pytest.raises(CheckpointError, match=r"there is no prompt '?passage'?, which is to be the default"):
        prompts_of(embedder)


def test_a_model_apart_from_its_modules_is_refused_with_its_place(embedder: Path) -> None:
    inside = embedder / "0_Transformer"
    inside.mkdir()
    (embedder / "config.json").rename(inside / "config.json")
    modules = embedder / "modules.json"
    first, *others = json.loads(modules.read_text())
    modules.write_text(json.dumps([{**first, "path": "0_Transformer"}, *others]))
    with pytest.raises(ModelError, match=r"no config\.json in it but 0_Transformer: load it with a current"):
        Checkpoint.open(embedder)


def test_a_link_out_of_a_module_is_refused(embedder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("private")
    (embedder / "1_Pooling" / "notes.txt").symlink_to(secret)
    with pytest.raises(CheckpointError, match=r"notes\.txt is a link to a file outside of the model's folder"):
        Checkpoint.open(embedder)
    (embedder / "1_Pooling" / "notes.txt").unlink()
    Checkpoint.open(embedder)


def test_a_bidirectional_decoder_is_refused(embedder: Path) -> None:
    edit_config(embedder, is_causal=False)
    with pytest.raises(ModelError, match=r"the attention is bidirectional \(is_causal is false\)"):
        Checkpoint.open(embedder)


def test_files_around_a_model_are_parts_of_it(embedder: Path) -> None:
    def parts() -> tuple[str, str, str]:
        model = Checkpoint.open(embedder)
        return model.digest, model.part(READING), model.part(CARRIED)

    digest, reading, carried = parts()
    change(embedder / "config_sentence_transformers.json", prompts={"query": "stone: "})
    new_prompts = parts()
    assert (new_prompts[0] == digest, new_prompts[1] == reading, new_prompts[2] == carried) == (True, False, False)
    change(embedder / "tokenizer_config.json", model_max_length=16)
    assert parts()[1] not in {reading, new_prompts[1]}
    change(embedder / "1_Pooling" / "config.json", pooling_mode="mean")
    assert parts()[0] != digest
    list_modules(embedder, ("Transformer", "Pooling", "Dense"))
    before = parts()
    (embedder / "Dense" / "model.safetensors").write_bytes(b"other weights")
    assert (parts()[0] == before[0], parts()[2] == before[2]) == (True, False)


def reranker(folder: Path, **tokens: object) -> Path:
    """Make a folder one of a language model that answers."""
    (folder / "1_LogitScore").mkdir()
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(tokens))
    entry = {"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"}
    (folder / "modules.json").write_text(json.dumps([entry]))
    return folder


@pytest.mark.parametrize("no", [None, "no", -1, True])
def test_a_reranker_that_names_one_answer_is_refused(tmp_path: Path, no: object) -> None:
    folder = reranker(tmp_path, true_token_id=5, false_token_id=no)
    with pytest.raises(CheckpointError, match=r"doesn't name a token for yes and one for no .*--answers yes,no"):
        answers_in(folder)


def test_answers_that_the_model_does_not_have_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    folder = reranker(Path(shutil.copytree(tiny_llama, tmp_path / "model")), true_token_id=5, false_token_id=70_000)
    with pytest.raises(RecipeError, match=r"none of the number 70000 with which its files say that it answers"):
        with_answers(Checkpoint.open(folder), TextSettings())


@torch.no_grad()
def test_a_regressor_of_several_numbers_keeps_them(tmp_path: Path) -> None:
    folder = tiny_scorer(tmp_path / "model", labels=3)
    edit_config(folder, problem_type="regression")
    objective = objective_of(Checkpoint.open(folder))
    assert isinstance(objective, Scores)
    assert objective.labels == "numbers"
    assert objective.words() == "its scores"
    assert not objective.ranks(3)


def test_making_inputs_notes_what_they_depend_on(embedder: Path, tmp_path: Path) -> None:
    model = Checkpoint.open(embedder)
    with noted(tmp_path / "step") as reads:
        encoder_of(model, TextSettings())
    assert reads == {model.digest: {READING: model.part(READING), TOKENIZER: model.part(TOKENIZER)}}
