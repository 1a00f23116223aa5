"""The corpus: hostile and damaged inputs by a seeded generator, each with what must come of it.

A case writes its files into a folder and names the reader that is to meet them. `REFUSED` cases must end in one of our
errors. `ANY` cases, which are random damage, may also be harmless.
"""

import gzip
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.fuzz.case import ANY, DEEP, REFUSED, Case, alone, copied
from tests.fuzz.gguf_bytes import TOKENS, WIDTH, array, gguf_file, key, plain_keys, plain_tensors, string
from tests.fuzz.model_cases import configs, json_files, tokenizers, weights


def corpus(seed: int = 0) -> list[Case]:
    """All cases, in the same order every time."""
    rng = random.Random(seed)
    made = [*configs(), *json_files(), *tokenizers(), *weights(), *_ggufs(), *_recipes(), *_texts(), *_mutations(rng)]
    names = [case.name for case in made]
    assert len(set(names)) == len(names), "names are unique"
    return made


# --------------------------------------------------------------------------------------------------------------- GGUF


def _ggufs() -> Iterator[Case]:  # noqa: C901 - a list
    def case(name: str, outcome: str = REFUSED, **how: Any) -> Case:
        return Case(f"gguf: {name}", "gguf", alone("model.gguf", gguf_file(**how)), outcome)

    yield case("whole", ANY)
    yield case("another magic", magic=b"FUGG")
    for version in (0, 4, 2**31):
        yield case(f"version {version}", version=version)
    for count in (0, 1, 21, 2**31, 2**40, 2**63, 2**64 - 1):
        yield case(f"{count} tensors", tensor_count=count)
        yield case(f"{count} keys", key_count=count if count != 21 else 12)
    sizes = ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count")
    for name in (*sizes, "attention.key_length", "rope.dimension_count"):
        for value in (("f32", float("nan")), ("string", "four"), *(("u64", n) for n in (0, 3, 5, 2**20, 2**40, 2**63))):
            refused = name == "block_count" or value[0] == "f32"
            keys = plain_keys(**{f"llama.{name}": value})
            yield case(f"{name} is {value[1]}", REFUSED if refused else ANY, keys=keys)
    for name in ("llama.context_length", "tokenizer.ggml.eot_token_id"):
        yield case(f"{name} is a word", keys=plain_keys(**{name: ("string", "x")}))
    yield case("an embedding in a row", tensors=plain_tensors() | {"token_embd.weight": (WIDTH * TOKENS,)})
    yield case("a template that is a number", keys=plain_keys(**{"tokenizer.chat_template": ("u32", 5)}))
    for value in (0, 3, 2**21, 2**31):
        yield case(f"alignment {value}", keys=plain_keys(**{"general.alignment": ("u32", value)}))
    yield case("no block count", keys={k: v for k, v in plain_keys().items() if k != "llama.block_count"})
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
    yield case("no embedding", tensors={k: v for k, v in plain_tensors().items() if k != "token_embd.weight"})
    without = {k: v for k, v in plain_tensors().items() if not k.startswith("blk.1.")}
    yield case("no tensor of the last block", tensors=without)
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
        "deep": DEEP,
        "deep mapping": "{a: " * 2000 + "1" + "}" * 2000,
        "itself": "search: &a {rounds: *a}",
        "a tag": "search: !!python/object/apply:os.system ['touch RAN']",
        "a date": "search: {seed: 2021-13-45}",
        "a long word": "search: {start: " + "x" * 500_000 + "}",
        "a large file": "#" * (2 << 20),
        "many wrong fields": "search: {" + ", ".join(f"a{i}: 1" for i in range(2000)) + "}",
    }
    for name, content in texts.items():
        yield Case(f"recipe: {name}", "recipe", alone("recipe.yaml", content))
    fields = (
        "search.generations", "search.offspring",
        "text.sequence_length", "text.calibration_tokens", "refit.tokens",
        "units.mlp_multiple",
        "compute.batch_tokens", "recovery.epochs", "recovery.tokens",
    )  # fmt: skip
    values = ("-1", str(2**63), "1" + "0" * 40, "0x" + "f" * 400, "1e400", ".nan", ".inf", "[1]", "{a: 1}", "word")
    for section, field in (name.split(".") for name in fields):
        for value in values:
            content = f"{{{section}: {{{field}: {value}}}}}"
            yield Case(f"recipe: {section} {field} is {value[:12]}", "recipe", alone("recipe.yaml", content))


def _texts() -> Iterator[Case]:
    def packed(content: bytes) -> bytes:
        return gzip.compress(content, 5, mtime=0)

    bad: dict[str, dict[str, Any]] = {
        "text.txt.gz": {
            "many zeros": lambda: packed(b"\0" * 100_000_000),
            "line breaks": lambda: packed(b"\n" * 3_000_000),
        },
        "text.jsonl": {
            "deep": DEEP.encode(), "null": b"null",
            "a long number": b'{"text": ' + b"9" * 100_000 + b"}", "blank lines": lambda: b"\n" * 2_000_000,
        },
        "text.json": {"a deep list": b"[" * 100_000, "a list of lists": b"[[]]"},
        "text.csv": {
            "a long row": b"text\n" + b"," * 100_000,
            "only a header": b"text\n", "an endless cell": lambda: b'text\n"' + b"a\n" * (20 << 20),
        },
        "text.parquet": {"word": b"PAR1", "twice": b"PAR1" + b"\xff" * 100 + b"PAR1"},
        "text.arrow": {"word": b"ARROW1", "junk": b"\xff" * 4 + b"\x7f" * 100, "zeros": b"\0" * 100},
    }  # fmt: skip
    for file, contents in bad.items():
        for name, content in contents.items():
            yield Case(f"text: {file} is {name}", "text", alone(file, content))
    fine: dict[str, tuple[str, Any]] = {
        "a line of 80 MB": ("text.txt", lambda: b"abc " * 20_000_000),
        "a packed line of 100 MB": ("text.txt.gz", lambda: packed(b"a" * 100_000_000)),
        "a cut inside a character": ("text.txt", lambda: "é".encode() * (40 << 20)),
        "a long record": ("text.jsonl", lambda: b'{"text": "' + b"a" * (70 << 20) + b'"}'),
        "half a surrogate": ("text.jsonl", b'{"text": "\\ud800"}\n'),
        "a mark at its start": ("text.txt", b"\xef\xbb\xbftext"),
        "a zero byte in a cell": ("text.csv", b"text\n\0\n"),
    }
    for name, (file, content) in fine.items():
        yield Case(f"text: {name}", "text", alone(file, content), ANY)


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
    recipe = b"search: {generations: 5, offspring: 4, rounds: [{tokens: 64, survivors: 1}]}\ntext: {source: a}\n"
    for number in range(60):
        content = _damage(recipe, random.Random(rng.randrange(2**32)))
        yield Case(f"recipe: damage {number}", "recipe", alone("recipe.yaml", content), ANY)
    line = b'{"text": "some text", "more": [1, 2, {"a": null}]}\n' * 3
    plain = {"jsonl": line, "csv": b'id,text\n1,"a, b"\n2,c\n'}
    plain["json"] = b'[{"messages": [{"role": "user", "content": "a"}]}, {"text": "b"}]'
    for name, table in (plain | _tables()).items():
        for number in range(40):
            content = _damage(table, random.Random(rng.randrange(2**32)))
            ending = name.partition(" ")[0]
            yield Case(f"text: damage {number} of {name}", "text", alone(f"text.{ending}", content), ANY)


def _tables() -> dict[str, bytes]:
    """Small tables by their endings, and how they are written."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"text": [f"document {number} with words" for number in range(50)]})
    found = {}
    for kind, new in (("stream", pa.ipc.new_stream), ("file", pa.ipc.new_file)):
        for compression in (None, "zstd"):
            sink = pa.BufferOutputStream()
            with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
                writer.write_table(table)
            found[f"arrow {kind} {compression}"] = sink.getvalue().to_pybytes()
    for compression in ("none", "zstd"):
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression=compression)
        found[f"parquet {compression}"] = sink.getvalue().to_pybytes()
    return found


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
