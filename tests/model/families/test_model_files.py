"""Nothing is read from outside of a model's folder, and what is carried along is text of a bounded size."""

import json
import os
from pathlib import Path

import pytest
from tests.tiny.process import python
from tests.tiny.vocabulary import trained_bytes
from transformers import PreTrainedTokenizerFast

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import CheckpointError
from darwinlm.runtime.limits import TEXT_BYTES, TOKENIZER_BYTES

NAMES = (
    *("LICENSE", "README.md", "chat_template.jinja", "additional_chat_templates/a.jinja", "tokenizer.model"),
    *("config.json", "model.safetensors", "notes"),
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["absolute", "relative", "by a folder", "of a link"])
def test_no_link_leads_out(model_copy, tmp_path, name, how):
    secret = tmp_path / "secret"
    secret.write_text("a private key")
    path = model_copy / name
    path.unlink(missing_ok=True)
    if how == "by a folder" and "/" in name:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / path.name).write_text("a private key")
        path.parent.symlink_to(outside)
    else:
        path.parent.mkdir(exist_ok=True)
        (tmp_path / "link").symlink_to(secret)
        target = {"absolute": secret, "of a link": tmp_path / "link"}.get(how, os.path.relpath(secret, path.parent))
        path.symlink_to(target)
    with pytest.raises(CheckpointError, match="is a link to a file outside of the model's folder"):
        Checkpoint.open(model_copy)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json", "notes"])
def test_a_pipe_is_refused_before_it_is_read(model_copy, name):
    (model_copy / name).unlink(missing_ok=True)
    os.mkfifo(model_copy / name)
    with pytest.raises(CheckpointError, match=f"{name} is neither a file nor a folder, but a pipe or a device"):
        Checkpoint.open(model_copy)


def test_links_within_a_model_and_within_the_hubs_cache(model_copy, tmp_path):
    (model_copy / "NOTICE").symlink_to("config.json")
    cache = tmp_path / "models--owner--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "snapshots" / "abc").mkdir(parents=True)
    for path in model_copy.iterdir():
        (cache / "blobs" / path.name).write_bytes(path.read_bytes())
        (cache / "snapshots" / "abc" / path.name).symlink_to(Path("..") / ".." / "blobs" / path.name)
    (tmp_path / "by-a-link").symlink_to(model_copy)
    for folder in (model_copy, cache / "snapshots" / "abc", tmp_path / "by-a-link"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("LICENSE", b"\x7fELF\0"),
        ("README.md", b"a" * (TEXT_BYTES + 1)),
        ("vocab.txt", TOKENIZER_BYTES + 1),
        ("chat_template.jinja", TOKENIZER_BYTES + 1),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_of_another_kind(model_copy, name, content):
    with (model_copy / name).open("wb") as file:
        if isinstance(content, int):
            file.truncate(content)
        else:
            file.write(content)
    with pytest.raises(CheckpointError, match=f"can't use .*{name}"):
        Checkpoint.open(model_copy)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("field", ["vocab", "vocab_file", "merges", "init_inputs"])
def test_no_field_of_a_tokenizer_reads_a_file_elsewhere(model_copy, tmp_path, monkeypatch, file, field):
    """Transformers would make the lines of a private file the vocabulary, which is saved with the smaller model."""
    (tmp_path / "credentials").write_text("[UNK]\nsecret\n")
    monkeypatch.chdir(tmp_path)
    path = model_copy / file
    settings = json.loads(path.read_text()) if path.exists() else {}
    for place in (str(tmp_path / "credentials"), "credentials", str(model_copy / ".." / "credentials")):
        path.write_text(json.dumps(settings | {field: [place] if field == "init_inputs" else place}))
        with pytest.raises(CheckpointError, match=f"{field} names the file .*credentials outside"):
            Checkpoint.open(model_copy).tokenizer()
    own = {"tokenizer_file": str(model_copy / "tokenizer.json"), "vocab_file": "/nowhere/vocab.txt"}
    path.write_text(json.dumps(settings | own | {"bos_token": "<s>"}))
    Checkpoint.open(model_copy).tokenizer()


def test_weights_that_may_not_be_read_are_not_called_damaged(model_copy, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise FileNotFoundError("No such file or directory")  # as safetensors says it

    monkeypatch.setattr("darwinlm.model.families.stored.safe_open", refuse)
    with pytest.raises(CheckpointError, match="bring back its disk"):
        Checkpoint.open(model_copy)
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.R_OK)
    with pytest.raises(CheckpointError, match=r"model\.safetensors can't be read: change its permissions"):
        Checkpoint.open(model_copy)


CHANGED = """
import sys
from pathlib import Path
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.runtime.errors import CheckpointError
assert False, "assertions don't run"
checkpoint = Checkpoint.open(Path(sys.argv[1]))
path = checkpoint.folder / "generation_config.json"
path.write_text(path.read_text() + " ")
try:
    checkpoint.check_unchanged()
except CheckpointError as error:
    print(error)
"""


def test_a_changed_file_is_noticed_without_assertions(model_copy):
    """The hashes of files beside the weights are taken when the model is opened, also under `python -O`."""
    assert "generation_config.json: it was changed during this run" in python("-O", "-c", CHANGED, model_copy).stdout


def test_a_tokenizer_trained_with_dropout_gives_a_text_the_same_tokens_each_time(model_copy):
    inner = trained_bytes(["ababababab"] * 8, 280)
    expected = inner.encode("abababababab").ids
    inner.model.dropout = 0.9
    PreTrainedTokenizerFast(tokenizer_object=inner).save_pretrained(model_copy)
    tokenizer = Checkpoint.open(model_copy).tokenizer()
    assert [tokenizer.encode("abababababab", add_special_tokens=False) for _ in range(9)] == [expected] * 9
