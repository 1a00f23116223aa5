"""Folders of stages: complete with their manifest, reused for the same key, never trusted when damaged."""

import errno
import os
import secrets
import stat
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from tests.tiny.damage import flip

from darwinlm.runtime import artifact
from darwinlm.runtime.artifact import (
    KEY,
    MANIFEST,
    StageFolder,
    read_json,
    read_manifest,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from darwinlm.runtime.errors import ArtifactError, NumericsError, StorageError
from darwinlm.runtime.mapped import mapped_file

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


def test_a_folder_is_complete_once_its_manifest_is_there(tmp_path):
    """Until then, a stage with the same key keeps what was written."""
    made, temporary = stage(tmp_path / "s"), tmp_path / "s" / ".a.json.123.tmp"
    assert not made.is_complete()
    made.begin()
    write_json(tmp_path / "s" / "a.json", 1)
    again = stage(tmp_path / "s")
    again.begin()
    assert not again.is_complete(), "begun and written to, but not finished"
    key = (tmp_path / "s" / KEY).read_text()
    (tmp_path / "s" / KEY).write_text(key[:6])
    with pytest.raises(ArtifactError, match=r"key\.json is damaged"):
        again.begin()
    (tmp_path / "s" / KEY).write_text(key)
    assert names(tmp_path / "s") == {KEY, "a.json"}
    temporary.write_text("left by a killed process")
    again.finish(seconds=2.0, resumed=True)
    temporary.unlink()
    assert made.is_complete()
    manifest = read_manifest(made.folder)
    assert (manifest.seconds, manifest.resumed) == (2.0, True)


def test_another_machine_waits_for_the_manifest(tmp_path, monkeypatch):
    """It shows late there, with what the stage has read, which identifies the result; without it, that is an error."""
    monkeypatch.setattr(artifact, "SEEN_LATE", 900.0)
    made, reads = stage(tmp_path / "s"), {"model": {"tokenizer": "abc"}}
    made.begin()
    seen = stage(tmp_path / "s")
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(seen.await_manifest)
        assert wait([waiting], timeout=0.3).not_done
        made.finish(reads=reads)
        waiting.result(timeout=900)
    assert seen.reads == reads
    assert seen.digest == made.digest != stage(tmp_path / "s").digest
    monkeypatch.setattr(artifact, "SEEN_LATE", 0.0)
    with pytest.raises(StorageError, match=r"nowhere/manifest\.json .* isn't here: give an output folder"):
        stage(tmp_path / "nowhere").await_manifest()


@pytest.mark.parametrize("before", ["finished", "finished, with another key", "begun, with another key", "no key"])
def test_what_cannot_be_continued_is_dropped(tmp_path, before):
    if before == "no key":
        (tmp_path / "s").mkdir()
    elif before.startswith("begun"):
        stage(tmp_path / "s", seed=1).begin()
    else:
        finished(tmp_path / "s", seed=1)
    if before.startswith("begun"):
        write_json(tmp_path / "s" / "more.json", 1)
    made = stage(tmp_path / "s", seed=1 if before == "finished" else 2)
    assert made.is_complete() == (before == "finished")
    made.begin()
    assert names(tmp_path / "s") == {KEY}
    assert read_json(tmp_path / "s" / KEY) == made.key


@pytest.mark.parametrize("before", ["finished", "no key"])
def test_what_no_run_wrote_is_kept(tmp_path, before):
    if before == "finished":
        finished(tmp_path / "s", seed=1)
    write_text(tmp_path / "s" / "below" / "thesis.txt", "three years of work")
    there = names(tmp_path / "s")
    with pytest.raises(ArtifactError, match=r"thesis\.txt was not written by a run, so .* is kept: move it away"):
        stage(tmp_path / "s", seed=2).begin()
    assert names(tmp_path / "s") == there


@pytest.mark.parametrize("link", ["stages", "stages/s"])
def test_nothing_behind_a_link_is_deleted(tmp_path, link):
    made = finished(tmp_path / "stages" / "s", seed=1)
    (tmp_path / link).rename(tmp_path / "elsewhere")
    (tmp_path / link).symlink_to(tmp_path / "elsewhere")
    assert made.is_complete()
    there = names(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=rf"{tmp_path / link} is a symbolic link, and what lies behind one is kept"):
        stage(tmp_path / "stages" / "s", seed=2).begin()
    assert names(tmp_path / "elsewhere") == there


@pytest.mark.parametrize("name", [*CONTENT, "c.safetensors"])
@pytest.mark.parametrize("how", ["flipped", "missing"])
def test_damage_of_any_file_is_found(tmp_path, name, how):
    made = finished(tmp_path / "s")
    path = tmp_path / "s" / name
    flip(path) if how == "flipped" else path.unlink()
    with pytest.raises(ArtifactError, match=r"damaged.*rerun the same command") as caught:
        made.is_complete()
    for part in (str(path), f"delete the folder {tmp_path / 's'} and", "it is missing" if how == "missing" else ""):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        *((content, "manifest") for content in ("", "{", "\x00")),
        ("[]", "it holds something else: "),
        *(
            (content, "it holds something else at (key|files|facts): ")
            for content in ("{}", '{"key": {}}', '{"key": {}, "files": [], "facts": {}}')
        ),
    ],
)
def test_a_damaged_manifest_is_named(tmp_path, content, said):
    made = finished(tmp_path / "s")
    (tmp_path / "s" / MANIFEST).write_text(content)
    for read in (made.is_complete, lambda: read_manifest(tmp_path / "s")):
        with pytest.raises(ArtifactError, match=said):
            read()


@pytest.mark.parametrize("content", [None, b"", b"{", b"{2345678", b"\xff\xfe", b"\xff" * 64, "cut"])
@pytest.mark.parametrize(("name", "read"), [("w.safetensors", read_tensors), ("a.json", read_json)])
def test_damaged_files_are_named(tmp_path, content, name, read):
    path = tmp_path / name
    if content == "cut":
        write_tensors(path, {"w": torch.zeros(100)})
        path.write_bytes(path.read_bytes()[:-4])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{name} is damaged"):
        read(path)


def test_a_block_without_modules_has_a_file_without_tensors(tmp_path):
    write_tensors(tmp_path / "none.safetensors", {})
    assert read_tensors(tmp_path / "none.safetensors") == {}


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(NumericsError, match="isn't finite"):
        write_json(tmp_path / "a.json", {"kl": float("nan")})
    assert not names(tmp_path)


SERIALISING = "Error while serializing: IoError(Os { code: 28, message: 'No space left on device' })"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (SafetensorError(SERIALISING), "the disk is full"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "your quota of the disk is used up"),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), "allows no file this large"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS)), "the disk is read-only"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "x.tmp"), "Permission denied: check the path"),
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda folder: write_tensors(folder / "w.safetensors", {"w": torch.zeros(2)}),
        lambda folder: write_json(folder / "a.json", {}),
        lambda folder: write_text(folder / "a.txt", "text"),
    ],
    ids=["tensors", "JSON", "text"],
)
def test_what_a_disk_refuses(tmp_path, monkeypatch, call, error, said):
    def refuse(to: Path) -> None:
        to.write_bytes(b"half of it")
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", lambda tensors, to, metadata: refuse(Path(to)))
    monkeypatch.setattr(Path, "write_text", lambda self, *_, **__: refuse(self))
    with pytest.raises(StorageError, match=said):
        call(tmp_path)
    assert not names(tmp_path)


def test_a_file_in_place_of_a_folder(tmp_path):
    (tmp_path / "s").write_text("a file")
    for write in (
        lambda: write_json(tmp_path / "s" / "a.json", 1),
        lambda: write_tensors(tmp_path / "s" / "w.safetensors", {"w": torch.zeros(1)}),
        lambda: stage(tmp_path / "s" / "below").begin(),
    ):
        with pytest.raises(StorageError, match="can't write"):
            write()
    with pytest.raises(ArtifactError, match="is a file where a folder should be"):
        stage(tmp_path / "s").begin()
    assert not stage(tmp_path / "s" / "below").is_complete()
    assert not stage(tmp_path / "s").is_complete()
    assert (tmp_path / "s").read_text() == "a file"


def test_writers_of_processes_with_one_number_do_not_meet(tmp_path, monkeypatch):
    """As in two containers that share a folder: the second one writes while the first one does."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    path = tmp_path / "a.json"

    def first(to):
        to.write_text("first")
        artifact.write_text(path, "second")
        assert path.read_text() == "second"

    artifact.write_atomically(path, first)
    assert path.read_text() == "first"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_new_files_follow_the_umask_and_no_link(tmp_path, umask, monkeypatch):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    monkeypatch.setattr(secrets, "token_hex", lambda n: "f" * 2 * n)
    (tmp_path / f".a.safetensors.{secrets.token_hex(8)}.tmp").symlink_to(victim)
    before = os.umask(umask)
    try:
        write_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(2)})
        write_json(tmp_path / "a.json", {})
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / f"a.{end}").stat().st_mode) for end in ("safetensors", "json")} == {0o666 & ~umask}
    assert victim.read_text() == "precious"
    assert not (tmp_path / "a.safetensors").is_symlink()


def test_a_change_that_hides_its_time_is_seen(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    before = path.stat()
    while time.time_ns() - before.st_ctime_ns < 2 * artifact.TICK:
        time.sleep(0.01)
    digest = artifact.file_digest(path)
    path.write_bytes(b"after!")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert artifact.file_digest(path) != digest


def test_mapped_files_of_processes_with_one_number_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in two containers that share a folder."""
    monkeypatch.setattr(os, "getpid", lambda: 7)
    others = [tmp_path / f".mapped-{number}.7.tmp" for number in range(200)]
    for other in others:
        other.write_bytes(b"theirs")
    mapped_file(tmp_path, 10, torch.float32).fill_(1.0)
    assert [other.read_bytes() for other in others] == [b"theirs"] * 200
    assert len([*tmp_path.iterdir()]) == 200, "ours has no name any more"
