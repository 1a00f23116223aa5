"""What must hold for any text: disjoint purposes, the same result twice, assignment by document alone."""

import random

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny.tokenizer import EOS_ID, tiny_tokenizer

from darwinlm.runtime.errors import DataError
from darwinlm.text import PURPOSES, TokenSequences, assert_disjoint, document_hash, purpose_of, split_documents

TOKENIZER = tiny_tokenizer()

texts = st.lists(st.text(max_size=40), max_size=40)
plans = st.tuples(
    st.dictionaries(st.sampled_from(PURPOSES), st.integers(1, 60), min_size=1),
    st.integers(1, 16),
    st.integers(0, 2**32),
)
"""Tokens for each purpose, length of a block, seed."""


def split(documents: list[str], plan: tuple[dict[str, int], int, int]) -> dict[str, TokenSequences] | None:
    shares, seq_len, seed = plan
    try:
        return split_documents(documents, shares, TOKENIZER, seq_len, seed)
    except DataError:
        return None


@settings(max_examples=60, deadline=None)
@given(texts, plans)
def test_purposes_are_disjoint_whole_blocks_and_the_same_twice(documents, plan):
    result = split(documents, plan)
    assert split(documents, plan) == result
    if result is None:
        return
    assert_disjoint(result)
    shares, seq_len, _ = plan
    known = {document_hash(document) for document in documents}
    for purpose, blocks in result.items():
        assert blocks.tokens.shape[1] == seq_len
        assert blocks.tokens.dtype == torch.int64
        assert 0 <= blocks.n_tokens - shares[purpose] < seq_len
        assert set(blocks.document_hashes) <= known
        assert len(set(blocks.document_hashes)) == len(blocks.document_hashes)


@settings(max_examples=60, deadline=None)
@given(texts, plans)
def test_tokens_are_those_of_the_documents_named(documents, plan):
    by_hash = {}
    for document in documents:
        by_hash.setdefault(document_hash(document), document)
    for blocks in (split(documents, plan) or {}).values():
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
        result = split(order, (shares, 8, seed))
        assert result is not None
        for purpose, blocks in result.items():
            assert {purpose_of(hashed, shares, seed) for hashed in blocks.document_hashes} == {purpose}
