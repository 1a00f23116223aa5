"""Write the index of the lab notebook from the headings of its pages.

    python tools/notebook.py

`--check` writes nothing and fails if the index is out of date.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook"
PAGES = ("quality", "database", "search", "training", "experts", "looking-back", "speed", "reading")
HEAD = """# Lab notebook

Experiments, their results, and the decisions taken. Negative results are kept.

Unless an entry says otherwise: SmolLM2-135M-Instruct, half of the block parameters kept, BoolQ's Wikipedia passages,
two processor cores, one seed. KL is KL(dense ‖ smaller) in nats per token. "Held out" is text that no stage uses.
Headline figures are in [results](../results.md).
"""


def index() -> str:
    """The index, a list for each page."""
    parts = [HEAD]
    for name in PAGES:
        page = NOTEBOOK / f"{name}.md"
        if page.exists():
            text = page.read_text(encoding="utf-8")
            title = text.partition("\n")[0].removeprefix("# Notebook: ")
            rows = [f"- [{entry}]({name}.md#{anchor(entry)})" for entry in re.findall(r"^## (.*)$", text, flags=re.M)]
            parts.append(f"## [{title[0].upper()}{title[1:]}]({name}.md)\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def anchor(title: str) -> str:
    """The fragment that Markdown viewers give a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--check", action="store_true")
    path, text = NOTEBOOK / "README.md", index()
    if not parser.parse_args().check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit("error: docs/notebook/README.md is out of date: run python tools/notebook.py")


if __name__ == "__main__":
    main()
