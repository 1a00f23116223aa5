"""A headless Chromium that opens pages as a reader does, and tells what it sees there."""

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DARK, LIGHT = 0, 1
OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    *(["--no-sandbox"] if os.geteuid() == 0 else []),
)

FRAME = """<!DOCTYPE html><html><body style="margin:0">
<iframe id="page" style="border:0;width:{width}px;height:{height}px" srcdoc="{page}"></iframe>
<script>
addEventListener("load", () => {{
  const page = document.getElementById("page").contentDocument;
  const wide = {width} + 1;
  const seen = [...page.body.querySelectorAll("*")].filter(each => each.getClientRects().length);
  const place = each => each.getBoundingClientRect();
  const outside = seen.filter(each => place(each).right > wide || place(each).left < -1);
  const cut = [];
  for (const chart of page.querySelectorAll("figure svg")) {{
    const frame = place(chart);
    for (const text of chart.querySelectorAll("text")) {{
      const its = place(text);
      if (its.left < frame.left - 2 || its.right > frame.right + 2 || its.top < frame.top - 2
          || its.bottom > frame.bottom + 2) cut.push(text.textContent);
    }}
  }}
  const sizes = [...page.querySelectorAll("figure svg text")].map(each => {{
    const chart = each.closest("svg");
    return parseFloat(getComputedStyle(each).fontSize) * place(chart).width / chart.viewBox.baseVal.width;
  }});
  const told = {{
    outside: outside.map(each => each.tagName + " " + each.className),
    cut, charts: page.querySelectorAll("figure svg").length, height: page.documentElement.scrollHeight,
    smallest: sizes.length ? Math.min(...sizes) : null,
    ground: getComputedStyle(page.body).backgroundColor,
    ink: [...page.querySelectorAll("figure svg text")].map(each => getComputedStyle(each).fill)[0] || null,
  }};
  const words = document.createElement("pre");
  words.id = "told";
  words.textContent = JSON.stringify(told);
  document.body.append(words);
}});
</script></body></html>
"""


@dataclass
class Seen:
    """What a browser says of a page: its errors, elements that leave it, cut texts, and a screenshot as PNG."""

    console: list[str]
    told: dict
    picture: bytes


class Browser:
    """Opens pages, each with a fresh profile."""

    def __init__(self, program: str) -> None:
        self.program = program

    @classmethod
    def found(cls) -> "Browser | None":
        program = next(filter(None, map(shutil.which, BROWSERS)), None)
        return None if program is None else cls(program)

    def run(self, folder: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
        """Open a page with more options."""
        words = [self.program, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
        return subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)

    def open(self, page: str, *, width: int, scheme: int, height: int = 3000) -> Seen:
        """Open a page in a window of this width: Chromium's own windows are at least 500 wide, so it is a frame."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source = folder / "page.html"
            source.write_text(FRAME.format(width=width, height=height, page=html.escape(page)), encoding="utf-8")
            picture = folder / "page.png"
            colours = f"--blink-settings=preferredColorScheme={scheme}"
            size = f"--window-size={max(width, 500)},{height}"
            dumped = self.run(folder, source, colours, size, "--dump-dom", f"--screenshot={picture}")
            found = re.search(r'<pre id="told">(.*?)</pre>', dumped.stdout, flags=re.S)
            assert found is not None, dumped.stdout[-500:]
            console = [line for line in dumped.stderr.splitlines() if "CONSOLE" in line]
            return Seen(console, json.loads(html.unescape(found[1])), picture.read_bytes())

    def print(self, page: str) -> bytes:
        """The page as PDF."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            source, printed = folder / "page.html", folder / "page.pdf"
            source.write_text(page, encoding="utf-8")
            self.run(folder, source, f"--print-to-pdf={printed}", "--no-pdf-header-footer")
            return printed.read_bytes()
