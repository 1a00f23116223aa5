"""Random order of documents: complete, reproducible, and with a bounded buffer."""

import json

import pytest

from darwinlm.text import files, read_documents

NUMBERS = [str(number) for number in range(1000)]


def write(path, documents):
    path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return str(path)


@pytest.fixture
def source(tmp_path):
    return write(tmp_path / "a.jsonl", NUMBERS)


@pytest.mark.parametrize("held", [1, 10, 999, 1000, 5000])
def test_every_document_comes_once(source, monkeypatch, held):
    monkeypatch.setattr(files, "BUFFER_DOCUMENTS", held)
    assert sorted(read_documents(source, seed=0)) == sorted(NUMBERS)


def test_order_depends_on_the_seed_and_the_file(source, tmp_path):
    first, again, other = (list(read_documents(source, seed=seed)) for seed in (1, 1, -2))
    assert first == again != other
    assert first != list(read_documents(write(tmp_path / "b.jsonl", NUMBERS), seed=1))


def read_for_first(path, monkeypatch):
    """Number of records that are read before the first document comes, without the sample that is measured."""
    read, original = [], files.json_records

    def noted(path):
        return (read.append(record) or record for record in original(path))

    monkeypatch.setattr(files, "json_records", noted)
    next(read_documents(path, seed=0))
    monkeypatch.setattr(files, "json_records", original)
    return len(read) - files._SAMPLE


def test_a_longer_file_is_read_only_as_far_as_needed(source, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BUFFER_DOCUMENTS", 10)
    assert 10 <= read_for_first(source, monkeypatch) <= 14
    folder = tmp_path / "more"
    folder.mkdir()
    for name in "abcde":
        write(folder / f"{name}.jsonl", NUMBERS)
    assert 2 <= read_for_first(str(folder), monkeypatch) <= 6, "files share the buffer"
