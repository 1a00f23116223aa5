"""Tokenizers in GGUF files: SentencePiece's in the real llama.cpp, and those that llama.cpp hasn't got."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.tiny.checkpoint import WORDS
from tests.tiny.pruned import plain_checkpoint, pruned_checkpoint
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import GemmaTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from darwinlm.formats.gguf.process import EngineProcess
from darwinlm.formats.gguf.split_patterns import ALIASES, DIGITS, MERGED, PATTERNS, PLAIN
from darwinlm.formats.gguf.tokenizer_keys import read_tokenizer, split_as_named
from darwinlm.runs.exporting import export_model
from darwinlm.runtime.errors import CheckpointError, ExportError

TEXTS = (
    "the river turns slowly under the silver bridge",
    " a space before and  two   within",
    "é 漢字 🙂 are bytes, 12 and 340 are digits",
    "a line\nand\tanother",
)
LLAMA = {"add_dummy_prefix": True}
GEMMA = {
    "add_dummy_prefix": False,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
    "eos_piece": "<eos>",
    "bos_piece": "<bos>",
    "user_defined_symbols": ["<mask>"],
}


def sentence_piece(folder: Path, model_type: str = "bpe", **options: object) -> Any:
    """Train a model of SentencePiece, save it as tokenizer.model, and return the library's own processor of it."""
    library = pytest.importorskip("sentencepiece", reason="comes with the extra gguf")
    lines = [" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))]
    trained = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=trained,
        vocab_size=320,
        model_type=model_type,
        hard_vocab_limit=False,
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        minloglevel=2,
        **options,
    )
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(trained.getvalue())
    return library.SentencePieceProcessor(model_proto=trained.getvalue())


@pytest.mark.parametrize(
    ("tokenizer_class", "options"), [(LlamaTokenizer, LLAMA), (GemmaTokenizer, GEMMA)], ids=["llama", "gemma"]
)
@pytest.mark.parametrize("add_bos", [True, False])
def test_a_sentence_piece_tokenizer(tmp_path, tokenizer_class, options, add_bos):
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")
    oracle = sentence_piece(tmp_path / "sentencepiece", **options)
    tokenizer = tokenizer_class.from_pretrained(tmp_path / "sentencepiece", add_bos_token=add_bos)
    folder = pruned_checkpoint(tmp_path / "model", "llama", {1: (2, 1, 64)}, tokenizer=tokenizer)
    report = export_model(folder, tmp_path / "m.gguf", quantisation="f32")
    assert report.details["tokenizer_agrees"] is True
    with EngineProcess("llama.cpp", tmp_path / "m.gguf", context=256) as engine:
        for text in TEXTS:
            assert engine.tokenize(text) == [oracle.bos_id()] * add_bos + oracle.encode(text), text


CASES = "It's HERE: don't CamelCaseWords, WE'RE 1234567 ok/\n\n  two  spaces\tand Ünïcode's naïveté 漢字 🙂 // x"


@pytest.mark.parametrize(
    ("name", "ignores_merges"),
    [
        ("llama-bpe", True),
        ("dbrx", False),
        ("qwen2", False),
        ("tekken", True),
        ("gpt-4o", False),
        ("deepseek-v3", False),
    ],
)
def test_a_byte_level_tokenizer_that_splits_by_a_pattern(tmp_path, name, ignores_merges):
    """It knows a word that no merges lead to: some tokenizers take it, others can't.

    A tokenizer that is told its splitting by name, as when a GGUF file is read, finds the same tokens.
    """
    pytest.importorskip("cyllama", reason="the real llama.cpp library comes with the extra gguf")
    patterns = next(regexes for regexes, known in PATTERNS.items() if name in (known, MERGED.get(known)))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "er", "1", "12", "34", "Ġt", "HERE"])}
    merges = [("e", "r"), ("1", "2"), ("3", "4"), ("Ġ", "t")]
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=ignores_merges))
    named = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary, merges=merges)))
    split_as_named(named, name)
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    folder = pruned_checkpoint(tmp_path / "model", "llama", {1: (2, 1, 64)}, tokenizer=tokenizer)
    report = export_model(folder, tmp_path / "m.gguf", quantisation="f32")
    assert report.details["tokenizer"] == f"gpt2 {name}"
    with EngineProcess("llama.cpp", tmp_path / "m.gguf", context=256) as engine:
        for text in (*TEXTS, CASES, " HERE HERE", "HERE"):
            assert engine.tokenize(text) == tokenizer(text)["input_ids"], text
            assert engine.tokenize(text) == named(text)["input_ids"], text


@pytest.mark.parametrize("name", [PLAIN, DIGITS, *ALIASES])
def test_a_splitting_by_name_is_the_one_that_exports_know(tmp_path, name):
    pytest.importorskip("gguf", reason="the extra gguf")
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=vocabulary | {"ab": 256}, merges=[("a", "b")]))
    )
    split_as_named(tokenizer, name)
    tokenizer.save_pretrained(tmp_path)
    assert read_tokenizer(tmp_path, tokenizer, 320)["tokenizer.ggml.pre"] == ALIASES.get(name, name)


@pytest.mark.parametrize("name", [None, "chatglm-bpe"])
def test_an_unknown_splitting_is_refused(name):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=split_its_own_way())
    before = tokenizer.backend_tokenizer.to_str()
    with pytest.raises(CheckpointError, match=r"tokenizer.ggml.pre is .*known are .*original folder or hub id"):
        split_as_named(tokenizer, name)
    assert tokenizer.backend_tokenizer.to_str() == before


def split_its_own_way() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*alphabet, "ab"])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "b")]))
    digits = pre_tokenizers.Digits(individual_digits=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([digits, digits, pre_tokenizers.ByteLevel()])
    return inner


def normalised_to_half_width() -> Tokenizer:
    inner = split_its_own_way()
    inner.pre_tokenizer = pre_tokenizers.ByteLevel()
    inner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.NFKC()])
    return inner


UNIGRAM = models.Unigram([("<unk>", 0.0), ("▁a", -1.0), ("a", -2.0)], unk_id=0)
WORD_PIECE = models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")


@pytest.mark.parametrize(
    ("inner", "more", "reason"),
    [
        (Tokenizer(UNIGRAM), 0, "its model is Unigram, but llama.cpp.*--tokenizer-from"),
        (Tokenizer(WORD_PIECE), 0, "its model is WordPiece, not BPE.*--tokenizer-from"),
        (Tokenizer(models.BPE({"a": 0}, [])), 0, "it is neither byte-level nor SentencePiece.*--tokenizer-from"),
        (split_its_own_way(), 0, r"its pre-tokenizer \(Digits \+ Digits \+ ByteLevel\) isn't known.*--tokenizer-from"),
        (normalised_to_half_width(), 0, r"its normalizer \(NFKC\) isn't known in llama\.cpp.*--tokenizer-from"),
        (split_its_own_way(), 100, "the tokenizer has 357 tokens, but the embedding has 320 rows"),
    ],
    ids=["Unigram", "WordPiece", "whole words", "its own way", "normalised", "too many"],
)
def test_tokenizers_that_are_refused(tmp_path, inner, more, reason):
    pytest.importorskip("gguf", reason="the extra gguf")
    inner.add_tokens([f"extra {index}" for index in range(more)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    folder = pruned_checkpoint(tmp_path / "model", "llama", {1: (2, 1, 64)}, tokenizer=tokenizer)
    with pytest.raises(ExportError, match=reason):
        export_model(folder, tmp_path / "m.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def unigram_checkpoint(folder: Path) -> tuple[Path, Any]:
    """A checkpoint that carries a Unigram `tokenizer.model` and no tokenizer.json, as older ones do."""
    oracle = sentence_piece(folder / "sentencepiece", "unigram")
    model = plain_checkpoint(folder / "model", "llama")
    for path in model.glob("token*"):
        path.unlink()
    shutil.copy(folder / "sentencepiece" / "tokenizer.model", model)
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer"}))
    return model, oracle


def test_a_unigram_model_that_transformers_reads_as_bpe_is_refused(tmp_path):
    model, oracle = unigram_checkpoint(tmp_path)
    misread = LlamaTokenizer.from_pretrained(model)
    assert misread(TEXTS[0], add_special_tokens=False)["input_ids"] != oracle.encode(TEXTS[0])
    with pytest.raises(CheckpointError, match=r"tokenizer.model is a Unigram model of SentencePiece.*tokenizer.json"):
        export_model(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "sentencepiece"]
