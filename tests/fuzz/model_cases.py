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
        *({"0": {"skip": "attention"}}, {"0": {"query_groups": "abc"}}),
    ),
    "model_type": (5, ["llama"], "x" * 5000),
    "num_hidden_layers": (3, 5),
    "bos_token_id": (10**30,),
    "rope_theta": (float("nan"),),
}
ODD_FIELDS: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("nothing", 5),
    "rms_norm_eps": ("small",),
    "rope_parameters": ([], {"rope_type": "nothing"}),
    "rope_scaling": ("linear",),
    "architectures": ("LlamaForCausalLM", 7),
    "tie_word_embeddings": ("yes",),
    "auto_map": ("x",),
    "layer_types": (["nothing"] * 4,),
    "torch_dtype": ("bfloat16",),
    "transformers_version": (5,),
    "pad_token_id": (10**9,),
}


def configs() -> Iterator[Case]:  # noqa: C901 - a list
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    for reader in ("model", "plan"):
        for field in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            for value in HUGE:
                may = field == "max_position_embeddings" or (
                    (field == "num_key_value_heads" and value == 0)
                    or (field in ("head_dim", "hidden_size", "intermediate_size", "vocab_size") and value == 2**20)
                )
                yield Case(
                    f"{reader}: {field} is {value}",
                    reader,
                    changed("config.json", **{field: value}),
                    ANY if may and value < 2**53 else REFUSED,
                )
            for number, value in enumerate(ODD):
                outcome = REFUSED if field in sizes and value is not None else ANY
                name = f"{reader}: {field} is odd {number}"
                yield Case(name, reader, changed("config.json", **{field: value}), outcome)
    for field, values in REFUSED_FIELDS.items():
        for value in values:
            yield Case(f"model: {field} is {str(value)[:40]}", "model", changed("config.json", **{field: value}))
    for field, values in ODD_FIELDS.items():
        for value in values:
            write = changed("config.json", **{field: value})
            yield Case(f"model: {field} may be {str(value)[:40]}", "model", write, ANY)
    for value in ([], 5, "beam", None, {"eos_token_id": "end"}):
        write = replaced("generation_config.json", json.dumps(value))
        yield Case(f"model: generation_config is {str(value)[:20]}", "model", write)
    yield Case("model: an adapter", "model", replaced("adapter_config.json", "{}"))
    for name, auto in (
        ("config.json", {"AutoConfig": "code.Mine"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["code.T", None]}),
    ):
        fields = {"auto_map": auto} | ({"model_type": "mine"} if name == "config.json" else {"tokenizer_class": "Mine"})
        yield Case(
            f"model: code of its own in {name}", "model", _with_code(name, fields), ANY if "tok" in name else REFUSED
        )


def _with_code(name: str, fields: dict[str, Any]) -> Callable[[Path, Path], None]:
    def write(folder: Path, model: Path) -> None:
        changed(name, **fields)(folder, model)
        (folder / "code.py").write_text(f"open({str(folder / 'RAN')!r}, 'w').close()\n")

    return write


def json_files() -> Iterator[Case]:
    contents = {
        "empty": "",
        "open": "{",
        "list": "[]",
        "null": "null",
        "number": "5",
        "word": '"x"',
        "deep": DEEP,
        "deep mapping": '{"a":' * 5000 + "1" + "}" * 5000,
        "not UTF-8": b"\xff\xfe\x00{",
        "zero bytes": b"\0" * 1000,
        "long number": '{"a": ' + "9" * 100_000 + "}",
        "tail": "{} {}",
    }
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        for what, content in contents.items():
            yield Case(f"model: {name} is {what}", "model", replaced(name, content))
    for name in ("special_tokens_map.json", "added_tokens.json", "vocab.json"):
        for what in ("open", "list", "deep", "not UTF-8"):
            outcome = REFUSED if name == "special_tokens_map.json" else ANY
            yield Case(f"model: {name} is {what}", "model", replaced(name, contents[what]), outcome)


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


def _id(number: Any) -> str:
    """Whether a token may have a number: those that the library's 32 bits hold do no harm."""
    return ANY if type(number) is int and 0 <= number < 2**32 else REFUSED


def tokenizers() -> Iterator[Case]:
    def added(**token: Any) -> Callable[[Path, Path], None]:
        def write(folder: Path, model: Path) -> None:
            copied(model, folder)
            tree = json.loads((folder / "tokenizer.json").read_text())
            whole = {"id": 299, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False}
            tree["added_tokens"].append({**whole, "normalized": False, "special": True, **token})
            (folder / "tokenizer.json").write_text(json.dumps(tree))

        return write

    for number in (-1, 10**9, 2**31, 2**40, 10**30, "five", None, 1.5, True, []):
        yield Case(f"model: an added token with the id {number}", "model", added(id=number), _id(number))

    def vocabulary(value: Any) -> Callable[[Path, Path], None]:
        def write(folder: Path, model: Path) -> None:
            copied(model, folder)
            tree = json.loads((folder / "tokenizer.json").read_text())
            tree["model"]["vocab"] |= {"odd": value}
            (folder / "tokenizer.json").write_text(json.dumps(tree))

        return write

    for number in (-1, 10**9, 2**32, 10**30, "five", None, 1.5, []):
        yield Case(f"model: a token with the id {number}", "model", vocabulary(number), _id(number))
    for field in ("model", "added_tokens", "pre_tokenizer", "decoder", "normalizer", "post_processor"):
        for value in (None, [], {}, "x", 5, {"type": "nothing"}, {"type": "Sequence", "pretokenizers": [5]}):
            write = changed("tokenizer.json", **{field: value})
            yield Case(f"model: tokenizer.{field} is {value}", "model", write, ANY)
    for key_ in ("1000000000", "-1", "x", "9" * 50):
        write = changed("tokenizer_config.json", added_tokens_decoder={key_: {"content": "<x>"}})
        yield Case(f"model: added_tokens_decoder has {key_[:12]}", "model", write, ANY)


def unusable_tokenizers() -> Iterator[Case]:
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
        "all missing": lambda t: [t.pop(key) for key in list(t) if key.startswith("model.layers.2.")],
        "more": lambda t: t.__setitem__("model.layers.1.self_attn.q_proj.bias", np.zeros(48, np.float32)),
        "another block": lambda t: t.__setitem__("model.layers.7.mlp.up_proj.weight", np.zeros((4, 4), np.float32)),
        "block 10^9": lambda t: t.__setitem__("model.layers.1000000000.mlp.up_proj.weight", np.zeros(4, np.float32)),
        "int8": lambda t: t.__setitem__(name, t[name].astype(np.int8)),
        "int32": lambda t: t.__setitem__(name, t[name].astype(np.int32)),
        "uint8": lambda t: t.__setitem__(name, t[name].astype(np.uint8)),
        "bool": lambda t: t.__setitem__(name, t[name] > 0),
        "flat": lambda t: t.__setitem__(name, t[name].reshape(-1)),
        "scalar": lambda t: t.__setitem__(name, np.array(1.0, np.float32)),
        "no rows": lambda t: t.__setitem__(name, t[name][:0]),
        "half": lambda t: t.__setitem__(name, t[name][:24]),
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
