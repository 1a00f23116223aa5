"""Generation settings and further fields of a checkpoint: what is used is checked, what isn't is named."""

import json
from pathlib import Path

import pytest
import torch

from darwinlm.engines.opened import open_model
from darwinlm.evaluation.chat import AnswerSettings, Conversation
from darwinlm.evaluation.speed import continue_greedily
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.families.generation import generation_of
from darwinlm.runtime.errors import CheckpointError


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
    ],
)
def test_a_value_that_cannot_be_is_named(model_copy, field, value, reason):
    (model_copy / "generation_config.json").write_text(json.dumps({field: value}))
    with pytest.raises(
        CheckpointError, match=rf"generation_config\.json: {field} is .*{reason}.*: correct or remove it"
    ):
        Checkpoint.open(model_copy)


def test_only_used_settings_go_along(model_copy):
    settings = {
        "do_sample": True,
        "temperature": 0.6,
        "top_k": 7,
        "eos_token_id": [2, 5],
        "num_beams": 4,
        "max_length": 9,
    }
    (model_copy / "generation_config.json").write_text(json.dumps(settings))
    answered(model_copy)
    saved = json.loads((model_copy.with_name("saved") / "generation_config.json").read_text())
    assert {
        name: value for name, value in settings.items() if name not in ("num_beams", "max_length")
    }.items() <= saved.items()
    assert not {"num_beams", "max_length"} & saved.keys()


def test_a_temperature_of_zero_is_greedy():
    assert generation_of({"do_sample": True, "temperature": 0.0}, "owner/name").do_sample is False


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
