"""A smaller vocabulary: which tokens are chosen, and what the cut tokenizer makes of text."""

import json
import random
from types import SimpleNamespace

import pytest
import torch
from tests.tiny.checkpoint import WORDS
from tests.tiny.damage import edit_config
from tests.tiny.vocabulary import BYTES, KINDS, OTHERS, TOKENS, fast, wordy_checkpoint
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.surgery.fewer_tokens import cut_weights, rows_in, special_numbers
from darwinlm.runtime.errors import CheckpointError, ModelError
from darwinlm.steps.text.packing import token_ids
from darwinlm.steps.vocabulary.choose import choose_tokens, kept_size
from darwinlm.steps.vocabulary.spelling import measure_spelling
from darwinlm.steps.vocabulary.token_choice import ModelTokens
from darwinlm.steps.vocabulary.tokenizer_tree import TokenizerTree

TEXTS = (*WORDS, *OTHERS, "the river turns", "é 漢字 🙂", "12 zebras\n\trun", " two  spaces", "</s> ends <s>")


def test_sizes_are_multiples_and_never_more_than_there_are():
    assert kept_size(0.5, 1000) == 512
    assert kept_size(321, 1000) == 384
    assert kept_size(0.99, 1000) == 1000


def closed_choice(tree, tokenizer, uses, size):
    always = tree.indispensable(tokenizer)
    return tree.ordered(choose_tokens(uses, always, {token: tree.path(token) for token in tree.tokens}, size))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_words_whose_tokens_are_kept_are_split_as_before(kind, seed):
    inner = KINDS[kind]()
    tokenizer = fast(inner)
    tree = TokenizerTree(tokenizer, "it")
    rng = random.Random(seed)
    uses = {token: rng.randrange(9) for token in tree.tokens}
    size = len(tree.tokens) - 60
    kept = closed_choice(tree, tokenizer, uses, size)
    assert len(kept) == len(set(kept)) == size
    assert all(set(tree.path(token)) <= set(kept) for token in kept if tree.path(token))
    small = Tokenizer.from_str(json.dumps(tree.cut(kept)))
    assert small.get_vocab() == {tree.tokens[old]: new for new, old in enumerate(kept)}
    new = {old: number for number, old in enumerate(kept)}
    same = longer = 0
    for text in TEXTS:
        before, after = inner.encode(text).ids, small.encode(text).ids
        if new.keys() >= set(before):
            assert [new[token] for token in before] == after, text
            same += 1
        else:
            assert len(after) >= len(before)
            longer += 1
        assert small.decode(after) == inner.decode(before)
    assert same > 5
    assert longer > 5


def test_bytes_special_tokens_and_those_of_the_chat_template_stay_and_then_the_most_used():
    tokenizer = fast(KINDS["byte-level BPE"]())
    tree = TokenizerTree(tokenizer, "it")
    always = tree.indispensable(tokenizer)
    (word,) = tokenizer(" stone", add_special_tokens=False)["input_ids"]
    (other,) = tokenizer(" jungle", add_special_tokens=False)["input_ids"]
    assert {0, 1, 2, TOKENS, *tokenizer("zebra", add_special_tokens=False)["input_ids"]} <= always
    assert other not in always
    kept = closed_choice(tree, tokenizer, {word: 5, other: 1}, len(always | set(tree.path(word))))
    assert word in kept
    assert other not in kept
    fallback = fast(KINDS["BPE with bytes"]())
    assert set(fallback.convert_tokens_to_ids(BYTES)) <= TokenizerTree(fallback, "it").indispensable(fallback)


@pytest.mark.parametrize("direct", [True, False])
def test_a_word_that_no_merge_gives_counts_if_it_is_looked_up_directly(direct):
    """As Llama 3's tokenizer does."""
    tree = json.loads(KINDS["byte-level BPE"]().to_str())
    tree["model"]["ignore_merges"] = direct
    tree["model"]["merges"] = [pair for pair in tree["model"]["merges"] if "".join(pair) != "Ġjungle"]
    tokenizer = fast(Tokenizer.from_str(json.dumps(tree)))
    tree, word = TokenizerTree(tokenizer, "it"), tokenizer.convert_tokens_to_ids("Ġjungle")
    kept = closed_choice(tree, tokenizer, {word: 5}, len(tree.indispensable(tokenizer)) + 1)
    assert (word in kept) is direct


@pytest.mark.parametrize("named_by", ["the settings", "the tokenizer"])
def test_a_token_that_stays_keeps_what_it_is_merged_from(named_by, tmp_path):
    folder = wordy_checkpoint(tmp_path / "dense")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    word = tokenizer.convert_tokens_to_ids("Ġjungle")
    if named_by == "the settings":
        edit_config(folder, eos_token_id=word)
    else:
        tokenizer.add_tokens(["Ġjungle"])
        tokenizer.save_pretrained(folder)
    tokens = ModelTokens.of(Checkpoint.open(folder))
    nothing = torch.zeros(512, dtype=torch.float64)
    nothing[0] = 1.0
    rows = tokens.used_by(["a"], nothing).rows(len(tokens.always))
    small = Tokenizer.from_str(json.dumps(tokens.tree.cut(rows)))
    assert [rows[number] for number in small.encode("a jungle", add_special_tokens=False).ids][1:] == [word]


def test_other_tokenizers_are_refused():
    with pytest.raises(ModelError, match=r"of it can't be cut: its tokenizer is of the type WordLevel.*--vocab"):
        TokenizerTree(fast(Tokenizer(models.WordLevel({"a": 0}, "a"))), "it")
    with pytest.raises(ModelError, match=r"has no tokenizer.json and can't be converted"):
        TokenizerTree(SimpleNamespace(), "it")
    marked = Tokenizer(models.BPE({"a": 0, "##b": 1}, [], continuing_subword_prefix="##"))
    with pytest.raises(ModelError, match="marks the inner"):
        TokenizerTree(fast(marked), "it")


def test_numbers_in_settings_follow(tmp_path):
    folder = wordy_checkpoint(tmp_path / "dense")
    path = folder / "generation_config.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "pad_token_id": 500, "eos_token_id": [2, TOKENS]}))
    edit_config(folder, image_token_id={"a": 1}, odd_token_ids=[[1], 2])
    dense = Checkpoint.open(folder)
    assert special_numbers(dense) == {0, 1, 2, TOKENS, 500}
    cut_weights(dense, [0, 2, TOKENS, 1], tmp_path / "small")
    made = json.loads((tmp_path / "small" / "generation_config.json").read_text())
    assert (made["pad_token_id"], made["eos_token_id"]) == (None, [1, 2])
    config = json.loads((tmp_path / "small" / "config.json").read_text())
    assert (config["vocab_size"], config["bos_token_id"], config["eos_token_id"]) == (4, 3, 1)
    assert (config["image_token_id"], config["odd_token_ids"]) == (None, [1])


def test_rows_of_a_smaller_tokenizer():
    tokenizer = fast(KINDS["byte-level BPE"]())
    tree = TokenizerTree(tokenizer, "it")
    kept = closed_choice(tree, tokenizer, {}, 320)
    small = fast(Tokenizer.from_str(json.dumps(tree.cut(kept))))
    assert rows_in(small, tokenizer, 320, 512) == kept
    assert rows_in(small, tokenizer, 384, 512) is None
    assert rows_in(tokenizer, small, 433, 512) is None
    assert rows_in(tokenizer, tokenizer, 512, 512) is None
    assert rows_in(tokenizer, tokenizer, 433, 512) == list(range(433))
    other = fast(KINDS["BPE with bytes"]())
    assert rows_in(other, tokenizer, len(other.get_vocab()), 1024) is None


def test_a_tokenizer_that_disagrees_is_refused():
    tokenizer = fast(KINDS["byte-level BPE"]())
    tree = TokenizerTree(tokenizer, "it")
    kept = closed_choice(tree, tokenizer, {}, 320)
    cut = tree.cut(kept)
    small = fast(Tokenizer.from_str(json.dumps(cut)))
    spelling = measure_spelling(["a jungle", "the"], tokenizer, small, kept)
    assert (spelling.bytes, spelling.dense_tokens) == (11, sum(map(len, token_ids(tokenizer, ["a jungle", "the"]))))
    assert spelling.tokens > spelling.dense_tokens
    with pytest.raises(CheckpointError, match="numbers its tokens differently"):
        measure_spelling(["the"], tokenizer, small, [*kept[1:], kept[0]])
    cut["model"]["merges"] = cut["model"]["merges"][1:]
    with pytest.raises(CheckpointError, match=r"splits the text .* differently"):
        measure_spelling(WORDS, tokenizer, fast(Tokenizer.from_str(json.dumps(cut))), kept)


def test_unigram_pieces_that_decide_about_unknown_characters_stay():
    """Those with a character that no other piece has, the one of the lowest score, and the one for the unknown."""
    scored = [("a", -1.0), ("<unk>", 0.0), ("b", -2.0), ("abc", -3.0), ("ab", -1.5), ("aab", -9.0), ("aa", -2.5)]
    inner = Tokenizer(models.Unigram(scored, unk_id=1))
    tree = TokenizerTree(fast(inner), "it")
    kept = {tree.tokens[number] for number in tree.indispensable(fast(inner))} & {piece for piece, _ in scored}
    assert kept == {"a", "b", "<unk>", "abc", "aab"}
    rows = tree.ordered(tree.indispensable(fast(inner)))
    small = Tokenizer.from_str(json.dumps(tree.cut(rows)))
    for text in ("abcab", "aab", "xa", "abxyc"):
        pieces = inner.encode(text).tokens
        if "ab" not in pieces:
            assert small.encode(text).tokens == pieces, text
    assert small.encode("x").ids == [rows.index(1)]
    tree = TokenizerTree(fast(Tokenizer(models.Unigram([*scored, ("y", -1.0)], unk_id=1))), "it")
    assert tree.cut(sorted(tree.tokens))["model"] == tree.tree["model"]


def test_unigram_pieces_that_stand_twice_are_refused():
    inner = Tokenizer(models.Unigram([("a", -1.0), ("a", -2.0), ("<unk>", 0.0)], unk_id=2))
    with pytest.raises(ModelError, match="lists 1 piece more than once"):
        TokenizerTree(fast(inner), "it")
