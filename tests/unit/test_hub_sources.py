"""Data sets of the hub, by a library that is replaced."""

from types import SimpleNamespace

import pytest
from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable
from tests.unit.test_sources import ROWS, TEXTS, message, read

from darwinlm.runtime.errors import DataError
from darwinlm.text import read_documents


@pytest.fixture
def hub(monkeypatch):
    """Replace `load_dataset`: it returns `hub.rows` or raises `hub.error`, and records its arguments."""
    state = SimpleNamespace(calls=[], rows=ROWS, error=None, taken=0)

    def load_dataset(*arguments, **options):
        state.calls.append((arguments, options))
        if state.error is not None:
            raise state.error
        return IterableDataset(ExamplesIterable(stream, {}))

    def stream():
        for number, row in enumerate(state.rows):
            state.taken += 1
            yield number, row

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    return state


@pytest.mark.parametrize(
    ("source", "name", "config", "split"),
    [
        ("hf:someone/things", "someone/things", None, "train"),
        ("hf:someone/things:small-1.0", "someone/things", "small-1.0", "train"),
        ("hf:someone/things@test", "someone/things", None, "test"),
        ("hf:things:small@train[:10%]", "things", "small", "train[:10%]"),
        ("hf:HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb-edu", None, "train"),
    ],
)
def test_hub_is_streamed(hub, source, name, config, split):
    assert read(source) == TEXTS
    assert hub.calls == [((name, config), {"split": split, "streaming": True})]


def test_hub_with_a_field(hub):
    hub.rows = [{"text": "no", "body": "yes"}]
    assert read("hf:someone/things:small@train#body") == ["yes"]
    assert "row 1: there is no field other; the existing fields are: body, text" in message("hf:someone/things#other")


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:a b", "hf:a/b@", "hf://a/b"])
def test_malformed_hub_name(hub, source):
    assert "this isn't a data set's name. Write hf:owner/name" in message(source)
    assert not hub.calls


def test_hub_that_breaks_off(hub):
    def rows():
        yield ROWS[0]
        raise RuntimeError

    hub.rows = rows()
    documents = read_documents("hf:someone/things")
    assert next(documents) == "document 0"
    with pytest.raises(DataError, match=r"can't be read \(RuntimeError\)"):
        next(documents)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_hub_offline(hub, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    hub.error = ConnectionError("Couldn't reach the hub")
    text = message("hf:someone/things")
    assert (
        f"(Couldn't reach the hub). Check its name, :config, @split, your log-in and the network, and unset {variable}"
        in text
    )
    assert "give local text" in text


@pytest.mark.parametrize("error", [ConnectionError("no network"), FileNotFoundError("no such set"), ValueError("tset")])
def test_what_cannot_be_opened(hub, error):
    hub.error = error
    assert f"hf:someone/things@train: the data set can't be read ({error}). Check its name" in message(
        "hf:someone/things"
    )


def test_a_data_set_without_text(hub):
    hub.rows = []
    assert "there is no text in it" in message("hf:someone/things")
