"""A run with a smaller vocabulary: the same logits for kept tokens, and a model that every later command takes."""

import json
import re

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS, tiny_text
from tests.tiny.command import sets
from tests.tiny.stages import result, run_stages
from tests.tiny.vocabulary import TOKENS, wordy_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.recipe import parse_recipe
from darwinlm.runs.finished import read_summary
from darwinlm.runtime.artifact import read_json
from darwinlm.runtime.errors import DataError, ModelError, RecipeError
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures

SIZE = 320


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A model with a head of its own. It is shared: don't write into it."""
    return wordy_checkpoint(tmp_path_factory.mktemp("wordy") / "model")


@pytest.fixture(scope="module")
def settings(dense):
    """A budget for the whole model, embedding included."""
    whole = sum(weight.numel() for weight in Checkpoint.open(dense).skeleton().parameters())
    return f"vocabulary={SIZE}", f"budget.params={whole // 2}"


@pytest.fixture(scope="module")
def finished(dense, settings, make_run, tmp_path_factory):
    """A run with these settings. It is shared: don't write into it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run_stages(make_run(dense, out, *settings, keep=None), "report")
    return out


@pytest.mark.parametrize(("model_type", "kind"), [("gemma2", "BPE with bytes"), ("llama", "byte-level BPE")])
def test_logits_of_kept_tokens_are_the_same(tmp_path, make_run, model_type, kind):
    folder = wordy_checkpoint(tmp_path / "dense", model_type, kind)
    run = make_run(folder, tmp_path / "out", "vocabulary=75%")
    figures = result(run, "vocabulary").figures
    assert figures.tokens == result(run, "dense").config.vocab_size == 384
    dense, small = (AutoModelForCausalLM.from_pretrained(each) for each in (folder, result(run, "dense").folder))
    before, after = (AutoTokenizer.from_pretrained(each) for each in (folder, result(run, "dense").folder))
    ids = after("the river, and a zebra over 12 bridges", return_tensors="pt")["input_ids"]
    rows = torch.tensor(before.convert_tokens_to_ids(after.convert_ids_to_tokens(range(figures.tokens))))
    with torch.no_grad():
        expected = dense(rows[ids]).logits[..., rows]
        torch.testing.assert_close(small(ids).logits, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(small(ids).logits.argmax(-1), expected.argmax(-1))
    assert (dense.get_output_embeddings().weight[rows] == small.get_output_embeddings().weight).all()
    assert small.config.tie_word_embeddings == dense.config.tie_word_embeddings


def test_the_model_is_a_plain_one_with_fewer_tokens(dense, finished):
    summary = read_summary(finished / "summary.json")
    config, tokenizer = read_json(finished / "model" / "config.json"), AutoTokenizer.from_pretrained(finished / "model")
    assert config["vocab_size"] == len(tokenizer) == SIZE
    assert summary.budget.used <= summary.budget.upper
    made = AutoModelForCausalLM.from_pretrained(finished / "model", trust_remote_code=True)
    assert sum(weight.numel() for weight in made.parameters()) == summary.budget.used
    figures = summary.of(VocabularyFigures)
    assert summary.dense.params == figures.params < figures.dense_params
    recipe = parse_recipe({"model": str(dense), "vocabulary": SIZE}, "here")
    assert RunSizes(Checkpoint.open(dense), recipe).params == summary.dense.params
    end = tokenizer.convert_tokens_to_ids("<|user|>")
    assert end != TOKENS
    assert read_json(finished / "model" / "generation_config.json")["eos_token_id"] == [2, end]
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(dense).chat_template
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def test_the_report_says_what_the_vocabulary_cost(finished):
    summary = read_summary(finished / "summary.json")
    figures = summary.of(VocabularyFigures)
    assert figures.longer > 0.01
    assert figures.affected > 0.01
    assert figures.dense_bits_per_byte != figures.bits_per_byte
    (text,) = figures.domains.values()
    assert text.tokens / text.dense_tokens == pytest.approx(1 + figures.longer)
    words = f"{SIZE} of {TOKENS + 1} tokens of the vocabulary kept"
    for page in (finished / "report.html", finished / "model" / "README.md"):
        assert words in page.read_text(encoding="utf-8")
        assert "bits per byte" in page.read_text(encoding="utf-8")


def test_later_commands_take_it(command, dense, finished, tmp_path, tiny_text_file):
    assert command("show", "--verify", finished).code == 0
    shown = command("show", finished)
    assert f"{SIZE} of {TOKENS + 1} tokens of the vocabulary kept" in " ".join(shown.out.split())
    small = finished / "stages" / "vocabulary" / "model"
    text = ("--text", tiny_text_file, "--tokens", 256, "--sequence-length", 32, "--dtype", "float32", "--json")
    pruned, same = (command("evaluate", each, "--against", dense, *text) for each in (finished, small))
    assert json.loads(pruned.out)["texts"][0]["kl"] > 0
    assert json.loads(same.out)["texts"][0]["kl"] == pytest.approx(0, abs=1e-6)
    assert "cut to the same tokens" in same.out
    command("evaluate", dense, "--against", small, "--text", tiny_text_file).refused("different vocabularies")


def test_recovery_learns_from_the_dense_model_with_the_same_tokens(command, dense, finished, tmp_path, tiny_text_file):
    out = tmp_path / "recovered"
    command("recover", finished, "--tokens", 512, "--out", out, "--set", "recovery.batch_tokens=256").succeeded()
    summary = read_summary(out / "summary.json")
    assert summary.dense.params == summary.of(VocabularyFigures).params
    assert read_json(out / "model" / "config.json")["vocab_size"] == SIZE


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ("500", RecipeError, f"500 tokens requested, but .* has {TOKENS + 1}: request fewer"),
        ("10%", RecipeError, "64 tokens requested, but bytes, digits, white space, special .* need 2..: request"),
    ],
)
def test_impossible_sizes_are_refused(dense, tmp_path, make_run, wanted, error, message):
    with pytest.raises(error, match=message):
        result(make_run(dense, tmp_path / "out", f"vocabulary={wanted}"), "vocabulary")
    assert not (tmp_path / "out").exists()


def test_a_token_around_texts_beyond_the_embedding_is_refused(tmp_path, make_run):
    folder = wordy_checkpoint(tmp_path / "dense", "llama", "byte-level BPE")
    tree = read_json(folder / "tokenizer.json")
    around = {"sep": ["</s>", 5000], "cls": ["<s>", 1], "trim_offsets": True, "add_prefix_space": False}
    tree["post_processor"] = {"type": "RobertaProcessing", **around}
    (folder / "tokenizer.json").write_text(json.dumps(tree))
    with pytest.raises(ModelError, match="gives the token 5000, but the model's vocabulary ends at"):
        result(make_run(folder, tmp_path / "out", "vocabulary=75%"), "vocabulary")


def test_a_text_without_held_out_documents_is_refused(dense, tmp_path, make_run):
    text = tiny_text(tmp_path / "text.txt", documents=1)
    run = make_run(dense, tmp_path / "out", "vocabulary=320", text=text)
    with pytest.raises(DataError, match="too few documents to choose tokens"):
        result(run, "vocabulary")


def test_a_short_text_keeps_its_tokens_and_then_the_first_of_the_tokenizer(dense, tmp_path, make_run):
    text = tmp_path / "text.txt"
    text.write_text("\n\n\n".join(f"jungle {number}" for number in range(40)))
    cut = result(make_run(dense, tmp_path / "out", "vocabulary=320", text=text), "vocabulary")
    assert cut.figures.tokens == 320
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (dense, cut.checkpoint.folder))
    assert before.tokenize("jungle") == after.tokenize("jungle")
    assert cut.figures.longer == 0


def test_the_command_takes_a_share(command, dense, tiny_text_file, tmp_path):
    common = ("prune", dense, "--text", tiny_text_file, "--out", tmp_path / "out", "--until", "vocabulary")
    ended = command(*common, *sets(SETTINGS), "--vocab", "70%").succeeded()
    assert re.search(r"320 of 433 tokens kept; held-out text takes [\d.]+% more tokens", ended.out)
    command(*common, "--vocab", "0").refused("vocabulary", "greater than 0")
    command(*common, "--vocab", "5 apples").refused("vocabulary", "50% or 24k")
