"""The notebooks of the documentation run as they are, on a tiny model in place of the one in their first cell."""

import json
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))
MOST_BYTES = 10_000


def cells(path: Path) -> list[tuple[str, list[str]]]:
    """Source and tags of the cells of code."""
    tree = json.loads(path.read_text(encoding="utf-8"))
    assert tree["nbformat"] == 4
    code = [cell for cell in tree["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in code), "outputs are large and go out of date"
    return [("".join(cell["source"]), cell["metadata"].get("tags", [])) for cell in code]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tiny_llama, tiny_text_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert path.stat().st_size < MOST_BYTES
    tiny = {
        "MODEL": str(tiny_llama),
        "TEXT": str(tiny_text_file),
        "SETTINGS": list(SETTINGS),
        "SIZES": "80%,60%",
        "RECIPE": None,
        "DEVICE": "cpu",
        "TOKENS": 256,
    }
    names: dict[str, object] = {"__name__": "notebook"}
    ran = 0
    for source, tags in cells(path):
        code = compile(source, path.name, "exec")
        if "needs-gpu" in tags and not torch.cuda.is_available():
            continue
        exec(code, names)
        ran += 1
        if "parameters" in tags:
            assert ran == 1, "the first cell has what people change"
            names |= {name: value for name, value in tiny.items() if name in names}
    assert ran >= 2
    printed = capsys.readouterr().out
    for words in SAID[path.stem]:
        assert words in printed
    for page in PAGES[path.stem]:
        assert "<h1>" in (tmp_path / "runs" / page).read_text(encoding="utf-8")


SAID = {
    "quickstart": ("perplexity", "report.html", "block  0"),
    "choosing-a-size": ("dense", "keep-60"),
    "one-gpu": ("parameters", "before,"),
}
PAGES = {
    "quickstart": ("quick/report.html",),
    "choosing-a-size": ("sizes/index.html", "sizes/keep-80/report.html"),
    "one-gpu": ("gpu/report.html", "gpu-recovered/report.html"),
}
