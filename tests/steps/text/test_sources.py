"""Every format is read, and data sets of the hub; every mistake in a source gives one clear message."""

import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import IterableDataset
from datasets.iterable_dataset import ExamplesIterable

from darwinlm.runtime.errors import DataError
from darwinlm.steps.text import encoding, file_kinds
from darwinlm.steps.text import local_files as files
from darwinlm.steps.text.sources import read_documents

ROWS = [{"id": index, "text": f"document {index}"} for index in range(5)]
TEXTS = [row["text"] for row in ROWS]
USUAL = ("text", "passage", "page", "content")


def json_lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_arrow(path, rows, *, stream, compression=None):
    table = pa.Table.from_pylist(rows)
    new, how = pa.ipc.new_stream if stream else pa.ipc.new_file, pa.ipc.IpcWriteOptions(compression=compression)
    with pa.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=how) as writer:
        writer.write_table(table, max_chunksize=2)
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write(path, content):
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_bytes(content)
    return path


def read(source):
    return list(read_documents(str(source)))


def message(source):
    with pytest.raises(DataError) as caught:
        read(source)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------ formats


ARTICLE = " \n = Title = \n \n A paragraph . \n \n = = Section = = \n \n Another . \n \n"


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", "\n\n\none\n\nstill one\n \n\t\ntwo\n\n\n\n\nthree", ["one\n\nstill one", "two", "three"]),
        ("wiki.txt", ARTICLE * 3, [" = Title = \n\n A paragraph . \n\n = = Section = = \n\n Another . "] * 3),
        ("dos.txt", b"\xef\xbb\xbfone\r\nline\r\n\r\n\r\ntwo\r\n", ["one\nline", "two"]),
        ("c#.txt", "hello", ["hello"]),
        ("A.JSONL", json_lines(ROWS), TEXTS),
        *(("a.jsonl", json_lines([{"id": 1, name: "hello"}]), ["hello"]) for name in USUAL),
        ("a.jsonl", json_lines([{"content": "no", "text": "yes"}]), ["yes"]),
        ("a.jsonl", json_lines([{"text": None}, {"text": " \n"}, {"text": ""}, {"text": "hello"}]), ["hello"]),
        ("a.json", "\ufeff\n" + json.dumps(ROWS, indent=4), TEXTS),
        ("a.jsonl.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), TEXTS),
        ("a.csv", 'id,text\n1,"one, ""quoted""\nin two lines"\n\n2,two\n3\n', ['one, "quoted"\nin two lines', "two"]),
        ("a.csv", b"\xef\xbb\xbftext;id\r\none, two;1\r\n", ["one, two"]),
        ("a.jsonl", '{"Text ": "hello"}', ["hello"]),
        ("a.csv", "ID;TEXT\n1;hello\n", ["hello"]),
        ("a.csv", 'text,id\n"café, €",1\n'.encode("utf-16"), ["café, €"]),
        ("a.tsv", "id\ttext\n1\tcafé\n".encode("utf-16-be").join([b"\xfe\xff", b""]), ["café"]),
        ("a.csv", "text\n“It’s a café”\n".encode("cp1252"), ["“It’s a café”"]),
        ("a.txt", ("\n" * 200_000 + "crème brûlée").encode("cp1252"), ["crème brûlée"]),
        ("a.txt", ("Всё хорошо, большое спасибо. " * 3).encode("cp1251"), ["Всё хорошо, большое спасибо. " * 3]),
        ("a.jsonl", '{"text": "a\\ud800b \\ud83d\\ude00"}', ["a\ufffdb \U0001f600"]),
    ],
)
def test_text_and_json_lines(tmp_path, name, content, expected):
    assert read(write(tmp_path / name, content)) == expected


@pytest.mark.parametrize("seed", [None, 1])
def test_every_format_is_read_in_any_order(tmp_path, seed):
    """The list of formats, each with a field, and with names that patterns of files would read otherwise."""
    makers = {
        ".txt": lambda path: write(path, "\n\n\n".join(TEXTS)),
        ".txt.gz": lambda path: write(path, gzip.compress("\n\n\n".join(TEXTS).encode())),
        ".md": lambda path: write(path, "\n\n\n".join(TEXTS)),
        ".rst": lambda path: write(path, "\n\n\n".join(TEXTS)),
        ".html": lambda path: write(path, f"<p>{TEXTS[0]}</p>"),
        ".htm": lambda path: write(path, f"<title>no</title>{TEXTS[0]}"),
        ".jsonl": lambda path: write(path, json_lines(ROWS)),
        ".jsonl.gz": lambda path: write(path, gzip.compress(json_lines(ROWS).encode())),
        ".json": lambda path: write(path, json.dumps(ROWS)),
        ".csv": lambda path: write(path, "text\n" + "\n".join(TEXTS)),
        ".csv.gz": lambda path: write(path, gzip.compress(("text\n" + "\n".join(TEXTS)).encode())),
        ".tsv": lambda path: write(path, "id\ttext\n" + "\n".join(f"1\t{text}" for text in TEXTS)),
        ".parquet": lambda path: write_parquet(path, ROWS),
        ".arrow": lambda path: write_arrow(path, ROWS, stream=True),
    }
    assert tuple(makers) == file_kinds.EXTENSIONS
    pages = 0
    for ending, make in makers.items():
        path = make(tmp_path / f"a [1]* {{b}}{ending}")
        found = list(read_documents(str(path), seed=seed))
        if ending in file_kinds.PAGES:
            assert found == TEXTS[:1]
            pages += 1
            continue
        assert sorted(found) == TEXTS, ending
        if ending not in file_kinds.PROSE:
            assert sorted(read_documents(f"{path}#text", seed=seed)) == TEXTS, ending
    assert sorted(read_documents(str(tmp_path), seed=seed)) == sorted(TEXTS * (len(makers) - pages) + TEXTS[:1] * pages)


def test_nothing_is_written_and_no_network_is_asked(tmp_path):
    """Neither a cache in the home folder nor a message to the hub, with the library's usual settings."""
    for name, make in (("a.jsonl", lambda path: write(path, json_lines(ROWS))), ("a.parquet", None)):
        _ = make(tmp_path / name) if make else write_parquet(tmp_path / name, ROWS)
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.getaddrinfo = socket.socket.connect = refuse\n"
        "from darwinlm.steps.text.sources import read_documents\n"
        "print(len(list(read_documents(sys.argv[1], seed=1))))"
    )
    usual = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=usual | {"HOME": str(tmp_path / "home"), "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("10\n", "")
    assert not list((tmp_path / "home").rglob("*.*"))


def test_a_book_gives_many_documents(tmp_path):
    """It has no two blank lines, or not even one, or no line at all."""
    paragraph = "It was a long day on the river. " * 20
    book = "\n\n".join(f"{number} {paragraph}" for number in range(900))
    for name, text, most in (
        ("book.txt", book, 2**14 + 700),
        ("lines.txt", book.replace("\n\n", "\n"), 2**15 + 700),
        ("line.txt", book.replace("\n\n", " "), 2**15),
    ):
        found = read(write(tmp_path / name, text))
        assert 18 <= len(found) <= 36
        assert max(map(len, found)) <= most
        assert "".join("".join(found).split()) == "".join(text.split())


def test_folder_is_read_in_sorted_order_without_what_is_no_text(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".cache").mkdir()
    write(tmp_path / "b.txt", "b")
    write(tmp_path / "a.jsonl", json_lines([{"text": "a"}]))
    write(tmp_path / "sub" / "c.txt.gz", gzip.compress(b"c"))
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "README.md", "not read")
    write(tmp_path / "state.json", "{}")
    write(tmp_path / ".cache" / "hidden.txt", "not read")
    assert read(tmp_path) == read(f"{tmp_path}/") == ["a", "b", "c"]


def test_arguments_of_tool_calls_stay_as_they_are(tmp_path):
    """`datasets` would give all calls of a file the same arguments."""
    path = write(tmp_path / "a.jsonl", json_lines([{"text": "a", "tools": [{"a": 1}, {"b": 2}]}]))
    assert [record["tools"] for _, record in files.json_records(path)] == [[{"a": 1}, {"b": 2}]]


NUMBERS = json_lines([{"text": str(number)} for number in range(1000)])


@pytest.mark.parametrize("held", [1, 10, 999, 1000, 5000])
def test_every_document_comes_once_in_random_order(tmp_path, monkeypatch, held):
    monkeypatch.setattr(files, "BUFFER_DOCUMENTS", held)
    assert sorted(read_documents(str(write(tmp_path / "a.jsonl", NUMBERS)), seed=0), key=int) == list(
        map(str, range(1000))
    )


def test_order_depends_on_the_seed_and_the_file(tmp_path):
    one, two = (str(write(tmp_path / name, NUMBERS)) for name in ("a.jsonl", "b.jsonl"))
    first, again, other = (list(read_documents(one, seed=seed)) for seed in (1, 1, -2))
    assert first == again != other
    assert first != list(read_documents(two, seed=1))


# ------------------------------------------------------------------------------------------------------- errors


NO_TEXT = "there is no text in it"
NO_UTF8 = "the file can't be read as UTF-8 text ('utf-8' codec can't decode byte 0xc3 in position"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.pdf", "hello", "a.pdf: the extension isn't supported. Give program code, or a file that ends in .txt"),
        ("README", "hello", "the extension isn't supported"),
        ("a.txt", "", NO_TEXT),
        ("a.txt", "hello".encode("utf-16-le"), "a.txt: there is a zero byte"),
        ("a.txt", "déjà vu, garçon ".encode() + b"cut in caf\xc3", NO_UTF8),
        ("a.py", b"print(1)\0", "a.py: there is a zero byte"),
        ("a.html", b"<p>\0", "a.html: there is a zero byte"),
        ("a.html", "<head><title>Only a title</title></head><script>run()</script>", NO_TEXT),
        ("a.txt.gz", b"not gzip", "the file can't be read as UTF-8 text (Not a gzipped file"),
        ("a.txt.gz", gzip.compress(b"hello" * 99, mtime=0)[:-9], "pack it again"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"content": "b"}',
            "line 2: there is no field text; the existing fields are: content",
        ),
        ("a.jsonl", '{"text": 3}', "line 1: the field 'text' holds a int"),
        ("a.jsonl", '{"text": "a"}\n{"text": "cut', "a.jsonl, line 2: this isn't JSON (Unterminated string"),
        ("a.json", '[{"text": "a"}, 7]', "record 2: this is a int, not a record"),
        ("a.json", '[{"text": "a"}, {"text": "b"', "a.json: this isn't JSON"),
        ("a.json", b'[{"text": "' + bytes(range(128, 256)) * 9, "Convert it (for example with iconv)"),
        ("a.json", "[]", NO_TEXT),
        ("a.jsonl", '"a"', "line 1: this is a str, not a record"),
        ("a.csv", "id,text\n1,one, two\n", "line 2: there are more cells than columns"),
        ("a.csv", 'text\n"never closed\n', "unexpected end of data. Correct the table"),
        ("a.csv", "review,stars\ngood,5\n", "the existing fields are: review, stars"),
        ("a.parquet", b"not a table at all, whatever its name says", "the file is damaged or isn't Parquet"),
        ("a.arrow", b"not a table at all, whatever its name says", "the file is damaged or isn't Arrow"),
    ],
)
def test_files_that_cannot_be_read_as_text(tmp_path, name, content, said):
    assert said in message(write(tmp_path / name, content))


def test_places_without_text(tmp_path):
    assert "no such file or folder" in message(f"{tmp_path}/nowhere.jsonl#text")
    assert "the name is empty" in message(" ")
    write(tmp_path / "README.md", "hello")
    assert "the folder has no readable file" in message(tmp_path)
    assert "Leave '#text' out" in message(f"{write(tmp_path / 'a.txt', 'hello')}#text")
    parquet = write_parquet(tmp_path / "a.parquet", [{"text": None, "id": 1}, {"text": "", "id": 2}])
    assert NO_TEXT in message(parquet)
    assert "row 1: the field 'id' holds a int" in message(f"{parquet}#id")


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "endless.jsonl").symlink_to("/dev/zero")
    for name in ("pipe.txt", "endless.jsonl"):
        assert "this is a pipe or a device, which can't be read twice" in message(tmp_path / name)
    write(tmp_path / "a.txt", "hello")
    assert read(tmp_path) == ["hello"]


def test_folders_in_a_thousand_others(tmp_path, monkeypatch):
    write(tmp_path / "a.txt", "hello")
    monkeypatch.setattr(Path, "rglob", Mock(side_effect=RecursionError))  # as Python 3.11 ends there
    assert "nested too deeply" in message(tmp_path)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_field_not_found_names_the_fields_there_are(tmp_path, kind):
    rows = [{"title": "a", "body": "b"}]
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        write(path, json_lines(rows))
    elif kind == "parquet":
        write_parquet(path, rows)
    else:
        write_arrow(path, rows, stream=True)
    text = message(path)
    assert "no field text, passage" in text
    assert "question+answer; the existing fields are: body, title" in text
    assert "after a '#'" in text
    assert "no field summary; the existing fields are: body, title" in message(f"{path}#summary")


def test_file_that_cannot_be_read(tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "a.txt", "hello")
    monkeypatch.setattr(encoding, "open", refuse, raising=False)
    assert "a.txt: the file can't be read as UTF-8 text ([Errno 13] Permission denied)" in message(path)


def test_arrow_offset_beyond_the_file(tmp_path):
    """pyarrow would read from there and end the process."""
    path = write_arrow(tmp_path / "a.arrow", [{"text": "eleven word"}] * 2, stream=True)
    offsets = struct.pack("<3i", 0, 11, 22)
    assert offsets in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(offsets, struct.pack("<3i", 0, 11, 2**31 - 1)))
    assert "the file is damaged or isn't Arrow" in message(path)


def test_several_sources_give_equal_parts(tmp_path, monkeypatch):
    short = write(tmp_path / "a.txt", "\n\n\n".join(f"a{number:02}" for number in range(40)))
    long = write(tmp_path / "b.jsonl", json_lines([{"text": f"b{number}" * 10} for number in range(3)]))
    found = list(read_documents(f"{short},{long}"))
    assert found[:9] == ["a00", "b0" * 10, *(f"a{number:02}" for number in range(1, 7)), "b1" * 10]
    assert len(found) == 43
    (tmp_path / "c,d.txt").write_text("one path")
    assert list(read_documents(str(tmp_path / "c,d.txt"))) == ["one path"]
    both = f"{tmp_path / 'c,d.txt'},{tmp_path / 'e.txt'}"
    write(tmp_path / "e.txt", "another")
    assert list(read_documents(both)) == ["one path", "another"]
    monkeypatch.chdir(tmp_path)
    assert len(list(read_documents(",".join(["e.txt"] * 50)))) == 50, "longer than a name may be"
    with pytest.raises(DataError, match="no such file"):
        read_documents(f"{short},{tmp_path / 'nowhere.txt'}")


def test_a_long_record_is_divided(tmp_path):
    path = write(tmp_path / "a.jsonl", json_lines([{"text": "word " * 600_000}]))
    found = read(path)
    assert len(found) == 3
    assert max(map(len, found)) <= 1 << 20
    assert "".join(found) == "word " * 600_000


@pytest.fixture
def hub(monkeypatch):
    """Replace `load_dataset`: it returns `hub.rows` or raises `hub.error`, and records its arguments."""
    state = SimpleNamespace(calls=[], rows=ROWS, error=None, taken=0)

    def load_dataset(*arguments, **options):
        state.calls.append((arguments, options))
        if state.error is not None:
            raise state.error
        return IterableDataset(ExamplesIterable(stream, {}))

    def stream():
        for number, row in enumerate(state.rows):
            state.taken += 1
            yield number, row

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    return state


@pytest.mark.parametrize(
    ("source", "name", "config", "split"),
    [
        ("hf:someone/things", "someone/things", None, "train"),
        ("hf:someone/things:small-1.0", "someone/things", "small-1.0", "train"),
        ("hf:someone/things@test", "someone/things", None, "test"),
        ("hf:things:small@train[:10%]", "things", "small", "train[:10%]"),
        ("hf:HuggingFaceFW/fineweb-edu", "HuggingFaceFW/fineweb-edu", None, "train"),
    ],
)
def test_hub_is_streamed(hub, source, name, config, split):
    assert read(source) == TEXTS
    assert hub.calls == [((name, config), {"split": split, "streaming": True})]


def test_hub_with_a_field(hub):
    hub.rows = [{"text": "no", "body": "yes"}]
    assert read("hf:someone/things:small@train#body") == ["yes"]
    assert "row 1: there is no field other; the existing fields are: body, text" in message("hf:someone/things#other")


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c", "hf:a b", "hf:a/b@", "hf://a/b"])
def test_malformed_hub_name(hub, source):
    assert "this isn't a data set's name. Write hf:owner/name" in message(source)
    assert not hub.calls


def test_hub_that_breaks_off(hub):
    def rows():
        yield ROWS[0]
        raise RuntimeError

    hub.rows = rows()
    documents = read_documents("hf:someone/things")
    assert next(documents) == "document 0"
    with pytest.raises(DataError, match=r"can't be read \(RuntimeError\)"):
        next(documents)


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_hub_offline(hub, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    hub.error = ConnectionError("Couldn't reach the hub")
    text = message("hf:someone/things")
    assert (
        f"(Couldn't reach the hub). Check its name, :config, @split, your log-in and the network, and unset {variable}"
        in text
    )
    assert "give local text" in text


@pytest.mark.parametrize("error", [ConnectionError("no network"), FileNotFoundError("no such set"), ValueError("tset")])
def test_what_cannot_be_opened(hub, error):
    hub.error = error
    assert f"hf:someone/things@train: the data set can't be read ({error}). Check its name" in message(
        "hf:someone/things"
    )


def test_a_data_set_without_text(hub):
    hub.rows = []
    assert "there is no text in it" in message("hf:someone/things")
