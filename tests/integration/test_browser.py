"""The pages in a real browser: nothing cut, nothing wider than the screen, no errors, and scripts that work."""

from pathlib import Path

import pytest
from tests.tiny.browser import look
from tests.tiny.summaries import made, measured, recovered

from darwinlm.report.page import render_page

OPEN = "document.querySelectorAll('details').forEach((one) => { one.open = true; });"
COPY = """
const found = [document.querySelectorAll(".copy button").length];
const button = document.querySelector(".copy button");
const press = async (clipboard, command) => {
  Object.defineProperty(window.navigator, "clipboard", { value: clipboard, configurable: true });
  document.execCommand = command;
  button.click();
  await new Promise((done) => setTimeout(done, 100));
  found.push(button.textContent);
};
await press({ writeText: async (text) => { found.push(text); } }, () => false);
await press(undefined, () => { found.push(String(window.getSelection())); return true; });
await press(undefined, () => false);
return found;
"""
"""A browser without a reader lends no clipboard: these stand for one that works, the older way, and neither."""


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (768, True), (360, False)])
def test_the_page_of_a_run(tmp_path: Path, width: int, dark: bool) -> None:
    seen = look(render_page(made(measured(recovered()))), tmp_path, width=width, dark=dark, script=OPEN + COPY)
    assert seen.width == width
    assert seen.beyond == []
    assert seen.console == []
    assert seen.ground == ("rgb(20, 23, 28)" if dark else "rgb(246, 247, 249)")
    first = "darwinlm chat . --against HuggingFaceTB/SmolLM2-135M"
    assert seen.found == [5, first, "Copied", first, "Copied", "Press Ctrl+C"]
