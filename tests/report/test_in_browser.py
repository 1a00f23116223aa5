"""Pages in a real browser: at two widths, light and dark, without a complaint, an element outside or a text cut off."""

import pytest
from tests.report.browser import DARK, LIGHT, Browser
from tests.report.test_report_page import swept
from tests.tiny.summaries import made, measured, pictured

from darwinlm.report.page import render_page

WHITE, BLACK = 255, 0


@pytest.fixture(scope="module")
def browser() -> Browser:
    return Browser.found() or pytest.skip("there is no Chromium here")


PAGES = {
    "run": lambda: render_page(made(measured(pictured()))),
    "many blocks": lambda: render_page(made(pictured(blocks=96))),
    "sweep": lambda: swept(1.2)[1],
}
CHARTS = {"run": 8, "many blocks": 8, "sweep": 1}


def brightness(colour: str) -> float:
    """Of rgb(r, g, b), from 0 to 255."""
    return sum(map(float, colour.partition("(")[2].rstrip(")").split(",")[:3])) / 3


@pytest.mark.parametrize("scheme", [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_whole(browser: Browser, name: str, width: int, scheme: int) -> None:
    seen = browser.open(PAGES[name](), width=width, scheme=scheme)
    assert seen.console == []
    assert seen.told["outside"] == []
    assert seen.told["cut"] == []
    assert seen.told["charts"] == CHARTS[name]
    assert seen.told["smallest"] >= 9.5, "letters that can be read"
    dark = brightness(seen.told["ground"]) < 128
    assert dark == (scheme == DARK)
    assert (brightness(seen.told["ink"]) > 128) == dark, "charts have the colours of the page"
    assert len(seen.picture) > 20_000, "there is something on it"


def test_what_the_browser_tells_is_noticed(browser: Browser) -> None:
    bad = '<body><div style="width:900px">wide</div><figure><svg viewBox="0 0 100 50"><text x="95">long</text></svg>'
    bad += '</figure><img src="http://127.0.0.1:9/x.png"><script>console.error("complaint"); nothing()</script></body>'
    seen = browser.open(bad, width=400, scheme=LIGHT)
    assert any("complaint" in line for line in seen.console)
    assert any("nothing is not defined" in line for line in seen.console)
    assert any(name.startswith("DIV") for name in seen.told["outside"])
    assert seen.told["cut"] == ["long"]


def test_a_page_is_printed(browser: Browser) -> None:
    printed = browser.print(PAGES["run"]())
    assert printed.startswith(b"%PDF")
    pages = printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ")
    assert 2 <= pages <= 8
