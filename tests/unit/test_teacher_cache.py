"""Stored log-probabilities of the dense model: equal losses, computed once; foreign or damaged files are refused."""

import shutil

import pytest
import torch
from safetensors.torch import load
from tests.tiny.models import tiny_model
from torch.utils.data import Dataset, default_collate

from darwinlm.recipe import RecoverySettings
from darwinlm.recovery import cache, model
from darwinlm.recovery.cache import STORED, cached_text
from darwinlm.recovery.losses import TopK, weighted
from darwinlm.recovery.model import batch_loss, run_dense
from darwinlm.runtime.errors import ArtifactError, StorageError

LENGTH = 16
KEY = {"teacher": "a model", "dtype": "float32"}

MOSTLY = weighted(RecoverySettings(distillation=0.8))


class Blocks(Dataset):
    """Random text."""

    def __init__(self, count, seed=0):
        self.tokens = torch.randint(3, 250, (count, LENGTH), generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, block):
        return {"input_ids": self.tokens[block]}


class Passes:
    """Count the blocks that a dense model processes, and stop it after a number of them."""

    def __init__(self, monkeypatch, stop_after=10**9):
        self.blocks = 0
        whole = cache.dense_top

        def counting(teacher, tokens, *rest):
            self.blocks += len(tokens)
            if self.blocks > stop_after:
                raise KeyboardInterrupt
            return whole(teacher, tokens, *rest)

        monkeypatch.setattr(cache, "dense_top", counting)


@pytest.fixture(scope="module")
def teacher():
    return tiny_model("llama").requires_grad_(False)


@pytest.fixture
def store(teacher, tmp_path, monkeypatch):
    """Store seven blocks in shards of two, or other text and settings."""

    monkeypatch.setattr(model, "LOGIT_CHUNK", 5)

    def run(text=None, key=KEY, folder=tmp_path / "cache", **more):
        more = {"batch_rows": 1, "top_k": 12, "shard_tokens": 2 * LENGTH} | more
        return cached_text(text or Blocks(7), more.pop("teacher", teacher), folder, key, **more)

    return run


@pytest.mark.parametrize("model_type", ["llama", "gemma2"])
def test_the_loss_is_that_of_the_same_top_k_from_the_living_model(store, model_type):
    living, ours, again = (tiny_model(model_type, seed).requires_grad_(seed > 0) for seed in (0, 1, 1))
    stored = store(key={"teacher": "a", "dtype": "float32"}, teacher=living)
    batch = default_collate([stored[block] for block in (6, 0, 3)])
    tokens = batch["input_ids"]
    assert torch.equal(tokens, Blocks(7).tokens[[6, 0, 3]])
    kept = TopK(*(batch[name] for name in STORED))
    found = batch_loss(ours, None, tokens, kept, MOSTLY, chunk=7)
    expected = batch_loss(again, None, tokens, model.dense_top(living, tokens, 12), MOSTLY, chunk=7)
    for loss in (found, expected):
        loss.backward()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    for ours_of, theirs in zip(ours.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(ours_of.grad, theirs.grad, rtol=1e-2, atol=1e-4)
    assert abs(batch_loss(again, living, tokens, run_dense(living, tokens), MOSTLY) - expected) > 1e-2


def test_text_is_gone_over_once_and_longer_text_takes_what_it_shares(store, monkeypatch):
    passes = Passes(monkeypatch)
    first = store(Blocks(6))
    assert passes.blocks == 6
    again = store(Blocks(6))
    assert passes.blocks == 6
    assert all(torch.equal(first[block][name], again[block][name]) for block in range(6) for name in STORED)
    longer = Blocks(9)
    longer.tokens[:6] = Blocks(6).tokens
    store(longer)
    assert passes.blocks == 9
    for key in ({**KEY, "teacher": "another"}, {**KEY, "dtype": "bfloat16"}):
        store(Blocks(6), key)
    assert passes.blocks == 21


def test_an_interrupted_pass_leaves_whole_shards(store, monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        Passes(patched, stop_after=5)
        with pytest.raises(KeyboardInterrupt):
            store()
    assert len(list((tmp_path / "cache").iterdir())) == 2
    passes = Passes(monkeypatch)
    store()
    assert passes.blocks == 3


def shards(folder):
    return sorted(folder.iterdir())


@pytest.mark.parametrize("how", ["flipped", "short", "empty"])
def test_a_damaged_shard_is_refused(store, tmp_path, how):
    store()
    path = shards(tmp_path / "cache")[1]
    whole = path.read_bytes()
    numbers = load(whole)
    broken = {"flipped": whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:], "short": whole[:-9], "empty": b""}
    path.write_bytes(broken[how])
    with pytest.raises(ArtifactError, match=rf"{path.name}, a shard of the teacher cache, is damaged .*delete that"):
        store()
    path.unlink()
    store()
    again = load(path.read_bytes())
    assert all(torch.equal(again[name], numbers[name]) for name in STORED)


def test_a_shard_of_something_else_is_refused(store, tmp_path):
    store()
    store(key={**KEY, "teacher": "another"}, folder=tmp_path / "other")
    path = shards(tmp_path / "cache")[0]
    shutil.copy(shards(tmp_path / "other")[0], path)
    with pytest.raises(ArtifactError, match=rf"{path.name} belongs to another dense model or another text"):
        store()


def test_a_file_instead_of_a_folder(store, tmp_path):
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(ArtifactError, match=r"cache is a file, but the teacher cache needs a folder"):
        store()
    with pytest.raises(StorageError, match=r"can't write .*cache/below"):
        store(folder=tmp_path / "cache" / "below")


def test_no_room(store, little_room):
    with pytest.raises(StorageError, match=r"the teacher cache takes .*, but 1 kB are free.*folder"):
        store()
