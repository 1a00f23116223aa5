"""Take the picture of a report in a headless Chromium, and draw that of its blocks, from the summary of a run.

They were made of a 135M model with half of its block parameters:

    python tools/report_picture.py runs/half --out docs/report.png --blocks docs/blocks.svg
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from darwinlm.report.page import render_page
from darwinlm.report.pictures.blocks import blocks_picture
from darwinlm.report.pictures.vector import stand_alone
from darwinlm.runs.finished import read_summary

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def take(page: str, out: Path, width: int, height: int) -> None:
    """Save the top of a page as PNG, in light colours."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"error: there is no Chromium (looked for {', '.join(BROWSERS)}): install one")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "page.html"
        source.write_text(page, encoding="utf-8")
        options = [
            "--headless",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
            f"--window-size={width},{height}",
            "--blink-settings=preferredColorScheme=1",
            f"--screenshot={out.resolve()}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]
        command = [browser, *options, source.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)  # noqa: S603 - our own options


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--blocks", type=Path, default=Path("docs/blocks.svg"))
    parser.add_argument("--size", default="1000x1640", help="width x height in pixels")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    summary = read_summary(options.run / "summary.json")
    take(render_page(summary), options.out, width, height)
    if (picture := blocks_picture(summary.allocation)) is not None:
        options.blocks.write_text(stand_alone(picture), encoding="utf-8")


if __name__ == "__main__":
    main()
