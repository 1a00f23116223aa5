"""Hostile and damaged models: configurations, indexes, tokenizers and weights."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.fuzz.case import ANY, DEEP, HUGE, ODD, REFUSED, Case, changed, copied, replaced

REFUSED_FIELDS: dict[str, tuple[Any, ...]] = {
    "attn_implementation": ("flash_attention_2", "own/er", "paged|own/er@main:fn", {"": "own/er"}),
    "_experts_implementation": ("deepgemm",),
    "dtype": (-1, "float8_e4m3fn", "int8", ["float32"]),
    "quantization_config": (
        *({"quant_method": "gptq", "bits": 4}, {"quant_method": "fp8"}, {"quant_method": "x" * 5000}, []),
    ),
    "per_layer_config": (
        *({"0": {"num_attention_heads": "four"}}, {"five": {}}, {"1000000000": {}}, [], {"0": []}),
        *(
            {"0": {"skip": "attention"}},
            {"0": {"query_groups": "abc"}},
            {"0": {"vocab_size": 5}},
            {"0": {"hidden_size": 8}},
        ),
    ),
    "model_type": (5, ["llama"], "x" * 5000),
    "num_hidden_layers": (3, 5),
    "bos_token_id": (10**30,),
    "rope_theta": (float("nan"),),
}
ODD_FIELDS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("nothing", 5),
    "rope_parameters": ([], {"rope_type": "nothing"}),
    "architectures": ("LlamaForCausalLM", 7),
    "auto_map": ("x",),
    "layer_types": (["nothing"] * 4,),
    "pad_token_id": (10**9,),
}
SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)


def configs() -> Iterator[Case]:
    def case(field: str, value: Any, outcome: str, reader: str = "model") -> Case:
        name = f"{reader}: {field} is {type(value).__name__} {str(value)[:40]}"
        return Case(name, reader, changed("config.json", **{field: value}), outcome)

    for reader in ("model", "plan"):
        for field in SIZES:
            yield from (case(field, value, REFUSED if value > 2**53 else ANY, reader) for value in HUGE)
            yield from (case(field, value, ANY, reader) for value in ODD)
    for outcome, fields in ((REFUSED, REFUSED_FIELDS), (ANY, ODD_FIELDS)):
        yield from (case(field, value, outcome) for field, values in fields.items() for value in values)
    yield Case("model: an adapter", "model", replaced("adapter_config.json", "{}"))
    own = {"auto_map": {"AutoConfig": "code.Mine"}, "model_type": "mine"}
    yield Case("model: code of its own", "model", _with_code("config.json", own))
    own = {"auto_map": {"AutoTokenizer": ["code.T", None]}, "tokenizer_class": "Mine"}
    yield Case("model: code of its tokenizer", "model", _with_code("tokenizer_config.json", own), ANY)


def _with_code(name: str, fields: dict[str, Any]) -> Callable[[Path, Path], None]:
    def write(folder: Path, model: Path) -> None:
        changed(name, **fields)(folder, model)
        (folder / "code.py").write_text(f"open({str(folder / 'RAN')!r}, 'w').close()\n")

    return write


CONTENTS = {
    "empty": "",
    "open": "{",
    "list": "[]",
    "null": "null",
    "word": '"x"',
    "deep": DEEP,
    "deep mapping": '{"a":' * 5000 + "1" + "}" * 5000,
    "not UTF-8": b"\xff\xfe\x00{",
    "zero bytes": b"\0" * 1000,
    "long number": '{"a": ' + "9" * 100_000 + "}",
    "tail": "{} {}",
}


def json_files() -> Iterator[Case]:
    refused = ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")
    for name in (*refused, "special_tokens_map.json", "added_tokens.json", "vocab.json"):
        for what, content in CONTENTS.items():
            outcome = REFUSED if name in refused else ANY
            yield Case(f"model: {name} is {what}", "model", replaced(name, content), outcome)


FAIL_ON_TEXT: dict[str, dict[str, Any]] = {
    "WordPiece": {"model": {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {"a": 0}}},
    "WordLevel": {"model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"a": 0}}},
    "Unigram": {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]]}},
    "Precompiled": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAAA="}},
    "TemplateProcessing": {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {},
        }
    },
}
"""Fields of tokenizers that can be loaded, but not used."""


def _add_token(tree: Any, number: Any) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tree["added_tokens"].append({"id": number, "content": "<x>", **flags})


def _add_word(tree: Any, number: Any) -> None:
    tree["model"]["vocab"]["odd"] = number


def _with_number(add: Callable[[Any, Any], None], number: Any) -> Callable[[Path, Path], None]:
    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        tree = json.loads((folder / "tokenizer.json").read_text())
        add(tree, number)
        (folder / "tokenizer.json").write_text(json.dumps(tree))

    return write


def tokenizers() -> Iterator[Case]:
    for add in (_add_token, _add_word):
        for number in (-1, 10**9, 2**32, 2**40, 10**30, "five", None, 1.5, []):
            outcome = ANY if number == 10**9 else REFUSED  # what the library's 32 bits hold does no harm
            yield Case(f"model:{add.__name__} with the id {number}", "model", _with_number(add, number), outcome)
    for field in ("model", "added_tokens", "pre_tokenizer", "decoder", "normalizer", "post_processor"):
        for value in (None, [], {}, "x", 5, {"type": "nothing"}, {"type": "Sequence", "pretokenizers": [5]}):
            write = changed("tokenizer.json", **{field: value})
            yield Case(f"model: tokenizer.{field} is {value}", "model", write, ANY)
    for key in ("1000000000", "-1", "x", "9" * 50):
        write = changed("tokenizer_config.json", added_tokens_decoder={key: {"content": "<x>"}})
        yield Case(f"model: added_tokens_decoder has {key[:12]}", "model", write, ANY)
    for what, fields in FAIL_ON_TEXT.items():
        yield Case(f"model: tokenizer.json fails on text: {what}", "model", changed("tokenizer.json", **fields))


def weights() -> Iterator[Case]:
    def edited(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path, Path], None]:
        def write(folder: Path, model: Path) -> None:
            copied(model, folder)
            tensors = load_file(folder / "model.safetensors")
            change(tensors)
            (folder / "model.safetensors").unlink()
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

        return write

    name = "model.layers.1.self_attn.q_proj.weight"
    edits: dict[str, Callable[[dict[str, np.ndarray]], Any]] = {
        "missing": lambda t: t.pop(name),
        "renamed": lambda t: t.__setitem__("model.layers.1.self_attn.query.weight", t.pop(name)),
        "more": lambda t: t.__setitem__("model.layers.1.self_attn.q_proj.bias", np.zeros(48, np.float32)),
        "block 10^9": lambda t: t.__setitem__("model.layers.1000000000.mlp.up_proj.weight", np.zeros(4, np.float32)),
        "int8": lambda t: t.__setitem__(name, t[name].astype(np.int8)),
        "bool": lambda t: t.__setitem__(name, t[name] > 0),
        "scalar": lambda t: t.__setitem__(name, np.array(1.0, np.float32)),
        "no rows": lambda t: t.__setitem__(name, t[name][:0]),
        "NaN in an unused embedding row": lambda t: t["model.embed_tokens.weight"].__setitem__((299, 3), np.nan),
        "infinity in the head": lambda t: t["lm_head.weight"].__setitem__((299, 3), np.inf),
        "nothing": lambda t: t.clear(),
    }
    for what, change in edits.items():
        yield Case(f"model: weights: {what}", "model", edited(change))
    for size in (0, 7, 8, 9, 100):
        yield Case(f"model: {size} bytes of weights", "model", replaced("model.safetensors", b"\xff" * size))
    for claimed in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1):
        body = claimed.to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + b"\0" * 4
        yield Case(f"model: a safetensors header of {claimed}", "model", replaced("model.safetensors", body))
    for shape, offsets in (([2**40], [0, 4]), ([1], [0, 2**40]), ([1], [4, 0]), ([-1], [0, 4]), ([2**63, 2], [0, 4])):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
        body = len(header).to_bytes(8, "little") + header + b"\0" * 4
        yield Case(f"model: a tensor {shape} at {offsets}", "model", replaced("model.safetensors", body))

    def pickle(folder: Path, model: Path) -> None:
        copied(model, folder)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'touch RAN'\ntR.")

    yield Case("model: a pickle instead of weights", "model", pickle)
