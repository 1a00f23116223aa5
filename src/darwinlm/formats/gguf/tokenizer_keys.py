"""The tokenizer's part of a GGUF file: vocabulary, merges or scores, the name of the pre-tokenizer, chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from tokenizers import Regex, pre_tokenizers

from darwinlm.formats.gguf.header import read_header
from darwinlm.formats.gguf.split_patterns import ALIASES, DIGITS, MERGED, PATTERNS, PLAIN, WHOLE_WORDS
from darwinlm.runtime.errors import CheckpointError, ExportError
from darwinlm.runtime.json_values import JsonObject
from darwinlm.runtime.limits import TOKENIZER_BYTES, load_json, shorten

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

KeyValue: TypeAlias = str | float | Sequence[str] | Sequence[float]
"""Value of a key in a GGUF file: a string, a number, a truth value, or an array of strings or numbers."""
TokenizerKeys: TypeAlias = dict[str, KeyValue]
"""The keys of a tokenizer by their full names in a GGUF file."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MODEL, TOKENS, TEMPLATE = "tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.chat_template"


UNICODE = "NFC"
"""The normalizer of byte-level tokenizers, which leaves nearly all text as it is; llama.cpp has none."""


def read_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> TokenizerKeys:
    """Keys of a file for the tokenizer of a model folder.

    The list of tokens is padded to `vocabulary`, the number of rows of the embedding. Raises ExportError if llama.cpp
    has no tokenizer of this kind.
    """
    path = folder / "tokenizer.json"
    if path.is_file():
        tree = load_json(path, TOKENIZER_BYTES)
    elif getattr(tokenizer, "backend_tokenizer", None) is not None:
        tree = json.loads(tokenizer.backend_tokenizer.to_str())
    else:
        raise ExportError(f"{folder} holds no tokenizer.json; save the tokenizer with tokenizer.save_pretrained first")
    model = tree["model"]
    if model.get("type") == "Unigram":
        raise _unknown(
            folder, "its model is Unigram, but llama.cpp's SentencePiece merges like BPE and gives other tokens"
        )
    if model.get("type") != "BPE":
        raise _unknown(folder, f"its model is {model.get('type')}, not BPE")
    tokens, types = _tokens(tree, vocabulary, folder)
    values: TokenizerKeys = {"tokens": tokens, "token_type": types}
    pre = _pre_tokenizers(tree)
    if any(step["type"] == "ByteLevel" for step in pre):
        kind = "gpt2"
        others = {step["type"] for step in _steps(tree.get("normalizer"), "normalizers")} - {UNICODE}
        if others:
            raise _unknown(folder, f"its normalizer ({', '.join(sorted(others))}) isn't known in llama.cpp")
        name = _pre_name(pre, folder, ignores_merges=bool(model.get("ignore_merges")))
        values |= {
            "pre": name,
            "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        }
        if not model["merges"]:
            raise _unknown(folder, "it has no merges")
    elif model.get("byte_fallback"):
        kind = "llama"
        values |= {"scores": _scores(model, tokens), "add_space_prefix": _prepends_space(tree)}
    else:
        raise _unknown(folder, "it is neither byte-level nor SentencePiece")
    values |= _special(tokenizer)
    keys = {MODEL: kind, **{f"tokenizer.ggml.{name}": value for name, value in values.items()}}
    template = getattr(tokenizer, "chat_template", None)
    return keys | ({TEMPLATE: template} if template else {})


def rerank_template(template: str) -> TokenizerKeys:
    """Keys for the template in which llama.cpp's server puts a pair; {query} and {document} stand for the two."""
    return {f"{TEMPLATE}.rerank": template, f"{TEMPLATE}s": ["rerank"]}


def copy_tokenizer(path: Path, vocabulary: int) -> TokenizerKeys:
    """Copy the tokenizer's keys from another GGUF file.

    Raises:
        ExportError: The file can't be read or has a tokenizer of another size.
    """
    from gguf import GGUFReader

    read_header(path, weights=False)
    try:
        fields = GGUFReader(path).fields
    except (OSError, ValueError, LookupError) as error:
        raise ExportError(f"can't read the tokenizer of {path}: {shorten(error)}") from error
    names = sorted((name for name in fields if name.startswith("tokenizer.ggml.")), key=lambda name: name != MODEL)
    keys = {name: fields[name].contents() for name in (*names, *({TEMPLATE} & fields.keys()))}
    count = len(keys.get(TOKENS, ()))
    if MODEL not in keys or count != vocabulary:
        raise ExportError(
            f"the tokenizer in {path} has {count} tokens, the model {vocabulary}: give the GGUF file of this model"
        )
    return keys


def write_tokenizer(writer: GGUFWriter, keys: Mapping[str, KeyValue]) -> None:
    """Add the keys of a tokenizer to a file."""
    add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
    for name, value in keys.items():
        if name == TEMPLATE:
            writer.add_chat_template(value)
        else:
            add.get(type(value), writer.add_array)(name, value)


def unused_token(number: int) -> str:
    """What fills a row of the embedding without a token."""
    return f"[PAD{number}]"


def _tokens(tree: JsonObject, vocabulary: int, folder: Path) -> tuple[list[str], list[int]]:
    by_id = {index: token for token, index in tree["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    byte_fallback = bool(tree["model"].get("byte_fallback"))
    for index, token in by_id.items():
        if byte_fallback and len(token) == 6 and token.startswith("<0x"):
            kinds[index] = BYTE
        elif byte_fallback and token == tree["model"].get("unk_token"):
            kinds[index] = UNKNOWN
    for added in tree.get("added_tokens", []):
        by_id[added["id"]] = added["content"]
        if kinds.get(added["id"]) != UNKNOWN:
            kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    if by_id and max(by_id) >= vocabulary:
        raise ExportError(
            f"{folder}: the tokenizer has {max(by_id) + 1} tokens, but the embedding has {vocabulary} rows"
        )
    tokens = [by_id.get(index, unused_token(index)) for index in range(vocabulary)]
    return tokens, [kinds.get(index, UNUSED) for index in range(vocabulary)]


def _steps(tree: JsonObject | None, nested: str) -> Iterator[JsonObject]:
    if tree:
        if tree["type"] == "Sequence":
            for step in tree[nested]:
                yield from _steps(step, nested)
        else:
            yield tree


def _pre_tokenizers(tree: JsonObject) -> list[JsonObject]:
    return list(_steps(tree.get("pre_tokenizer"), "pretokenizers"))


def _pre_name(steps: list[JsonObject], folder: Path, *, ignores_merges: bool) -> str:
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return PLAIN
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"] and steps[1].get("use_regex", True):
        return DIGITS
    if set(kinds[:-1]) == {"Split"} and kinds[-1] == "ByteLevel" and not steps[-1].get("use_regex", True):
        name = PATTERNS.get(tuple(step["pattern"].get("Regex", "") for step in steps[:-1]), "")
        if name:
            return name if ignores_merges else MERGED.get(name, name)
    raise _unknown(folder, f"its pre-tokenizer ({' + '.join(kinds)}) isn't known in llama.cpp")


def _scores(model: JsonObject, tokens: list[str]) -> list[float]:
    """SentencePiece scores of tokens: higher for earlier merges, then characters, lowest for bytes."""
    rank: dict[str, float] = {}
    for number, merge in enumerate(model["merges"]):
        rank.setdefault("".join(merge.split(" ", 1) if isinstance(merge, str) else merge), -float(number + 1))
    last = -float(len(model["merges"]) + 1)
    return [rank.get(token, last) for token in tokens]


def _prepends_space(tree: JsonObject) -> bool:
    steps = [*_steps(tree.get("normalizer"), "normalizers"), *_pre_tokenizers(tree)]
    prepends = any(step["type"] == "Prepend" for step in steps)
    return prepends or any(step["type"] == "Metaspace" and step.get("prepend_scheme") != "never" for step in steps)


def _special(tokenizer: PreTrainedTokenizerBase) -> TokenizerKeys:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    special: TokenizerKeys = {}
    for token, name in names.items():
        index = getattr(tokenizer, f"{token}_token_id", None)
        if index is not None:
            special[f"{name}_token_id"] = int(index)
    ids = tokenizer("a")["input_ids"]
    special["add_bos_token"] = bool(ids and ids[0] == getattr(tokenizer, "bos_token_id", None))
    special["add_eos_token"] = bool(ids and ids[-1] == getattr(tokenizer, "eos_token_id", None))
    return special


def _unknown(folder: Path, reason: str) -> ExportError:
    return ExportError(
        f"the tokenizer in {folder} can't be written for llama.cpp: {reason}. If the model comes from a GGUF file, "
        "pass it as --tokenizer-from F.gguf"
    )


def split_as_named(tokenizer: PreTrainedTokenizerFast, name: str | None) -> None:
    """Make a byte-level tokenizer split text by the file's `tokenizer.ggml.pre`, which transformers ignores.

    The tokenizer is changed in place. Raises CheckpointError if the name is missing or unknown.
    """
    known = ALIASES.get(str(name), str(name))
    regexes = {pre_tokenizer: patterns for patterns, pre_tokenizer in PATTERNS.items()}
    regexes |= {merged: regexes[direct] for direct, merged in MERGED.items()}
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    with_regex = pre_tokenizers.ByteLevel(add_prefix_space=False)
    steps: list[pre_tokenizers.PreTokenizer]
    if known == PLAIN:
        steps = [with_regex]
    elif known == DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), with_regex]
    elif known in regexes:
        steps = [*(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in regexes[known]), bytes_only]
    else:
        names = sorted({PLAIN, DIGITS, *regexes, *ALIASES})
        raise CheckpointError(
            f"the file doesn't say how its tokenizer splits text (tokenizer.ggml.pre is {name!r}; known are "
            f"{', '.join(names)}): give the model's original folder or hub id"
        )
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    backend.model.ignore_merges = known in WHOLE_WORDS
