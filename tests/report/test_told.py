"""What a step tells is on the page, the card and the terminal, and the runner collects it."""

import io
from dataclasses import dataclass
from typing import ClassVar

import pytest
from rich.console import Console
from tests.tiny.summaries import Page, searched, without

from darwinlm.cli.show import _show_figures
from darwinlm.recipe import Recipe
from darwinlm.report import wording
from darwinlm.report.card import model_card
from darwinlm.report.page import render_page
from darwinlm.report.summary import KINDS, Summary
from darwinlm.runs.finished import FIGURES
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.figures import Passage, StepFigures
from darwinlm.runtime.run import Run
from darwinlm.runtime.step import Step
from darwinlm.runtime.tables import Table


class ScaledFigures(StepFigures):
    """A correction that no report knows."""

    heading: ClassVar[str] = "Scaled & sound"
    factor: float

    @property
    def label(self):
        return "scaled"

    def lines(self):
        return (("scale", f"norms times {self.factor}"),)

    def note(self):
        return "A note on <scales>."

    def passages(self, name):
        table = Table(("model", "factor"), [(name("stitched"), "1.5")], ["Factors | of norms."], final=True)
        return (Passage("Factors of norms", "Of <all> norms.", (table,)),)

    def account(self):
        return ("The last norm was scaled.", "Nothing else was.")

    def card(self):
        return "The last norm was *then* scaled."

    def expectation(self):
        return "Expect larger numbers."


@pytest.fixture
def summary():
    tree = searched()
    tree["steps"]["scaled"] = {"factor": 1.5}
    return Summary.model_validate(tree, context={KINDS: FIGURES | {"scaled": ScaledFigures}})


def test_the_page_tells_it(summary):
    text = Page(render_page(summary)).text
    for words in (
        "searched + refit + scaled",
        "Scaled & sound",
        "The last norm was scaled.",
        "Nothing else was.",
        "A note on <scales>.",
        "Factors of norms",
        "Of <all> norms.",
        "Factors | of norms.",
        "Expect larger numbers.",
    ):
        assert words in text, words


def test_the_card_tells_it(summary):
    card = model_card(summary)
    for words in (
        "| **searched + refit + scaled** |",
        "- scale: norms times 1.5",
        "The last norm was \\*then\\* scaled.",
        "### Factors of norms",
        "Of \\<all\\> norms.",
        "| **searched** | **1.5** |",
        "Factors \\| of norms.",
        "- Expect larger numbers.",
    ):
        assert words in card, words


def test_the_terminal_tells_it(summary):
    console = Console(file=io.StringIO(), width=120, markup=False)
    _show_figures(console, summary)
    for words in ("Of <all> norms.", "Factors | of norms.", "searched + refit + scaled: "):
        assert words in console.file.getvalue(), words
    assert ("scale", "norms times 1.5") in wording.gains(summary)


def test_what_it_tells_is_read_back(summary):
    tree = summary.as_json()
    assert tree["steps"]["scaled"] == {"factor": 1.5}
    assert Summary.model_validate(tree, context={KINDS: FIGURES | {"scaled": ScaledFigures}}) == summary
    assert summary.of(ScaledFigures).factor == 1.5


def test_a_model_is_named_after_the_steps_that_are_known():
    tree = without(searched(), "search", "refit")
    tree["steps"]["scaled"] = {"factor": 1.0}
    summary = Summary.model_validate(tree, context={KINDS: FIGURES | {"scaled": ScaledFigures}})
    assert [summary.name(key) for key in summary.models] == ["dense", "uniform", "pruned", "pruned + scaled"]


@dataclass(frozen=True, eq=False)
class Scaled(Step[float]):
    """A step whose result is its factor."""

    name = "scaled"
    Figures = ScaledFigures
    text_use = (("calibration", "the scale"), ("validation", "its choice"))

    factor: float

    def work(self, task):
        (task.folder / "factor").write_text(str(self.factor))

    def read(self, task):
        return float((task.folder / "factor").read_text())

    def figures(self, task, result):
        return ScaledFigures(factor=result) if result else None


@dataclass(frozen=True, eq=False)
class Silent(Scaled):
    """A step that reads the same text and tells nothing."""

    name = "silent"
    text_use = (("calibration", "a second look"),)

    def figures(self, task, result):
        return None


def test_a_run_collects_what_its_steps_tell(tmp_path):
    recipe = Recipe(model="unused")
    whole = Run(recipe, tmp_path / "whole", Reporter(quiet=True))
    whole(Scaled(1.5))
    size = Run(recipe, tmp_path / "size", Reporter(quiet=True), parent=whole)
    size(Silent(2.0))
    assert size.figures == {"scaled": ScaledFigures(factor=1.5)}
    assert size.text_use == {"calibration": ("the scale", "a second look"), "validation": ("its choice",)}
    assert whole.text_use == {"calibration": ("the scale",), "validation": ("its choice",)}
    size(Scaled(2.5))
    assert size.figures == {"scaled": ScaledFigures(factor=2.5)}, "its own replace those of the whole sweep"
    size(Scaled(0.0))
    assert size.figures == {"scaled": ScaledFigures(factor=2.5)}
