"""A page in a headless Chromium, where there is one: how wide it is, what it logs, and what a script finds in it."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = ("--headless", "--disable-gpu", "--no-first-run", "--hide-scrollbars", "--enable-logging=stderr")
FRAME = """<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}">
</iframe><script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", async () => {{
  const document_ = frame.contentDocument, window_ = frame.contentWindow;
  const found = await (async (document, window) => {{ {script} }})(document_, window_);
  const right = (one) => one.getBoundingClientRect().right;
  const edge = (one) => Math.min({width}, right(one.parentElement.closest("section") ?? document_.body));
  const wide = [...document_.querySelectorAll("body *")].filter(
    (one) => !one.closest("svg g, svg defs") && right(one) > edge(one) + 1);
  const seen = {{ width: document_.documentElement.scrollWidth, beyond: wide.map((one) => one.outerHTML.slice(0, 120)),
    ground: window_.getComputedStyle(document_.body).backgroundColor, found }};
  const out = document.createElement("pre");
  out.id = "seen";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
}});
</script>"""


@dataclass(frozen=True)
class Seen:
    """What a browser made of a page.

    Attributes:
        width: that the page takes, in pixels.
        beyond: elements that reach beyond the right edge of the page or of their section.
        ground: colour of the page's background.
        found: what the script returned.
        console: lines that the page logged, errors among them.
    """

    width: int
    beyond: list[str]
    ground: str
    found: Any
    console: list[str]


def chromium() -> str:
    """The browser's command; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"there is no Chromium (looked for {', '.join(NAMES)})")
    return found


def look(page: str, folder: Path, *, width: int = 1280, dark: bool = False, script: str = "return null;") -> Seen:
    """Open a page in a frame of some width, without a network.

    Args:
        page: its HTML.
        folder: for files of the browser.
        width: in pixels.
        dark: whether the reader prefers dark colours.
        script: body of a function of the page's document and window, run first; what it returns is handed back.
    """
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(width=width, page=html.escape(page), script=script), encoding="utf-8")
    options = [
        *OPTIONS,
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={max(width, 500)},1000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--virtual-time-budget=4000",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        "--dump-dom",
    ]
    ended = subprocess.run(
        [chromium(), *options, frame.as_uri()], capture_output=True, text=True, check=False, timeout=120
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', ended.stdout, flags=re.S)
    assert found is not None, ended.stderr
    console = [line for line in ended.stderr.splitlines() if ":CONSOLE" in line]
    return Seen(**json.loads(html.unescape(found[1])), console=console)
