"""Folders of stages: complete when the manifest is there, reused for the same key, never trusted when damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from darwinlm import artifact
from darwinlm.artifact import (
    KEY,
    MANIFEST,
    StageFolder,
    digest_of,
    file_digest,
    read_json,
    read_tensors,
    write_atomically,
    write_json,
    write_tensors,
    write_text,
)
from darwinlm.errors import ArtifactError, StorageError

CONTENT = {"a.json": {"value": [1, 2]}, "below/b.json": {"value": "é"}}


def stage(folder: Path, **key: object) -> StageFolder:
    return StageFolder(folder, {"stage": "test", **key})


def finished(folder: Path, **key: object) -> StageFolder:
    made = stage(folder, **key)
    made.begin()
    for name, value in CONTENT.items():
        write_json(folder / name, value)
    write_tensors(folder / "c.safetensors", {"w": torch.arange(6.0).view(2, 3)})
    made.finish(seconds=1.5)
    return made


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------------- manifest


def test_a_folder_is_complete_once_its_manifest_is_there(tmp_path):
    made = stage(tmp_path / "s")
    assert not made.is_complete()
    made.begin()
    write_json(tmp_path / "s" / "a.json", 1)
    assert not made.is_complete(), "begun and written to, but not finished"
    made.finish(seconds=2.0, count=3)
    assert made.is_complete()
    assert made.facts() == {"seconds": 2.0, "count": 3}


def test_a_folder_whose_manifest_went_missing_is_not_complete(tmp_path):
    made = finished(tmp_path / "s")
    (tmp_path / "s" / MANIFEST).unlink()
    assert not made.is_complete()


def test_the_manifest_is_written_last(tmp_path, monkeypatch):
    made = stage(tmp_path / "s")
    made.begin()
    write_json(tmp_path / "s" / "a.json", 1)

    def killed(path: Path) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(artifact, "file_digest", killed)
    with pytest.raises(KeyboardInterrupt):
        made.finish()
    assert not made.is_complete()
    assert (tmp_path / "s" / "a.json").exists()


def test_the_manifest_lists_every_file_with_its_hash(tmp_path):
    made = finished(tmp_path / "s")
    manifest = json.loads((tmp_path / "s" / MANIFEST).read_text())
    assert set(manifest["files"]) == {*CONTENT, "c.safetensors"}
    assert all(file_digest(tmp_path / "s" / name) == value for name, value in manifest["files"].items())
    assert manifest["key"] == made.key


def test_a_temporary_file_that_a_killed_process_left_is_not_listed(tmp_path):
    made = stage(tmp_path / "s")
    made.begin()
    (tmp_path / "s" / ".a.json.123.tmp").write_text("half")
    made.finish()
    assert json.loads((tmp_path / "s" / MANIFEST).read_text())["files"] == {}
    (tmp_path / "s" / ".a.json.123.tmp").unlink()
    assert made.is_complete()


# ------------------------------------------------------------------------------------------------------------- keys


def test_another_key_is_not_complete_and_starts_afresh(tmp_path):
    finished(tmp_path / "s", seed=1)
    changed = stage(tmp_path / "s", seed=2)
    assert not changed.is_complete()
    changed.begin()
    assert names(tmp_path / "s") == {KEY}
    assert read_json(tmp_path / "s" / KEY) == changed.key


def test_an_interrupted_stage_keeps_its_files_for_the_same_key(tmp_path):
    first = stage(tmp_path / "s", seed=1)
    first.begin()
    write_json(tmp_path / "s" / "a.json", 1)
    again = stage(tmp_path / "s", seed=1)
    assert not again.is_complete()
    again.begin()
    assert names(tmp_path / "s") == {KEY, "a.json"}


def test_an_interrupted_stage_drops_its_files_for_another_key(tmp_path):
    stage(tmp_path / "s", seed=1).begin()
    write_json(tmp_path / "s" / "a.json", 1)
    stage(tmp_path / "s", seed=2).begin()
    assert names(tmp_path / "s") == {KEY}


def test_a_finished_stage_that_is_begun_again_drops_its_files(tmp_path):
    finished(tmp_path / "s").begin()
    assert names(tmp_path / "s") == {KEY}


def test_files_without_a_key_are_not_trusted(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.json").write_text("1")
    stage(tmp_path / "s").begin()
    assert names(tmp_path / "s") == {KEY}


def test_a_key_that_is_damaged_is_named(tmp_path):
    made = stage(tmp_path / "s")
    made.begin()
    (tmp_path / "s" / KEY).write_text('{"half')
    with pytest.raises(ArtifactError, match=r"key\.json is damaged"):
        made.begin()


def test_keys_compare_as_json(tmp_path):
    made = StageFolder(tmp_path / "s", {"shape": (1, 2), "dtype": torch.float32})
    made.begin()
    made.finish()
    assert StageFolder(tmp_path / "s", {"dtype": "torch.float32", "shape": [1, 2]}).is_complete()


def test_digests_depend_on_the_values_and_not_on_their_order(tmp_path):
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1}) != digest_of({"a": 2})
    assert digest_of([1, 2]) != digest_of([2, 1])
    assert stage(tmp_path, seed=1).digest != stage(tmp_path, seed=2).digest
    assert stage(tmp_path / "x", seed=1).digest == stage(tmp_path / "y", seed=1).digest


# --------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [*CONTENT, "c.safetensors"])
def test_one_flipped_byte_is_found_in_any_file(tmp_path, name):
    made = finished(tmp_path / "s")
    path = tmp_path / "s" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as caught:
        made.is_complete()
    assert str(path) in str(caught.value)
    assert "damaged" in str(caught.value)
    assert "rerun the same command" in str(caught.value)


@pytest.mark.parametrize("name", [*CONTENT, "c.safetensors"])
def test_a_missing_file_is_found(tmp_path, name):
    made = finished(tmp_path / "s")
    (tmp_path / "s" / name).unlink()
    with pytest.raises(ArtifactError, match="it is missing") as caught:
        made.is_complete()
    assert str(tmp_path / "s" / name) in str(caught.value)


def test_the_folder_that_the_message_says_to_delete_is_the_stages_own(tmp_path):
    made = finished(tmp_path / "s")
    (tmp_path / "s" / "below" / "b.json").unlink()
    with pytest.raises(ArtifactError) as caught:
        made.is_complete()
    assert f"delete the folder {tmp_path / 's'} and" in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"key": {}}', "\x00"])
def test_a_damaged_manifest_is_named(tmp_path, content):
    made = finished(tmp_path / "s")
    (tmp_path / "s" / MANIFEST).write_text(content)
    with pytest.raises(ArtifactError, match="manifest"):
        made.is_complete()


def test_a_manifest_of_another_key_with_damaged_files_is_just_another_key(tmp_path):
    finished(tmp_path / "s", seed=1)
    (tmp_path / "s" / "a.json").unlink()
    assert not stage(tmp_path / "s", seed=2).is_complete()


@pytest.mark.parametrize("content", [b"", b"12345678", b"\xff" * 64])
def test_damaged_tensors_are_named(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"w\.safetensors is damaged"):
        read_tensors(tmp_path / "w.safetensors")


def test_truncated_tensors_are_named(tmp_path):
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"w": torch.zeros(100)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match=r"w\.safetensors is damaged"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ArtifactError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ArtifactError, match=r"w\.safetensors is damaged"):
        read_tensors(tmp_path / "w.safetensors")


# ---------------------------------------------------------------------------------------------------------- writing


def test_what_was_written_is_read_back(tmp_path):
    value = {"text": "é ∑", "list": [1, 2.5, None, True]}
    write_json(tmp_path / "deep" / "er" / "a.json", value)
    assert read_json(tmp_path / "deep" / "er" / "a.json") == value
    tensors = {"w": torch.randn(4, 3).T, "b": torch.arange(3, dtype=torch.int32), "h": torch.ones(2).bfloat16()}
    write_tensors(tmp_path / "w.safetensors", tensors)
    found = read_tensors(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    write_text(tmp_path / "a.txt", "é\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "é\n"


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"kl": float("nan")})
    assert not names(tmp_path)


def full(to: Path) -> None:
    to.write_bytes(b"half of it")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    with pytest.raises(StorageError, match="the disk is full: free some space") as caught:
        write_atomically(tmp_path / "s" / "a.bin", full)
    assert str(tmp_path / "s" / "a.bin") in str(caught.value)
    assert "finished work is kept" in str(caught.value)
    assert not names(tmp_path)


def test_a_full_disk_leaves_the_older_file_as_it_was(tmp_path):
    write_text(tmp_path / "a.bin", "older")
    with pytest.raises(StorageError):
        write_atomically(tmp_path / "a.bin", full)
    assert names(tmp_path) == {"a.bin"}
    assert (tmp_path / "a.bin").read_text() == "older"


def test_an_interrupt_leaves_nothing_half_written(tmp_path):
    def interrupted(to: Path) -> None:
        to.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.bin", interrupted)
    assert not names(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (
            SafetensorError("Error while serializing: IoError(Os { code: 28, message: 'No space left on device' })"),
            "the disk is full",
        ),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "your quota of the disk is used up"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "the disk is read-only"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "x.tmp"), "Permission denied: check the path"),
    ],
)
def test_tensors_on_a_full_disk(tmp_path, monkeypatch, error, said):
    def save(tensors: object, to: Path, metadata: object) -> None:
        Path(to).write_bytes(b"half of it")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", save)
    with pytest.raises(StorageError, match=said):
        write_tensors(tmp_path / "w.safetensors", {"w": torch.zeros(2)})
    assert not names(tmp_path)


def test_json_and_text_on_a_full_disk(tmp_path, monkeypatch):
    def write(self: Path, text: str, **_: object) -> int:
        with self.open("w") as stream:
            stream.write(text[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write)
    for call in (lambda: write_json(tmp_path / "a.json", {}), lambda: write_text(tmp_path / "a.txt", "text")):
        with pytest.raises(StorageError, match="the disk is full"):
            call()
    assert not names(tmp_path)


def test_a_disk_that_fills_up_at_the_end_leaves_a_stage_unfinished(tmp_path, monkeypatch):
    made = stage(tmp_path / "s")
    made.begin()
    write_json(tmp_path / "s" / "a.json", 1)
    with monkeypatch.context() as patch:
        patch.setattr(artifact, "write_json", lambda path, value: write_atomically(path, full))
        with pytest.raises(StorageError):
            made.finish()
    assert names(tmp_path / "s") == {KEY, "a.json"}
    again = stage(tmp_path / "s")
    again.begin()
    again.finish()
    assert again.is_complete()


def test_an_error_that_is_not_about_space_says_what_it_is(tmp_path):
    def refused(to: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with pytest.raises(StorageError, match=r"Permission denied.*check the path and its permissions"):
        write_atomically(tmp_path / "a.bin", refused)


def test_a_parent_that_is_a_file(tmp_path):
    (tmp_path / "s").write_text("a file")
    for write in (
        lambda: write_json(tmp_path / "s" / "a.json", 1),
        lambda: write_tensors(tmp_path / "s" / "w.safetensors", {"w": torch.zeros(1)}),
        lambda: stage(tmp_path / "s" / "below").begin(),
    ):
        with pytest.raises(StorageError, match="can't write"):
            write()
    assert names(tmp_path) == {"s"}
    assert not stage(tmp_path / "s" / "below").is_complete()


def test_a_stage_folder_that_is_a_file(tmp_path):
    (tmp_path / "s").write_text("a file")
    made = stage(tmp_path / "s")
    assert not made.is_complete()
    with pytest.raises((StorageError, ArtifactError)):
        made.begin()
    assert (tmp_path / "s").read_text() == "a file"
