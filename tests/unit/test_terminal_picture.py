"""The picture of a terminal: the log as it is, in colours that it has, without anything from the network."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from tests.tiny.process import python

TOOL = Path(__file__).parents[2] / "tools" / "terminal.py"
LOG = """Script started on 2026-11-27 05:00:00+00:00
text: 0 s
search  1/2\rsearch  2/2
refit  1/2 · 0:12 left
refit  2/2
\x1b[1;31mperplexity\x1b[0m <37.1> & KL 0.620
model  ───────  79.6 M (75.0 %)   
a line that is longer than the twenty-four columns of this terminal

"""  # noqa: W291


def run(folder: Path, *options: str, status: int = 0) -> CompletedProcess[str]:
    return python(TOOL, folder / "demo.log", "--out", folder / "demo.svg", *options, status=status)


def draw(folder: Path, *options: str) -> str:
    (folder / "demo.log").write_text(LOG, encoding="utf-8")
    run(folder, *options)
    return (folder / "demo.svg").read_text(encoding="utf-8")


def rows(svg: str) -> list[str]:
    """Text of the picture, row by row."""
    found: dict[float, str] = {}
    for text in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if "clip-path" in text.attrib:
            y = float(text.attrib["y"])
            found[y] = found.get(y, "") + (text.text or "")
    return [row.replace("\xa0", " ").rstrip() for _, row in sorted(found.items())]


def test_the_log_is_shown_as_it_is_in_colours_and_nothing_is_loaded(tmp_path: Path) -> None:
    svg = draw(tmp_path, "--command", "make demo")
    assert rows(svg) == [
        "$ make demo",
        "text: 0 s",
        "search  2/2",
        "refit  1/2 · 0:12 left",
        "refit  2/2",
        "perplexity <37.1> & KL 0.620",
        "model  ───────  79.6 M (75.0 %)",
        "a line that is longer than the twenty-four columns of this terminal",
    ]
    style = re.search(r'class="([\w-]+)"[^>]*>perplexity<', svg)
    assert "font-weight: bold" in re.search(rf"\.{style[1]} {{([^}}]*)}}", svg)[1]
    assert "url(http" not in svg
    assert "@font-face" not in svg
    assert draw(tmp_path, "--command", "make demo") == svg, "the same each time"


def test_long_lines_are_folded_and_nothing_is_lost(tmp_path: Path) -> None:
    shown = rows(draw(tmp_path, "--width", "24"))
    assert max(map(len, shown)) <= 24
    assert "longer" in " ".join(shown)
    assert "this terminal" in " ".join(shown)


def test_skipped_lines_leave_one_ellipsis(tmp_path: Path) -> None:
    shown = rows(draw(tmp_path, "--skip", "^refit"))
    assert shown[1:4] == ["search  2/2", "…", "perplexity <37.1> & KL 0.620"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_log_that_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "demo.log").write_bytes(content)
    ended = run(tmp_path, status=1)
    assert ended.stderr.startswith(f"error: can't read {tmp_path / 'demo.log'}: ")
    assert not (tmp_path / "demo.svg").exists()
