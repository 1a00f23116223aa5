"""Text is split by document, disjoint for any text, packed and stored, also after a kill; too little is refused."""

import random
import shutil
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tests.runtime.test_parallel import in_processes
from tests.tiny.tokenizer import EOS_ID, tiny_tokenizer

from darwinlm.runtime import parallel
from darwinlm.runtime.errors import ArtifactError, DataError, StorageError
from darwinlm.steps.recover import packed_text
from darwinlm.steps.recover.packed_text import PackedText, pack_documents
from darwinlm.steps.text.packing import document_hash
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.splits import PURPOSES, purpose_of, shares_within, split_documents

SHARES = {"calibration": 640, "fitness": 128, "validation": 64, "evaluation": 256}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def documents(count, *, words=8):
    for index in range(count):
        yield " ".join(f"{index}w{word}" for word in range(words))


def split(texts, shares=SHARES, *, tokenizer, seq_len=32, seed=0, source="", most=10**6):
    return split_documents(texts, shares, tokenizer, seq_len, seed, source=source, document_tokens=most)


def test_repeated_documents_are_dropped_whatever_their_case_and_white_space(tokenizer):
    result = split(["One  two\nthree", "one two THREE ", "other"] * 3, {"fitness": 12}, tokenizer=tokenizer, seq_len=4)
    hashes = result["fitness"].document_hashes
    assert hashes == (document_hash("one two three"),)


def test_changing_one_share_moves_no_document_between_two_others():
    before = {"calibration": 600, "fitness": 100, "evaluation": 300}
    after = before | {"fitness": 900}
    for hashed in map(document_hash, documents(500)):
        assert purpose_of(hashed, after, 0) in {purpose_of(hashed, before, 0), "fitness"}


@pytest.mark.parametrize(
    ("texts", "options", "tokens", "documents", "blocks"),
    [
        (["abcdefghij"], {"add_bos": True}, 12, 1, ["<s>abc", "<s>efg", "<s>ij</s>"]),  # in the place of d and h
        (["ab", "cd"], {"add_bos": True}, 8, 2, ["<s>ab</s>", "<s>cd</s>"]),
        (["ab", "cd"], {"with_eos": False}, 4, 2, ["abcd"]),
        (["", "abcd"], {}, 4, 1, ["abcd"]),
    ],
)
def test_documents_stand_end_to_end_and_every_block_begins_with_bos_if_one_is_added(
    texts, options, tokens, documents, blocks
):
    made = tiny_tokenizer(**options)
    found = split(texts, {"fitness": tokens}, tokenizer=made, seq_len=4)["fitness"]
    assert sorted(map(made.decode, found.tokens)) == sorted(blocks)
    assert len(found.document_hashes) == documents


def test_too_little_text_says_what_lacks_and_what_to_lower(tokenizer):
    with pytest.raises(DataError) as caught:
        split(["a" * 31], {"calibration": 32, "evaluation": 64}, tokenizer=tokenizer, source="tiny.txt")
    text = str(caught.value)
    assert "Text source 'tiny.txt' is too short" in text
    assert "1 documents were read, 0 of them repeated" in text
    assert "evaluation has 32 of 64 tokens" in text or "evaluation has 0 of 64 tokens" in text
    assert "text.evaluation_tokens" in text
    with pytest.raises(DataError, match=r"The text is too short: calibration has 0 of 640 .* and text\.evaluation_tok"):
        split([], tokenizer=tokenizer)


def test_shares_of_a_short_text_keep_their_proportions_and_a_block_each():
    wanted = {"calibration": 640, "fitness": 64, "evaluation": 128}
    assert shares_within(wanted, 832, 8) == wanted
    assert shares_within(wanted, 416, 8) == {"calibration": 320, "fitness": 32, "evaluation": 64}
    assert shares_within(wanted, 31, 8) == {"calibration": 8, "fitness": 8, "evaluation": 8}
    assert shares_within(wanted, 23, 8) is None
    for available in range(24, 832, 40):
        shares = shares_within(wanted, available, 8)
        assert sum(shares.values()) <= available
        assert all(tokens % 8 == 0 and tokens for tokens in shares.values())


@pytest.fixture
def blocks():
    return TokenSequences(torch.arange(12).reshape(3, 4), ("ab", "cd"), "novels")


def test_missing_and_foreign_files(tmp_path, blocks):
    with pytest.raises(ArtifactError, match=r"blocks\.json is damaged"):
        TokenSequences.load(tmp_path)
    blocks.save(tmp_path)
    save_file({"tokens": torch.zeros(3)}, tmp_path / "tokens.safetensors")
    with pytest.raises(ArtifactError, match="there are no sequences of tokens in it"):
        TokenSequences.load(tmp_path)
    (tmp_path / "tokens.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"tokens\.safetensors is damaged"):
        TokenSequences.load(tmp_path)


TOKENIZER = tiny_tokenizer()

TEXTS = st.lists(st.text(max_size=40), max_size=40)
PLANS = st.tuples(
    st.dictionaries(st.sampled_from(PURPOSES), st.integers(1, 60), min_size=1),
    st.integers(1, 16),
    st.integers(0, 2**32),
)
"""Tokens for each purpose, length of a block, seed."""


def split_or_none(documents: list[str], plan: tuple[dict[str, int], int, int]) -> dict[str, TokenSequences] | None:
    shares, seq_len, seed = plan
    try:
        return split_documents(documents, shares, TOKENIZER, seq_len, seed)
    except DataError:
        return None


@settings(max_examples=60, deadline=None)
@given(TEXTS, PLANS)
def test_purposes_are_disjoint_whole_blocks_and_the_same_twice(documents, plan):
    result = split_or_none(documents, plan)
    assert split_or_none(documents, plan) == result
    if result is None:
        return
    hashes = [hashed for part in result.values() for hashed in part.document_hashes]
    assert len(hashes) == len(set(hashes)), "no document serves two purposes"
    shares, seq_len, _ = plan
    known = {document_hash(document) for document in documents}
    for purpose, blocks in result.items():
        assert blocks.tokens.shape[1] == seq_len
        assert blocks.tokens.dtype == torch.int64
        assert 0 <= blocks.n_tokens - shares[purpose] < seq_len
        assert set(blocks.document_hashes) <= known
        assert len(set(blocks.document_hashes)) == len(blocks.document_hashes)


@settings(max_examples=60, deadline=None)
@given(TEXTS, PLANS)
def test_tokens_are_those_of_the_documents_named(documents, plan):
    by_hash = {}
    for document in documents:
        by_hash.setdefault(document_hash(document), document)
    for blocks in (split_or_none(documents, plan) or {}).values():
        joined = []
        for hashed in blocks.document_hashes:
            joined += [*TOKENIZER(by_hash[hashed], add_special_tokens=False)["input_ids"], EOS_ID]
        assert blocks.tokens.flatten().tolist() == joined[: blocks.n_tokens]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=40), st.integers(0, 2**32), st.randoms())
def test_assignment_depends_on_neither_order_nor_company(documents, seed, shuffler: random.Random):
    """With an ample stream, every document lands where its hash says, in any order and with any text after it."""
    shares = {"calibration": 64, "fitness": 16, "evaluation": 32}
    filler = [f"filler number {index}" for index in range(200)]
    shuffled = documents + filler
    shuffler.shuffle(shuffled)
    for order in (documents + filler, shuffled):
        result = split_or_none(order, (shares, 8, seed))
        assert result is not None
        for purpose, blocks in result.items():
            assert {purpose_of(hashed, shares, seed) for hashed in blocks.document_hashes} == {purpose}


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
    monkeypatch.setattr(packed_text, "_BATCH", 8)

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
    packed_text._BATCH = 8
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
