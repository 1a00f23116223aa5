"""`darwinlm push` against a stand-in of the hub: what arrives, and what is refused."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tests.tiny.hub import READ_ONLY, TOKEN, Hub
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint

pytestmark = pytest.mark.enable_socket  # the stand-in listens on the loopback


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, and a token for it."""
    from huggingface_hub import constants

    with Hub() as found:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield found


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_card_weights_and_tokenizer_arrive_as_they_are(command, hub: Hub, finished_llama: Path) -> None:
    ended = command("push", finished_llama, "me/half", "--private").succeeded()
    assert f"published: {hub.address}/me/half" in ended.out
    assert hub.repos["me/half"] == files_of(finished_llama / "model")
    assert {"README.md", "config.json", "model.safetensors"} <= set(hub.repos["me/half"])
    assert hub.private == {"me/half"}
    assert sum("/commit/" in path for _, path in hub.calls) == 1


def _nan(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] = float("nan")
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})


def _append(folder: Path) -> None:
    with (folder / "modeling_darwinlm.py").open("a") as file:
        file.write("import os\nos.system('id')\n")


UNASKED = {
    ".env": lambda folder: (folder / ".env").write_text("TOKEN=1"),
    "optimizer.bin": lambda folder: (folder / "optimizer.bin").write_text("x"),
    "more.safetensors": lambda folder: (folder / "more.safetensors").write_text("x"),
    "deep/NOTES.md": lambda folder: ((folder / "deep").mkdir(), (folder / "deep" / "NOTES.md").write_text("x")),
    "LICENSE": lambda folder: (folder / "LICENSE").symlink_to("/etc/hostname"),
}
WRONG = {"finite": _nan, "modeling_darwinlm.py": _append}


@pytest.mark.parametrize("name", [*UNASKED, *WRONG])
def test_a_run_is_published_as_it_was_written_or_not_at_all(command, hub: Hub, finished_copy: Path, name) -> None:
    (UNASKED | WRONG)[name](finished_copy / "model")
    for what in (finished_copy, finished_copy / "model"):
        for more in ([], ["--dry-run"]):
            command("push", what, "me/half", *more).refused("isn't as it was written: model/")
    command("show", "--verify", finished_copy).refused("checks failed; the first is model/")
    assert hub.calls == []


@pytest.mark.parametrize("name", [*UNASKED, *WRONG])
def test_a_model_without_a_record_goes_by_its_names(command, hub: Hub, tmp_path: Path, name) -> None:
    folder = pruned_checkpoint(tmp_path / "half", "llama", {1: (2, 1, 64)})
    before = files_of(folder)
    (UNASKED | WRONG)[name](folder)
    if name == "LICENSE" or name in WRONG:
        command("push", folder, "me/half").refused(name)
        assert hub.calls == []
    else:
        assert name not in command("push", folder, "me/half", "--dry-run").succeeded().out
        command("push", folder, "me/half").succeeded()
        assert hub.repos["me/half"] == before


@pytest.mark.parametrize("to", ["the run", "hf", "dense", "vllm"])
def test_nothing_published_names_this_machine(command, finished_llama: Path, tmp_path: Path, to) -> None:
    folder = finished_llama / "model"
    if to != "the run":
        folder = tmp_path / "out"
        command("export", finished_llama, "--to", to, "--out", folder).succeeded()
    for name, content in files_of(folder).items():
        assert str(tmp_path.parent).encode() not in content, name
        assert b"local_files_only" not in content, name
        assert (folder / name).stat().st_mode == (folder / "config.json").stat().st_mode, name


def test_a_gguf_file_goes_along(command, hub: Hub, tmp_path: Path) -> None:
    model = plain_checkpoint(tmp_path / "half", "llama")
    command("push", model, "me/half", "--gguf", "f16").succeeded()
    assert hub.repos["me/half"]["half-f16.gguf"][:4] == b"GGUF"
    assert {**hub.repos["me/half"], "half-f16.gguf": b""} == {**files_of(model), "half-f16.gguf": b""}


def test_a_dry_run_needs_no_token_and_reaches_nothing(command, hub: Hub, finished_llama: Path, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    ended = command("push", finished_llama, "me/half", "--dry-run", "--gguf", "q8_0").succeeded()
    for name in files_of(finished_llama / "model"):
        assert name in ended.out
    assert "half-q8_0.gguf  built from the weights" in ended.out
    assert "nothing was uploaded" in ended.out
    assert hub.calls == []


def test_a_repository_that_exists(command, hub: Hub, finished_llama: Path) -> None:
    hub.repos["me/half"] = {"kept.txt": b"kept"}
    command("push", finished_llama, "me/half").refused("me/half exists on the hub", "pass --update")
    assert hub.repos["me/half"] == {"kept.txt": b"kept"}
    assert command("push", finished_llama, "me/half", "--update").code == 0
    assert hub.repos["me/half"]["kept.txt"] == b"kept"
    assert "model.safetensors" in hub.repos["me/half"]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "there is no token for the hub: run `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "the hub doesn't accept the token"),
        (READ_ONLY, "the token may not write to me/half"),
    ],
)
def test_tokens(command, hub: Hub, finished_llama: Path, monkeypatch, tmp_path: Path, token, message: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    command("push", finished_llama, "me/half").refused(message)
    assert hub.repos == {}


def test_another_refusal_of_the_hub(command, hub: Hub, finished_llama: Path, monkeypatch) -> None:
    monkeypatch.setattr(hub.RequestHandlerClass, "_create", lambda self, _: self._send(400, {"error": "no room"}))
    command("push", finished_llama, "me/half").refused("the hub refuses me/half: Bad request")


def test_a_card_that_the_hub_refuses(command, hub: Hub, finished_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_llama / "model", tmp_path / "broken"))
    (folder / "README.md").write_text("---\nlicense: [\n---\n# card\n")
    command("push", folder, "me/half").refused("the hub refuses the model card", "front matter isn't YAML")
    assert hub.repos["me/half"] == {}


def test_no_hub(command, hub: Hub, finished_llama: Path, monkeypatch) -> None:
    from huggingface_hub import constants

    hub.server_close()
    command("push", finished_llama, "me/half").refused("can't reach the hub", "check the network")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    command("push", finished_llama, "me/half").refused("HF_HUB_OFFLINE is set: unset it")


def test_what_is_no_model(command, hub: Hub, finished_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    command("push", tmp_path / "empty", "me/half").refused("is not a model", "no config.json")
    command("push", tmp_path / "nowhere", "me/half").refused("there is no folder")
    unfinished = Path(shutil.copytree(finished_llama, tmp_path / "unfinished"))
    (unfinished / "summary.json").unlink()
    command("push", unfinished, "me/half").refused("isn't finished: rerun its command")
    command("push", finished_llama, "half").refused("'half' is not a repository name: give owner/name")
    command("push", finished_llama, "me/half", "--gguf", "q1").refused("--gguf q1: there is no such type", "q8_0")
    assert hub.calls == []


def test_a_model_without_a_card_is_told_of(command, hub: Hub, finished_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished_llama / "model", tmp_path / "bare"))
    (folder / "README.md").unlink()
    ended = command("push", folder, "me/bare").succeeded()
    assert "has no model card (README.md)" in ended.out
    assert hub.repos["me/bare"] == files_of(folder)
