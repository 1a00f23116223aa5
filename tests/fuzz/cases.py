"""The corpus: hostile and damaged inputs by a seeded generator, each with what must come of it.

A case writes its files into a folder and names the reader that is to meet them. `REFUSED` cases must end in one of our
errors. `ANY` cases, which are random damage, may also be harmless.
"""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.fuzz.gguf_bytes import array, gguf_file, key, plain_keys, plain_tensors, string

REFUSED, ANY = "refused", "any"
HUGE = (0, -1, 2**20, 2**31, 2**40, 2**63, 10**30)
ODD = ("four", "", None, True, [], {}, [1, 2], 1.5, float("nan"), float("inf"), "9" * 5000)
DEEP = "[" * 5000 + "]" * 5000
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        name: unique, for people.
        reader: which reader meets it; see `readers.READERS`.
        write: puts the files into a folder; gets the folder of a whole tiny model.
        outcome: `REFUSED` or `ANY`.
    """

    name: str
    reader: str
    write: Callable[[Path, Path], None]
    outcome: str = REFUSED


def corpus(seed: int = 0) -> list[Case]:
    """All cases, in the same order every time."""
    rng = random.Random(seed)
    made = [
        *_configs(),
        *_json_files(),
        *_indexes(),
        *_tokenizers(),
        *_weights(),
        *_ggufs(),
        *_recipes(),
        *_texts(),
        *_artifacts(),
        *_imports(),
        *_mutations(rng),
    ]
    names = [case.name for case in made]
    assert len(set(names)) == len(names), "names are unique"
    return made


# ---------------------------------------------------------------------------------------------------------- helpers


def copied(model: Path, folder: Path) -> None:
    """The whole tiny model in `folder`; files that a case changes are written anew, never in place."""
    for path in model.iterdir():
        (folder / path.name).unlink(missing_ok=True)
        shutil.copy(path, folder / path.name)


def changed(name: str, **fields: Any) -> Callable[[Path, Path], None]:
    """A model one of whose JSON files has other fields."""

    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        tree = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).write_text(json.dumps(tree | fields))

    return write


def replaced(name: str, content: bytes | str) -> Callable[[Path, Path], None]:
    """A model one of whose files has other bytes."""

    def write(folder: Path, model: Path) -> None:
        copied(model, folder)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return write


def alone(name: str, content: bytes | str | Callable[[], bytes]) -> Callable[[Path, Path], None]:
    """A single file; what is large is made only when the case is met."""

    def write(folder: Path, _: Path) -> None:
        made = content() if callable(content) else content
        (folder / name).write_bytes(made.encode() if isinstance(made, str) else made)

    return write


# ------------------------------------------------------------------------------------------------------------- models


def _configs() -> Iterator[Case]:
    sizes = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")
    for reader in ("model", "plan"):
        for field in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
            for value in HUGE:
                may = (field == "num_key_value_heads" and value == 0) or (
                    field in ("max_position_embeddings", "hidden_size", "intermediate_size", "vocab_size")
                    and value == 2**20
                )
                yield Case(
                    f"{reader}: {field} is {value}",
                    reader,
                    changed("config.json", **{field: value}),
                    ANY if may else REFUSED,
                )
            for number, value in enumerate(ODD):
                outcome = REFUSED if field in sizes and value is not None else ANY
                name = f"{reader}: {field} is odd {number}"
                yield Case(name, reader, changed("config.json", **{field: value}), outcome)
    for field, value in (
        ("dtype", -1),
        ("dtype", "float8_e4m3fn"),
        ("dtype", "int8"),
        ("dtype", ["float32"]),
        ("quantization_config", {"quant_method": "gptq", "bits": 4}),
        ("quantization_config", {"quant_method": "fp8"}),
        ("quantization_config", {"quant_method": "x" * 5000}),
        ("quantization_config", []),
        ("per_layer_config", {"0": {"num_attention_heads": "four"}}),
        ("per_layer_config", {"five": {}}),
        ("per_layer_config", {"1000000000": {}}),
        ("per_layer_config", []),
        ("per_layer_config", {"0": []}),
        ("per_layer_config", {"0": {"skip": "attention"}}),
        ("per_layer_config", {"0": {"query_groups": "abc"}}),
        ("model_type", 5),
        ("model_type", ["llama"]),
        ("model_type", "x" * 5000),
        ("num_hidden_layers", 3),
        ("num_hidden_layers", 5),
        ("bos_token_id", 10**30),
        ("rope_theta", float("nan")),
    ):
        yield Case(f"model: {field} is {str(value)[:40]}", "model", changed("config.json", **{field: value}))
    for field, value in (
        ("hidden_act", "nothing"),
        ("hidden_act", 5),
        ("rms_norm_eps", "small"),
        ("rope_parameters", []),
        ("rope_parameters", {"rope_type": "nothing"}),
        ("rope_scaling", "linear"),
        ("attn_implementation", "flash_attention_2"),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", 7),
        ("tie_word_embeddings", "yes"),
        ("auto_map", "x"),
        ("layer_types", ["nothing"] * 4),
        ("torch_dtype", "bfloat16"),
        ("transformers_version", 5),
        ("pad_token_id", 10**9),
    ):
        yield Case(f"model: {field} may be {str(value)[:40]}", "model", changed("config.json", **{field: value}), ANY)
    for value in ([], 5, "beam", None, {"num_beams": 10**30}):
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


def _json_files() -> Iterator[Case]:
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
            yield Case(f"model: {name} is {what}", "model", replaced(name, contents[what]))


def _indexes() -> Iterator[Case]:
    maps: dict[str, Any] = {
        "list": [],
        "empty": {},
        "numbers": {"a": 5},
        "outside": {"a": "../model.safetensors"},
        "absolute": {"a": "/etc/passwd"},
        "dot": {"a": "."},
        "zero byte": {"a": "a\0b"},
        "long": {"a": "x" * 5000},
        "missing": {"a": "model-00001-of-00002.safetensors"},
        "mapping": {"a": {"b": 1}},
        "layer 10^9": {"model.layers.1000000000.mlp.up_proj.weight": "model.safetensors"},
    }
    for name, value in maps.items():
        for wrapped in (True, False):
            tree = {"weight_map": value} if wrapped else value
            write = replaced("model.safetensors.index.json", json.dumps(tree))
            yield Case(f"model: an index that is {name} {wrapped}", "model", write)
    for name, content in (("deep", DEEP), ("empty file", ""), ("not UTF-8", b"\xff")):
        yield Case(f"model: an index that is {name}", "model", replaced("model.safetensors.index.json", content))


def _tokenizers() -> Iterator[Case]:
    def added(**token: Any) -> Callable[[Path, Path], None]:
        def write(folder: Path, model: Path) -> None:
            copied(model, folder)
            tree = json.loads((folder / "tokenizer.json").read_text())
            whole = {"id": 299, "content": "<x>", "single_word": False, "lstrip": False, "rstrip": False}
            tree["added_tokens"].append({**whole, "normalized": False, "special": True, **token})
            (folder / "tokenizer.json").write_text(json.dumps(tree))

        return write

    for number in (-1, 10**9, 2**31, 2**40, 10**30, "five", None, 1.5, True, []):
        yield Case(f"model: an added token with the id {number}", "model", added(id=number))

    def vocabulary(value: Any) -> Callable[[Path, Path], None]:
        def write(folder: Path, model: Path) -> None:
            copied(model, folder)
            tree = json.loads((folder / "tokenizer.json").read_text())
            tree["model"]["vocab"] |= {"odd": value}
            (folder / "tokenizer.json").write_text(json.dumps(tree))

        return write

    for number in (-1, 10**9, 2**32, 10**30, "five", None, 1.5, []):
        yield Case(f"model: a token with the id {number}", "model", vocabulary(number))
    for field in ("model", "added_tokens", "pre_tokenizer", "decoder", "normalizer", "post_processor"):
        for value in (None, [], {}, "x", 5, {"type": "nothing"}, {"type": "Sequence", "pretokenizers": [5]}):
            write = changed("tokenizer.json", **{field: value})
            yield Case(f"model: tokenizer.{field} is {value}", "model", write, ANY)
    for key_ in ("1000000000", "-1", "x", "9" * 50):
        write = changed("tokenizer_config.json", added_tokens_decoder={key_: {"content": "<x>"}})
        yield Case(f"model: added_tokens_decoder has {key_[:12]}", "model", write)


def _weights() -> Iterator[Case]:
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


# --------------------------------------------------------------------------------------------------------------- GGUF


def _ggufs() -> Iterator[Case]:  # noqa: C901 - a list
    def case(name: str, outcome: str = REFUSED, **how: Any) -> Case:
        return Case(f"gguf: {name}", "gguf", alone("model.gguf", gguf_file(**how)), outcome)

    yield case("whole", ANY)
    for magic in (b"GGML", b"\0\0\0\0", b"FUGG"):
        yield case(f"magic {magic!r}", magic=magic)
    for version in (0, 1, 4, 2**31):
        yield case(f"version {version}", version=version)
    for count in (0, 1, 19, 21, 2**31, 2**40, 2**63, 2**64 - 1):
        # One tensor less is a whole header; that its weight is missing is found when the model is loaded.
        yield case(f"{count} tensors", ANY if count == 19 else REFUSED, tensor_count=count)
        yield case(f"{count} keys", key_count=count if count != 21 else 12)
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        for value in (0, 3, 5, 2**20, 2**31, 2**40, 2**63):
            may = name != "block_count" and (value < 2**21 or name == "context_length")
            zero = name in ("feed_forward_length", "attention.head_count") and value == 0
            keys = plain_keys(**{f"llama.{name}": ("u64", value)})
            yield case(f"{name} is {value}", ANY if (may and value) or zero else REFUSED, keys=keys)
        keys = plain_keys(**{f"llama.{name}": ("string", "four")})
        yield case(f"{name} is a word", keys=keys)
        keys = plain_keys(**{f"llama.{name}": ("f32", float("nan"))})
        yield case(f"{name} is NaN", keys=keys)
    for name in ("attention.key_length", "rope.dimension_count"):
        for value in (2**20, 2**31, 2**40, 2**63):
            yield case(f"{name} is {value}", keys=plain_keys(**{f"llama.{name}": ("u64", value)}))
    for value in (0, 3, 2**21, 2**31):
        yield case(f"alignment {value}", keys=plain_keys(**{"general.alignment": ("u32", value)}))
    yield case("no architecture", keys={k: v for k, v in plain_keys().items() if k != "general.architecture"})
    yield case("no block count", keys={k: v for k, v in plain_keys().items() if k != "llama.block_count"})
    yield case("a part of three", keys=plain_keys(**{"split.count": ("u32", 3)}))
    yield case("a key twice", more_keys=(key("general.alignment", "u32", 32),))
    name = "blk.0.attn_q.weight"
    for offset in (2**64 - 32, 2**63, 2**40, 10**6, 0):
        yield case(f"an offset of {offset}", offsets={name: offset})
    for kind in (4, 5, 24, 25, 26, 27, 99, 2**31):
        yield case(f"a tensor of the type {kind}", types={name: kind})
    for number in (0, 5, 2**31):
        yield case(f"{number} dimensions", dimensions={name: number})
    for shape in ((0, 32), (2**40, 32), (2**63, 2), (2**32, 2**32), (32, 2**62)):
        yield case(f"a tensor of {shape}", tensors=plain_tensors() | {name: shape})
    for gone in ("token_embd.weight", "output_norm.weight"):
        yield case(f"no {gone}", tensors={k: v for k, v in plain_tensors().items() if k != gone})
    without = {k: v for k, v in plain_tensors().items() if not k.startswith("blk.1.")}
    yield case("no tensor of the last block", tensors=without)
    yield case("a block more", tensors=plain_tensors() | {"blk.2.attn_norm.weight": (32,)})
    yield case("block 999999999", tensors=plain_tensors() | {"blk.999999999.attn_norm.weight": (32,)})
    for count in (2**20, 2**40, 2**63, 2**64 - 1):
        for kind in (0, 4, 6, 8, 9, 12):
            yield case(f"an array of {count} of the type {kind}", more_keys=(array("x", kind, count, b"\0" * 64),))
    yield case("an array of arrays", more_keys=(array("x", 9, 1, b"\0" * 64),))
    yield case("more tokens than rows", more_keys=(array("tokenizer.ggml.tokens", 8, 50, string("a") * 50),))
    for size in (2**20, 2**40, 2**64 - 1):
        yield case(f"a name of {size} bytes", more_keys=(string("x", size),), key_count=12)
    yield case("a name that isn't UTF-8", more_keys=(string(b"\xff\xfe") + b"\0" * 16,))
    whole = gguf_file()
    for cut in (1, 31, 1000, len(whole) // 2, len(whole) - 30, len(whole) - 4, len(whole)):
        yield case(f"{cut} bytes less", cut=cut)


# ------------------------------------------------------------------------------------------- recipes, text, artifacts


def _recipes() -> Iterator[Case]:
    texts = {
        "laughs": LAUGHS,
        "laughs in a field": LAUGHS + "search: *a9\n",
        "deep": DEEP,
        "deep mapping": "{a: " * 2000 + "1" + "}" * 2000,
        "itself": "search: &a {stages: *a}",
        "list": "- a\n- b\n",
        "word": "word",
        "tabs": "search:\n\tgenerations: 5",
        "a tag": "search: !!python/object/apply:os.system ['touch RAN']",
        "not UTF-8": b"search: \xff\xfe",
        "zero byte": b"search: \0",
        "a date": "search: {seed: 2021-13-45}",
        "twice": "{[a]: b}",
        "a long word": "search: {start: " + "x" * 500_000 + "}",
        "a large file": "#" * (2 << 20),
        "many wrong fields": "search: {" + ", ".join(f"a{i}: 1" for i in range(2000)) + "}",
        "sections that are lists": "search: []\ntext: []\nbudget: []",
        "a section that is a number": "search: 5",
        "stages that are words": "search: {stages: [a, b]}",
        "no stages": "search: {stages: []}",
    }
    for name, content in texts.items():
        yield Case(f"recipe: {name}", "recipe", alone("recipe.yaml", content))
    fields = (
        "search.generations", "search.offspring", "search.training.batch_tokens",
        "text.sequence_length", "text.calibration_tokens", "refit.tokens",
        "units.mlp_multiple",
        "compute.batch_tokens", "evaluation.new_tokens", "evaluation.speed_runs", "recovery.epochs", "recovery.tokens",
    )  # fmt: skip
    for field in fields:
        for value in (
            "-1",
            str(2**63),
            "1" + "0" * 40,
            "0x" + "f" * 400,
            "1e400",
            ".nan",
            ".inf",
            "[1]",
            "{a: 1}",
            "word",
        ):
            content = value
            for part in reversed(field.split(".")):
                content = f"{{{part}: {content}}}"
            yield Case(f"recipe: {field} is {value[:12]}", "recipe", alone("recipe.yaml", content))


def _texts() -> Iterator[Case]:
    def packed(content: bytes) -> bytes:
        return gzip.compress(content, 5, mtime=0)

    bad: dict[str, dict[str, Any]] = {
        "text.txt": {
            "empty": b"", "blank": b"\n \n\t\n", "not UTF-8": b"caf\xe9\n", "zero byte": b"a\0b",
            "UTF-16": b"\xff\xfea\0",
        },
        "text.txt.gz": {
            "empty": b"", "not gzip": b"plain", "cut": packed(b"text\n" * 1000)[:-9],
            "many zeros": lambda: packed(b"\0" * 100_000_000),
            "one line of the same": lambda: packed(b"a" * 100_000_000),
            "line breaks": lambda: packed(b"\n" * 30_000_000),
        },
        "text.jsonl": {
            "empty": b"", "word": b"word\n", "list": b"[]\n", "no text": b'{"a": 1}\n', "number": b'{"text": 5}\n',
            "deep": DEEP.encode(), "open": b'{"text": "', "null": b"null", "not UTF-8": b'{"text": "\xff"}',
            "a long number": b'{"text": ' + b"9" * 100_000 + b"}", "blank lines": lambda: b"\n" * 2_000_000,
            "a long line": lambda: b'{"text": "' + b"a" * (70 << 20) + b'"}',
        },
        "text.parquet": {"empty": b"", "word": b"PAR1", "twice": b"PAR1" + b"\xff" * 100 + b"PAR1"},
        "text.arrow": {"empty": b"", "word": b"ARROW1", "junk": b"\xff" * 4 + b"\x7f" * 100, "zeros": b"\0" * 100},
        "text.pdf": {"unknown": b"%PDF"},
    }  # fmt: skip
    for file, contents in bad.items():
        for name, content in contents.items():
            yield Case(f"text: {file} is {name}", "text", alone(file, content))
    fine: dict[str, tuple[str, Any]] = {
        "a line of 20 MB": ("text.txt", lambda: b"abc " * 5_000_000),
        "a line of 80 MB": ("text.txt", lambda: b"abc " * 20_000_000),
        "a cut inside a character": ("text.txt", lambda: "é".encode() * (40 << 20)),
        "half a surrogate": ("text.jsonl", b'{"text": "\\ud800"}\n'),
        "a mark at its start": ("text.txt", b"\xef\xbb\xbftext"),
    }
    for name, (file, content) in fine.items():
        yield Case(f"text: {name}", "text", alone(file, content), ANY)


def _artifacts() -> Iterator[Case]:
    contents: dict[str, Any] = {
        "list": [],
        "word": "x",
        "null": None,
        "no files": {"key": {"a": 1}, "facts": {}},
        "files that are a list": {"key": {"a": 1}, "facts": {}, "files": ["a"]},
        "facts that are a list": {"key": {"a": 1}, "facts": [], "files": {}},
        "a missing file": {"key": {"a": 1}, "facts": {}, "files": {"a": "b"}},
        "a file outside": {"key": {"a": 1}, "facts": {}, "files": {"../../nothing": "b"}},
        "a long name": {"key": {"a": 1}, "facts": {}, "files": {"x" * 5000: "b"}},
    }
    for name, tree in contents.items():
        yield Case(f"artifact: a manifest that is {name}", "artifact", alone("manifest.json", json.dumps(tree)))
    for name, content in (("deep", DEEP), ("empty", ""), ("open", "{"), ("not UTF-8", b"\xff"), ("zeros", b"\0" * 64)):
        yield Case(f"artifact: a manifest that is {name} bytes", "artifact", alone("manifest.json", content))


def _imports() -> Iterator[Case]:
    for case in (*_configs(), *_weights()):
        odd = any(word in case.name for word in ("NaN", "infinity", "num_hidden_layers", "more", "odd", "is 0"))
        fields = any(
            word in case.name for word in ("num_", "_size", "head_dim", "max_", "may be", "auto_map", "code of")
        )
        outcome = ANY if odd or fields or case.outcome == ANY else REFUSED
        if case.reader == "model" and not (
            "all missing" in case.name or "adapter" in case.name or "model_type" in case.name
        ):
            yield Case(f"import of {case.name}", "import", case.write, outcome)


def _mutations(rng: random.Random) -> Iterator[Case]:
    """Random damage: bytes flipped, cut out, doubled, and set to what parsers stumble over."""

    def damaged(name: str, seed: int) -> Callable[[Path, Path], None]:
        def write(folder: Path, model: Path) -> None:
            copied(model, folder)
            (folder / name).write_bytes(_damage((folder / name).read_bytes(), random.Random(seed)))

        return write

    for number in range(60):
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            yield Case(f"model: damage {number} of {name}", "model", damaged(name, rng.randrange(2**32)), ANY)
        yield Case(f"model: damaged weights {number}", "model", damaged("model.safetensors", rng.randrange(2**32)), ANY)
    whole = gguf_file()
    head = whole[:1400]
    for number in range(150):
        content = _damage(head, random.Random(rng.randrange(2**32))) + whole[1400:]
        yield Case(f"gguf: damage {number}", "gguf", alone("model.gguf", content), ANY)
    recipe = b"search: {generations: 5, offspring: 4, stages: [{tokens: 64, survivors: 1}]}\ntext: {source: a}\n"
    for number in range(60):
        content = _damage(recipe, random.Random(rng.randrange(2**32)))
        yield Case(f"recipe: damage {number}", "recipe", alone("recipe.yaml", content), ANY)
    line = b'{"text": "some text", "more": [1, 2, {"a": null}]}\n' * 3
    for number in range(40):
        content = _damage(line, random.Random(rng.randrange(2**32)))
        yield Case(f"text: damage {number}", "text", alone("text.jsonl", content), ANY)


def _damage(data: bytes, rng: random.Random) -> bytes:
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, how = rng.randrange(max(len(found), 1)), rng.randrange(5)
        if how == 0 and found:
            found[place] ^= 1 << rng.randrange(8)
        elif how == 1:
            del found[place : place + rng.randint(1, 64)]
        elif how == 2:
            found[place:place] = found[place : place + rng.randint(1, 64)]
        elif how == 3:
            found[place : place + 8] = rng.choice(
                (b"\xff" * 8, b"\0" * 8, b"\0" * 7 + b"\x80", b"99999999", b'"}]{[":,')
            )
        else:
            found[place:place] = rng.choice(
                (b"[" * 2000, b"{" * 500, b"\xff", b"\0", b"9" * 400, b"-", b"null", b"1e999")
            )
    return bytes(found)
