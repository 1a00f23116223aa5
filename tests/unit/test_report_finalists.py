"""The finalists in the report: every rank and loss of the record, on the page and in the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from tests.tiny.summaries import Page, made, searched

from darwinlm.report.finalists import finalists_table, last_choice
from darwinlm.report.page import render_page


def finalist(before, after, loss, losses, proxy=None, agreement=None):
    return {
        "allocation": [1, 2],
        "kl_before": loss,
        "kl_after": losses,
        "agreement": agreement,
        "rank_before": before,
        "rank_after": after,
        "rank_proxy": proxy,
    }


TRAINED = {
    "chosen": 2,
    "candidates": [
        finalist(1, 2, 0.911, [0.712, 0.655]),
        finalist(2, 4, 0.923, [None]),
        finalist(3, 1, 0.934, [0.709, 0.641]),
        finalist(4, 3, 0.945, [0.733]),
    ],
}
PROXY = {
    "chosen": 1,
    "candidates": [finalist(1, None, 0.911, [], 2, 0.41231), finalist(2, None, 0.923, [], 1, 0.5)],
}


def summary_of(record):
    summary = searched()
    summary["search"]["finalists"] = record
    return made(summary)


def printed(record):
    console = Console(file=io.StringIO(), width=200)
    console.print(finalists_table(summary_of(record).search))
    return console.file.getvalue()


def test_ranks_and_losses_before_and_after_training():
    choice = last_choice(summary_of(TRAINED).search)
    assert choice.columns == (
        "rank before training",
        "KL before training",
        "rank after training",
        "KL after round 1",
        "KL after round 2",
    )
    assert choice.rows == (
        ("1", "0.911", "2", "0.712", "0.655"),
        ("2", "0.923", "4", "–", "–"),
        ("3", "0.934", "1", "0.709", "0.641"),
        ("4", "0.945", "3", "0.733", "–"),
    )
    assert choice.words == (
        "The 4 best allocations were trained for 2 rounds; the one taken had rank 3 before. The first before training "
        "came out with rank 2."
    )


def test_ranks_by_gradient_agreement():
    choice = last_choice(summary_of(PROXY).search)
    assert choice.columns[2:] == ("rank by gradient agreement", "gradient agreement")
    assert choice.rows == (("1", "0.911", "2", "0.4123"), ("2", "0.923", "1", "0.5000"))
    assert "ranked by the agreement of their gradients; the one taken had rank 2 before" in choice.words


@pytest.mark.parametrize("record", [TRAINED, PROXY], ids=["trained", "proxy"])
def test_page_and_terminal_show_all_of_it(record):
    choice, html, terminal = last_choice(summary_of(record).search), render_page(summary_of(record)), printed(record)
    text = Page(html).text
    assert choice.words in text
    assert " ".join(choice.columns) in text
    for cells in choice.rows:
        assert " ".join(cells) in text
        assert any(line.split() == list(cells) for line in terminal.splitlines())
    taken = html[html.index("The last choice") :]
    taken = taken[taken.index('<tr class="final">') :]
    assert Page(taken[: taken.index("</tr>") + 5]).text == " ".join(choice.rows[choice.chosen])


def test_one_finalist_is_no_choice():
    record = {"chosen": 0, "candidates": [finalist(1, None, 0.911, [])]}
    assert "nothing to choose" in Page(render_page(summary_of(record))).text


@pytest.mark.parametrize("search", [None, made(searched()).search])
def test_without_finalists_nothing_is_shown(search):
    assert last_choice(search) is None
    assert finalists_table(search) is None
    assert "The last choice" not in render_page(made(searched()))
