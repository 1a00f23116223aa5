"""What goes with a model wherever it goes: generation settings, licence, languages, base model."""

import json

import pytest

from darwinlm.families.origin import Origin, carry, origin_of, write_gguf_origin
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import visible

CARD = "---\nlicense: other\nlicense_name: ours\nlicense_link: https://x.org/l\nlanguage:\n- en\n- de\n---\n# A model\n"


def test_a_hub_model_is_named_after_what_was_asked_for(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    found = origin_of(tmp_path, "owner/name@main")
    assert found == Origin("owner/name", "other", "ours", "https://x.org/l", ("en", "de"))


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
        "general.base_model.0.repo_url": "https://huggingface.co/owner/name",
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 7,
    }
    write_gguf_origin(tmp_path, fields)
    assert origin_of(tmp_path, "/models/file.gguf") == Origin("owner/name", "apache-2.0", languages=("en",))
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"temperature": 0.6, "eos_token_id": [2, 7]}


@pytest.mark.parametrize("content", ["{", "[1]"])
def test_settings_that_cannot_be_read_are_refused(tmp_path, content):
    (tmp_path / "generation_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"generation_config\.json .*: remove it or fetch it again"):
        carry(tmp_path, tmp_path)
