"""Use of context: copying of lists and passages."""

import math
from types import SimpleNamespace

import pytest
import torch
from tests.tiny.tokenizer import tiny_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from darwinlm.runtime.errors import DataError
from darwinlm.steps.evaluate.looking_back import all_copying, measure_copying, passages, word_lists, word_tokens

VOCABULARY = 1000


def word_tokenizer(words: int = 600, *, mark: str = "▁", add_bos: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are words of letters, and a few that are none."""
    letters = "abcdefghij"
    names = ["".join(letters[int(digit)] for digit in f"{number:03d}") for number in range(words)]
    pieces = ["<unk>", "<s>", "ab", "12x", f"{mark}Abc", *(mark + name for name in names)]
    inner = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    if add_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>")


class Copier:
    """A model that has seen nothing but its context: after a token it expects what followed that token before.

    Args:
        reach: How far it looks back, in tokens.
    """

    device = torch.device("cpu")

    def __init__(self, reach: int = 10_000) -> None:
        self.reach = reach

    def __call__(self, input_ids: torch.Tensor, use_cache: bool, logits_to_keep: int = 0) -> SimpleNamespace:
        logits = torch.zeros(*input_ids.shape, VOCABULARY)
        for row, tokens in enumerate(input_ids.tolist()):
            for place, token in enumerate(tokens):
                for before in range(max(0, place - self.reach), place):
                    if tokens[before] == token:
                        logits[row, place, tokens[before + 1]] = 5.0
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


@pytest.mark.parametrize("mark", ["▁", "Ġ"])
def test_lists_are_words_of_the_vocabulary_and_come_twice(mark):
    tokenizer = word_tokenizer(mark=mark)
    assert word_tokens(tokenizer) == list(range(5, 605)), "whole words of letters with the mark"
    lists = word_lists(tokenizer, 64)
    assert lists.tokens.shape == (16, 128)
    assert torch.equal(lists.tokens[:, :64], lists.tokens[:, 64:])
    assert all(len(row.unique()) == 64 for row in lists.tokens)
    assert torch.equal(word_lists(tokenizer, 64).tokens, lists.tokens)
    assert word_lists(word_tokenizer(add_bos=True), 16).tokens[:, 0].tolist() == [1] * 16


def test_a_tokenizer_with_too_few_words_is_refused():
    assert len(word_tokens(word_tokenizer(mark=""))) == 600, "words without a mark where none has one"
    with pytest.raises(DataError, match=r"has 100 tokens that are words of 3 letters or more.* take 256"):
        word_lists(word_tokenizer(words=100), 16)


def test_what_is_left_out_is_said():
    text = torch.arange(4 * 100).view(4, 100)
    kept, remarks = all_copying(tiny_tokenizer(), text, 64)
    assert kept == []
    for remark, words in zip(remarks, ("0 tokens that are words", "over 256 tokens", "model 64"), strict=True):
        assert words in remark
    kept, remarks = all_copying(word_tokenizer(), text[:, :50], 64)
    assert [each.name for each in kept] == ["16 words"]
    assert remarks[-1] == "copying of 64 words takes 128 tokens, and the model 64"


@pytest.mark.parametrize("batch_tokens", [1, 300, 5000])
def test_a_model_that_copies_is_told_from_one_that_does_not_look_so_far(batch_tokens):
    tokenizer = word_tokenizer()
    lists = word_lists(tokenizer, 16)
    generator = torch.Generator().manual_seed(0)
    text = torch.stack([torch.randperm(VOCABULARY, generator=generator)[:300] for _ in range(4)])
    far = passages(tokenizer, text, 16, 100)
    found = measure_copying({"all": Copier(), "near": Copier(reach=50)}, [lists, far], batch_tokens=batch_tokens)
    loss = math.log(1 + (VOCABULARY - 1) * math.exp(-5.0))
    assert [score.accuracy for score in found["all"]] == [1, 1]
    assert [score.loss for score in found["all"]] == pytest.approx([loss, loss], rel=1e-4)
    assert [score.accuracy for score in found["near"]] == pytest.approx([1, 0], abs=0.05)
    assert found["near"][1].loss == pytest.approx(math.log(VOCABULARY), rel=0.01)
    assert [score.tokens for score in found["all"]] == [16 * 15, 4 * 15]
