"""Tokenizers with more tokens than a text needs, and checkpoints with them."""

from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tests.tiny.checkpoint import WORDS
from tests.tiny.models import tiny_model

OTHERS = ["quartz", "violet", "jungle", "oxygen", "zebra", "puzzle", "velvet", "rhythm", "galaxy", "whisky", "kayak"]
"""Words that no tiny text has."""
TOKENS = 432
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CHAT = (
    "{% for m in messages %}<|user|>{{ m['content'] }}</s>\n{% endfor %}{% if add_generation_prompt %}zebra{% endif %}"
)


def trained_bytes(words: list[str], size: int) -> Tokenizer:
    """BPE on bytes, as GPT-2's, that knows these words."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(words)] * 3, trainer)
    return inner


def byte_level(words: list[str] = WORDS + OTHERS, size: int = TOKENS) -> Tokenizer:
    """BPE on bytes with bos, and a token for chats."""
    inner = trained_bytes(words, size)
    inner.add_special_tokens([AddedToken("<|user|>", special=True)])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return inner


def _sentence_piece(model: Any) -> Tokenizer:
    """The rest of a tokenizer of SentencePiece: the whole text is one word."""
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    return inner


def byte_fallback(words: list[str] = WORDS + OTHERS, size: int = TOKENS) -> Tokenizer:
    """BPE on characters with bytes for unknown ones, as Llama-2's."""
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size - 259, show_progress=False)
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([" ".join(words)] * 3, trainer)
    made = trained.get_vocab()
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *sorted(made, key=made.__getitem__)]
    merges = [tuple(merge) for merge in _tree(trained)["model"]["merges"]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    return _sentence_piece(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))


def unigram(words: list[str] = WORDS + OTHERS, size: int = TOKENS, *, in_bytes: bool = False) -> Tokenizer:
    """Unigram, as T5's, or with bytes for unknown characters; earlier pieces of the BPE above have higher scores."""
    pieces = _tree(byte_fallback(words, size))["model"]["vocab"]
    named = {piece: -1.0 - 0.05 * number for piece, number in pieces.items() if in_bytes or piece not in BYTES}
    scored = [(piece, 0.0 if piece in ("<unk>", "<s>", "</s>") else score) for piece, score in named.items()]
    return _sentence_piece(models.Unigram(scored, unk_id=0, byte_fallback=in_bytes))


def _tree(tokenizer: Tokenizer) -> Any:
    import json

    return json.loads(tokenizer.to_str())


KINDS = {
    "byte-level BPE": byte_level,
    "BPE with bytes": byte_fallback,
    "Unigram": unigram,
    "Unigram with bytes": partial(unigram, in_bytes=True),
}


def fast(inner: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="</s>", bos_token="<s>", eos_token="</s>", chat_template=CHAT
    )


def wordy_checkpoint(folder: Path, model_type: str = "llama", kind: str = "byte-level BPE", **overrides: Any) -> Path:
    """A tiny model with a padded vocabulary and one of the tokenizers; returns the folder."""
    model = tiny_model(model_type, vocab_size=512, **overrides)
    model.generation_config.eos_token_id = [2, TOKENS]
    model.save_pretrained(folder)
    fast(KINDS[kind]()).save_pretrained(folder)
    return folder
