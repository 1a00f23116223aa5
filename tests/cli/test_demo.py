"""The screen at the end of the demo; its run is tested on the real model in `tests/real`."""

import io
from pathlib import Path

import pytest
from rich.console import Console
from tests.tiny.summaries import made, recovered

from darwinlm.cli import demo


def test_one_screen_has_sizes_the_loss_answers_and_next_steps() -> None:
    tree = recovered()
    tree.update(prompts=["Which river?", "Which sea?", "Which town?"], chat=True)
    for model in tree["models"].values():
        model["continuations"] = ["The Rhine, " * 40, "The North Sea.", "Bonn."]
    said = io.StringIO()
    demo._screen(Console(file=said, width=200, highlight=False), made(tree), Path("runs/demo"))
    lines = said.getvalue().splitlines()
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120
    text = "\n".join(lines)
    for part in (
        "sizes searched for 1 generation, then trained on",
        "parameters",
        "KL ",
        " if all layers are cut alike",
        "original    The North Sea.",
        "smaller     Bonn.",
        " …",
        "all figures; page: report.html",
        "darwinlm recover runs/demo --tokens 1M --text TEXT",  # the demo's own text is too short to train on
    ):
        assert part in text
    assert "tokens/s" not in text, "no speeds: two models of this size differ by less than the runs"
    assert "perplexity" not in text


@pytest.mark.parametrize(
    ("recovery", "said"),
    [
        (None, "; not trained"),
        ({"tokens": 0}, "; not trained"),
        ({"kept": "before"}, "; training on 24,576 tokens made it no better, so it was left out"),
        ({}, ", then trained on 24,576 tokens"),
    ],
)
def test_the_screen_says_what_was_done(recovery: dict[str, object] | None, said: str) -> None:
    tree = recovered()
    tree["recovery"] = None if recovery is None else tree["recovery"] | recovery
    assert demo._done(made(tree)) == f"sizes searched for 1 generation{said}"
