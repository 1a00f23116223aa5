"""Folders: which files are read, what is said of the others, and when a folder is refused."""

import gzip
import json

import pytest
from tests.tiny.tokenizer import tiny_tokenizer

from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.sources import read_documents
from darwinlm.steps.text.text_settings import TextSettings
from darwinlm.steps.text.text_source import fingerprint

LINES = '{"text": "one"}\n{"text": "two"}\n'
PAGE = """<!doctype html><html><head><title>Not this</title><style>p {}</style></head>
<body><nav>Home</nav><h1>Caf&eacute;</h1><p>One <b>bold</b>
line.<br>Another.</p><script>run("</p>")</script><pre>a
    b</pre><ul><li>x<li>y</ul></body></html>"""


def fill(folder, contents):
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(source):
    said = []
    return list(read_documents(str(source), say=said.append)), said


def test_code_and_pages_are_read_as_text(tmp_path):
    code = "import os\n\n\ndef one():\n    return 1\n\n\ndef two():\n    return 2\n"
    fill(tmp_path, {"a.py": code, "b.rst": "Title\n=====\n\n\nMore", "c.html": PAGE, "Makefile": "all:\n\techo\n"})
    documents, said = read(tmp_path)
    page = "Home\n\nCafé\n\nOne bold line.\nAnother.\n\na\n    b\n\nx\ny"
    assert sorted(documents) == sorted([code.rstrip(), "Title\n=====", "More", page, "all:\n\techo"])
    assert said == [f"text: {tmp_path} reads 4 files (1 Makefile, 1 .py, 1 .rst, 1 .html)"]
    assert read(tmp_path / "a.py") == ([code.rstrip()], [])


def test_a_package_of_code_with_one_file_of_records(tmp_path):
    """Only the records were read, without a word about the code."""
    fill(tmp_path, {f"m{number}.py": f"x = {number}" for number in range(5)} | {"sub/chats.jsonl": LINES})
    documents, said = read(tmp_path)
    assert sorted(documents) == sorted([f"x = {number}" for number in range(5)] + ["one", "two"])
    assert said == [f"text: {tmp_path} reads 6 files (5 .py, 1 .jsonl)"]
    assert len(fingerprint(str(tmp_path))[0]["files"]) == 6


def test_skipped_files_are_named(tmp_path):
    fill(tmp_path, {"faq.csv": "text\nhello\n", "manual.pdf": b"%PDF", "README.md": "no", "__pycache__/a.pyc": b"\0"})
    fill(tmp_path, {".git/config": "no", "node_modules/a.js": "no", "dataset_info.json": "{}"})
    assert read(tmp_path) == (
        ["hello"],
        [f"text: {tmp_path} reads 1 file (.csv), skipped 2 files (1 README.md, 1 .pdf)"],
    )


def test_usual_folders_are_read_without_a_word(tmp_path):
    fill(tmp_path, {"a.jsonl": LINES, "b.jsonl": LINES})
    assert read(tmp_path)[1] == []


def test_configurations_are_no_records(tmp_path):
    settings = json.dumps({"name": "x", "version": 1}, indent=2)
    fill(tmp_path, {"package.json": settings, "a.json": LINES, "b.json": "[\n" + LINES.splitlines()[0] + "]"})
    documents, said = read(tmp_path)
    assert sorted(documents) == ["one", "one", "two"]
    assert said == [f"text: {tmp_path} reads 2 files (.json), skipped 1 file (.json)"]


def test_binary_files_with_names_of_code_are_skipped(tmp_path):
    fill(tmp_path, {"a.py": "x = 1", "messages.mo": b"\xde\x12\x04\x95\0\0\0\0"})
    assert read(tmp_path)[1] == [f"text: {tmp_path} reads 1 file (.py), skipped 1 file (.mo)"]


def test_folders_of_which_most_cannot_be_read(tmp_path):
    fill(tmp_path, {f"{number}.pdf": b"%PDF" for number in range(1200)} | {"a.csv": "text\nhello\n", "b.docx": b"PK"})
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"Text source {tmp_path}: most of its files can't be read as text: 1,201 files (1,200 .pdf, 1 .docx). Those "
        "that can are 1 file (.csv). Convert the others, or name the readable files or their folder, separated by "
        "commas."
    )


def test_pictures_beside_text_do_not_matter(tmp_path):
    fill(tmp_path, {f"{number}.png": b"PNG" for number in range(9)} | {"a.md": "hello"})
    assert read(tmp_path) == (["hello"], [f"text: {tmp_path} reads 1 file (.md), skipped 9 files (.png)"])


def test_folders_without_a_readable_file_say_what_they_hold(tmp_path):
    fill(tmp_path, {"a.pdf": b"%PDF", "b.epub": b"PK"})
    with pytest.raises(DataError, match=r"the folder has no readable file. It holds 2 files \(1 .pdf, 1 .epub\)"):
        read(tmp_path)


def test_a_field_is_looked_for_in_records_only(tmp_path):
    fill(tmp_path, {"load.py": "x = 1", "a.jsonl": '{"body": "hello"}\n'})
    assert read(f"{tmp_path}#Body") == (["hello"], [f"text: {tmp_path} reads 1 file (.jsonl), skipped 1 file (.py)"])


def test_a_guessed_encoding_is_said(tmp_path):
    fill(
        tmp_path,
        {"a.csv": "text\nun café s’il vous plaît\n".encode("cp1252"), "b.csv": "text\nthé\n".encode("utf-16")},
    )
    documents, said = read(tmp_path)
    assert documents == ["un café s’il vous plaît", "thé"]
    assert said == [
        f"text: {tmp_path / 'a.csv'} isn't UTF-8 and is read as cp1252; if letters come out wrong, convert it to UTF-8"
    ]
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress("naïve café".encode("cp1252")))
    assert read(path)[0] == ["naïve café"]


def test_it_is_said_once_by_a_run(tmp_path):
    from darwinlm.steps.text.prepared import prepare_text

    said = []
    fill(tmp_path, {"a.txt": "a river. " * 400 + "\n\n\n" + "a mountain. " * 300, "b.pdf": b"%PDF"})
    prepare_text(
        str(tmp_path),
        {"calibration": 4096, "evaluation": 512},
        tiny_tokenizer(),
        TextSettings(sequence_length=16),
        said.append,
    )
    assert sum("skipped 1 file (.pdf)" in line for line in said) == 1
    assert any("is short" in line for line in said), "it was read more than once"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://huggingface.co/datasets/owner/name", "Name the data set of the hub as hf:owner/name."),
        ("huggingface.co/datasets/owner/name/viewer/default", "Name the data set of the hub as hf:owner/name."),
        ("https://huggingface.co/owner/model", "Name a data set of the hub as hf:owner/name."),
        ("https://example.org/a.txt", "with curl -LO https://example.org/a.txt), and give its path."),
    ],
)
def test_addresses_on_the_web(source, said):
    with pytest.raises(DataError) as caught:
        read(source)
    assert "this is an address on the web" in str(caught.value)
    assert str(caught.value).endswith(said)
