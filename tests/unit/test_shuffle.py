"""Random order of documents: complete, reproducible, and with a bounded buffer."""

import json
import sys
from types import ModuleType

import pytest

from darwinlm.data import Shuffle, read_documents, shuffle

NUMBERS = [str(number) for number in range(1000)]


def write(path, documents):
    path.write_text("\n".join(json.dumps({"text": document}) for document in documents))
    return str(path)


@pytest.mark.parametrize("held", [1, 10, 999, 1000, 5000])
def test_every_document_comes_once(held):
    assert sorted(Shuffle(documents=held).draw(NUMBERS, "a")) == sorted(NUMBERS)


def test_order_depends_on_the_seed_and_the_file_alone():
    first = list(Shuffle(1, 100).draw(NUMBERS, "a"))
    assert first == list(Shuffle(1, 100).draw(iter(NUMBERS), "a"))
    assert first != list(Shuffle(2, 100).draw(NUMBERS, "a"))
    assert first != list(Shuffle(1, 100).draw(NUMBERS, "b"))


def test_a_file_that_fits_is_shuffled_as_a_whole():
    """The first 50 documents come from the whole file; the mean of 50 places has a standard deviation of 40."""
    means = [sum(map(int, list(Shuffle(seed, 1000).draw(NUMBERS, "a"))[:50])) / 50 for seed in range(20)]
    assert abs(sum(means) / 20 - 499.5) < 40
    assert min(means) > 300
    assert max(means) < 700


def test_a_longer_file_is_read_only_as_far_as_needed(monkeypatch):
    taken = []

    def noted(texts):
        taken.clear()
        return (taken.append(text) or text for text in texts)

    drawn = Shuffle(documents=10).draw(noted(NUMBERS), "a")
    first = {next(drawn) for _ in range(5)}
    assert len(taken) == 15
    assert len(first) == 5
    assert first <= set(taken)
    next(Shuffle(documents=10).draw(noted(NUMBERS), "a", files=5))
    assert len(taken) == 3, "files share what is held"
    monkeypatch.setattr(shuffle, "BUFFER_CHARACTERS", 20)
    drawn = Shuffle(documents=50).draw(noted(f"{number:06}" for number in range(100)), "a")
    next(drawn)
    assert len(taken) == 4, "long documents are held by their length"
    assert len(list(drawn)) == 99
    monkeypatch.setattr(shuffle, "BUFFER_CHARACTERS", 2)
    assert sorted(Shuffle(documents=50).draw(["abc", "a", "defg"], "a")) == ["a", "abc", "defg"]


def test_files_of_a_folder_still_come_in_turn(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", [f"{name}{number}" for number in range(20)])
    found = list(read_documents(str(tmp_path), shuffle=Shuffle(documents=1000)))
    assert len(set(found)) == 60
    rounds = [found[start : start + 3] for start in range(0, 60, 3)]
    assert all({document[0] for document in turn} == {"a", "b", "c"} for turn in rounds)
    assert [document for document in found if document[0] == "a"] != [f"a{number}" for number in range(20)]


def test_which_of_many_files_come_first_is_drawn_too(tmp_path, monkeypatch):
    monkeypatch.setattr("darwinlm.data.files.OPEN_FILES", 2)
    for number in range(40):
        write(tmp_path / f"{number:02}.jsonl", [f"{number}"])
    firsts = {next(read_documents(str(tmp_path), shuffle=Shuffle(seed, 10))) for seed in range(10)}
    assert len(firsts) > 5


def test_data_set_of_the_hub_is_shuffled_by_its_library(monkeypatch):
    calls = []

    class Rows(list):
        def shuffle(self, **options):
            calls.append(options)
            return self[::-1]

    module = ModuleType("datasets")
    module.load_dataset = lambda *_arguments, **_options: Rows({"text": number} for number in NUMBERS[:3])
    monkeypatch.setitem(sys.modules, "datasets", module)
    assert list(read_documents("hf:someone/things", shuffle=Shuffle(3, 7))) == ["2", "1", "0"]
    assert calls == [{"seed": 3, "buffer_size": 7}]
