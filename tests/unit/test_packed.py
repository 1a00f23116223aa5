"""Training text on disk: the source's tokens end to end, in any length, also after a kill; and the end of the text."""

import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tests.tiny.tokenizer import EOS_ID, tiny_tokenizer
from tests.unit.test_parallel import in_processes

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ArtifactError, DataError, StorageError
from darwinlm.text import packed
from darwinlm.text.packed import PackedText, pack_documents
from darwinlm.text.packing import document_hash

DOCUMENTS = [f"document {number} " + "word " * (number % 7) for number in range(300)]
TWICE, RESERVED = [*DOCUMENTS[:20], *DOCUMENTS], {document_hash(text) for text in DOCUMENTS[3:9]}


def tokens_of(documents):
    tokenizer = tiny_tokenizer()
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] + [EOS_ID] for text in documents]
    return torch.tensor([token for part in ids for token in part])


def pack(folder, tokens=3000, documents=DOCUMENTS, **options):
    options = {"vocabulary": 300, **options}
    pack_documents(documents, folder, tokens, tiny_tokenizer(), **options)


def read(folder, seq_len, blocks):
    text = PackedText(folder, seq_len, blocks)
    return torch.cat([text[number]["input_ids"] for number in range(len(text))])


@pytest.mark.parametrize("seq_len", [8, 100, 1500])
@pytest.mark.parametrize("vocabulary", [300, 100_000])
def test_it_is_the_sources_tokens_end_to_end(tmp_path, seq_len, vocabulary):
    pack(tmp_path, vocabulary=vocabulary)
    found = read(tmp_path, seq_len, 3000 // seq_len)
    assert torch.equal(found, tokens_of(DOCUMENTS)[: len(found)])
    assert sum(path.stat().st_size for path in tmp_path.glob("*.bin")) == 3000 * (2 if vocabulary == 300 else 4)


def test_bos_takes_the_place_of_every_first_token(tmp_path):
    pack(tmp_path)
    text = PackedText(tmp_path, 50, 20, bos=7)
    plain = tokens_of(DOCUMENTS)[:1000].view(20, 50)
    found = torch.stack([text[number]["input_ids"] for number in range(20)])
    assert found[:, 0].tolist() == [7] * 20
    assert torch.equal(found[:, 1:], plain[:, 1:])


def test_repeated_and_reserved_documents_are_left_out(tmp_path):
    pack(tmp_path, documents=TWICE, reserved=RESERVED)
    kept = [*DOCUMENTS[:3], *DOCUMENTS[9:]]
    assert torch.equal(read(tmp_path, 100, 30), tokens_of(kept)[:3000])


def test_it_begins_again_after_a_kill(tmp_path, monkeypatch):
    monkeypatch.setattr(packed, "_BATCH", 8)

    def killed():
        yield from DOCUMENTS[:40]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path, documents=killed())
    pack(tmp_path)
    assert torch.equal(read(tmp_path, 100, 30), tokens_of(DOCUMENTS)[:3000])
    pack(tmp_path, documents=iter(()))  # a finished text isn't read again


def read_by_the_first():
    assert parallel.is_main(), "no other process may read the source"
    yield from TWICE


def packed_together(folder, rank):
    """What a process hears of a text that is too short, after one that isn't."""
    packed._BATCH = 8
    pack(folder, documents=read_by_the_first(), reserved=RESERVED)
    with pytest.raises(DataError) as refused:
        pack(folder, tokens=50_000, documents=read_by_the_first(), reserved=RESERVED)
    return str(refused.value)


def test_processes_pack_what_one_packs(tmp_path):
    """They go on from a finished text too, and all of them hear that it is too short."""
    pack(tmp_path / "one", documents=TWICE, reserved=RESERVED)
    said = in_processes(partial(packed_together, tmp_path / "new"), tmp_path)
    for path in (tmp_path / "one").glob("*.bin"):
        assert path.read_bytes() == (tmp_path / "new" / path.name).read_bytes(), path.name
    assert said[0] == said[1]
    assert said[0].startswith("The text is too short")
    assert f"({len(TWICE)} documents were read" in said[0]


def test_text_that_runs_out_is_refused(tmp_path):
    there = len(tokens_of(DOCUMENTS))
    message = rf"is too short: training needs 50000 tokens, but there are only {there} \(300 doc"
    with pytest.raises(DataError, match=message):
        pack(tmp_path, tokens=50_000, source="a.txt")


def test_text_that_other_purposes_used_up_is_refused(tmp_path):
    reserved = {document_hash(text) for text in DOCUMENTS}
    message = r"needs 50000 tokens, but none are left \(300 documents .*\)\. Give more text \(--text\)\.$"
    with pytest.raises(DataError, match=message):
        pack(tmp_path, tokens=50_000, reserved=reserved)


def test_a_disk_without_room_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=10**9, used=10**9, free=1000))
    with pytest.raises(StorageError, match=r"training text takes .*, but 1 kB are free"):
        pack(tmp_path, documents=iter(()))


def test_a_file_that_is_gone_or_cut_is_refused(tmp_path):
    pack(tmp_path)
    with pytest.raises(ArtifactError, match="3100 tokens are needed, but the file holds 3000"):
        PackedText(tmp_path, 100, 31)
    path = tmp_path / "tokens.bin"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"tokens\.bin is damaged .it was changed after it was written"):
        PackedText(tmp_path, 100, 30)
    path.unlink()
    with pytest.raises(ArtifactError, match=r"tokens\.bin is damaged"):
        PackedText(tmp_path, 100, 30)
