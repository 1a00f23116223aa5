"""What goes with a model wherever it goes, checked: generation settings, licence, languages, base model."""

import json
from pathlib import Path

import pytest
import torch

from darwinlm.evaluation.conversation import AnswerSettings, Conversation
from darwinlm.formats.opened import open_model
from darwinlm.formats.transformers.saved import save_model
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.generation import generation_of
from darwinlm.model.families.origin import Origin, carry, origin_of, write_gguf_origin
from darwinlm.model.surgery.fewer_tokens import cut_weights
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import visible
from darwinlm.steps.evaluate.speed import continue_greedily

CARD = "---\nlicense: other\nlicense_name: ours\nlicense_link: https://x.org/l\nlanguage:\n- en\n- de\n---\n# A model\n"


def test_a_hub_model_is_named_after_what_was_asked_for(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    found = origin_of(tmp_path, "owner/name@main")
    assert found == Origin("owner/name", "other", "ours", "https://x.org/l", ("en", "de"))


@pytest.mark.parametrize(
    ("given", "licence"),
    [
        ("[apache-2.0, mit]", ("apache-2.0", "mit")),
        ("[mit]", "mit"),
        ("\n- mit\n- 3", "mit"),
        ("[]", None),
        ("{a: b}", None),
    ],
)
def test_a_card_may_list_licences(tmp_path, given, licence):
    (tmp_path / "README.md").write_text(f"---\nlicense: {given}\n---\n")
    assert origin_of(tmp_path, str(tmp_path)) == Origin(license=licence)


FRONT = {
    "a date that isn't one": "date: 2024-02-30",
    "a tag": "a: !!int x",
    "brackets": "a: " + "[" * 900 + "]" * 900,
    "aliases": "a: &a [*a]",
    "many values": "a: [" + "1," * 20_000 + "]",
    "half a pair": 'license: "\\ud800"',
    "escape sequences": 'license: "\\e[2Jmit"',
    "a long word": "license: " + "x" * 100_000,
}


@pytest.mark.parametrize("name", FRONT)
def test_a_card_is_free_text(tmp_path, name):
    """What can't be read of it is left out; what is read can be written and printed."""
    (tmp_path / "README.md").write_text(f"---\n{FRONT[name]}\n---\n# A model\n")
    licence = origin_of(tmp_path, str(tmp_path)).license
    assert licence is None or (licence == visible(licence) and len(licence) <= 400)


@pytest.mark.parametrize(
    ("card", "base"),
    [
        ("---\nbase_model: owner/dense\ntags:\n- darwinlm\n---\n", "owner/dense"),
        ("---\nbase_model: owner/older\n---\n", None),
        ("---\n: : [\n---\n", None),
        ("no metadata", None),
    ],
)
def test_only_our_own_cards_name_the_model_that_was_pruned(tmp_path, card, base):
    """Another card's base model is what that model was trained from."""
    (tmp_path / "README.md").write_text(card)
    assert origin_of(tmp_path, str(tmp_path)).base_model == base


def test_a_gguf_file_tells_its_licence_and_its_end_tokens(tmp_path):
    write_gguf_origin(tmp_path, {})
    assert origin_of(tmp_path, "/models/file.gguf") == Origin()
    assert not (tmp_path / "generation_config.json").exists(), "it says nothing"
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.6, "eos_token_id": 2}')
    fields = {
        "general.license": "apache-2.0",
        "general.languages": ["en"],
        "general.name": "A Name",
        "general.base_model.0.repo_url": "https://huggingface.co/owner/name",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 7,
    }
    write_gguf_origin(tmp_path, fields)
    known = Origin("owner/name", "apache-2.0", languages=("en",), name="A Name")
    assert origin_of(tmp_path, "/models/file.gguf") == known
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"temperature": 0.6, "eos_token_id": [2, 7]}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_settings_that_cannot_be_read_are_refused(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json .*: remove it or fetch it again"):
        carry(tmp_path, tmp_path)


def answered(folder: Path) -> None:
    """Use a model as commands do: chat, a greedy continuation, and a saved copy."""
    opened = open_model(str(folder), dtype="float32")
    assert Conversation(opened, AnswerSettings(max_tokens=2)).answer("the river") is not None
    assert continue_greedily(opened.model, opened.tokenizer, ("the river",))
    save_model(opened.model, folder.with_name("saved"), source=folder)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("temperature", -1.0, "greater than or equal to 0"),
        ("top_p", 2.0, "less than or equal to 1"),
        ("top_k", 2.5, "valid integer"),
        ("repetition_penalty", 0.0, "greater than 0"),
        ("do_sample", "yes", "valid boolean"),
        ("eos_token_id", "end", "valid integer"),
        ("min_p", 1.5, "less than or equal to 1"),
    ],
)
def test_a_value_that_cannot_be_is_named(model_copy, field, value, reason):
    (model_copy / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(
        CheckpointError, match=rf"generation_config\.json: {field} is .*{reason}.*: correct or remove it"
    ):
        Checkpoint.open(model_copy)


def test_settings_go_along_or_are_named(model_copy):
    settings = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 7,
        "eos_token_id": [2, 5],
        "min_p": 0.05,
        "no_repeat_ngram_size": 3,
        "max_new_tokens": 40,
        "suppress_tokens": [7, 8],
        "bad_words_ids": [[9], [10, 11]],
        "stop_strings": ["###"],
    }
    others = {"num_beams": 4, "max_length": 9, "cache_implementation": "static"}
    without_effect = {"num_return_sequences": 1, "use_cache": True, "transformers_version": "5.0.0", "max_time": None}
    path = model_copy / "generation_config.json"
    path.write_text(json.dumps(settings | others | without_effect))
    answered(model_copy)
    saved = json.loads((model_copy.with_name("saved") / "generation_config.json").read_text())
    assert settings.items() <= saved.items()
    assert not others.keys() & saved.keys()
    left = Checkpoint.open(model_copy).left_out
    assert left == "the generation settings num_beams, max_length, cache_implementation are left out"
    path.write_text(json.dumps(settings))
    assert not Checkpoint.open(model_copy).left_out
    path.write_text(json.dumps({"min_p": 0.05, "temperature": 0.6}))
    assert generation_of(model_copy).temperature is None, "nothing is sampled"
    carry(model_copy, model_copy)
    assert "min_p" not in json.loads(path.read_text())


def test_words_that_are_not_written_keep_their_tokens(model_copy, tmp_path):
    settings = {"suppress_tokens": [4, 6], "bad_words_ids": [[5, 6], [5, 7]], "eos_token_id": 5}
    (model_copy / "generation_config.json").write_text(json.dumps(settings))
    cut_weights(Checkpoint.open(model_copy), [0, 1, 2, 3, 5, 6], tmp_path / "cut")
    saved = json.loads((tmp_path / "cut" / "generation_config.json").read_text())
    assert {name: saved[name] for name in settings} == {
        "suppress_tokens": [5],
        "bad_words_ids": [[4, 5]],
        "eos_token_id": 4,
    }


def test_a_temperature_of_zero_is_greedy(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"do_sample": true, "temperature": 0.0}')
    assert generation_of(tmp_path).do_sample is False


@pytest.mark.parametrize(
    ("field", "value"),
    [("return_dict", False), ("output_attentions", True), ("output_hidden_states", True), ("is_encoder_decoder", True)],
)
def test_how_a_model_is_called_is_ours_to_say(model_copy, tiny_llama, field, value):
    path = model_copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    tokens = torch.arange(6)[None]
    changed, plain = (Checkpoint.open(each).load(torch.float32)(tokens).logits for each in (model_copy, tiny_llama))
    assert torch.equal(changed, plain)


@pytest.mark.parametrize("name", ["save_pretrained", "validate", "to_dict", "from_dict", "use_return_dict", "__init__"])
def test_names_that_transformers_uses_are_no_fields(model_copy, name):
    path = model_copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 1}))
    with pytest.raises(CheckpointError, match=rf"config\.json: {name} is a name that transformers uses itself"):
        Checkpoint.open(model_copy)


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars")
def test_saving_shows_no_progress_bar(tiny_llama: Path, tmp_path: Path, capfd, monkeypatch):
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    save_model(Checkpoint.open(tiny_llama).load(torch.float32), tmp_path / "saved")
    assert not capfd.readouterr().err
