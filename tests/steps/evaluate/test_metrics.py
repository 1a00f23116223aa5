"""A metric is registered once, and every report has it."""

import io
import math
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from tests.tiny.summaries import Page, made, searched

from darwinlm.cli.show import _show_table
from darwinlm.report.card import model_card
from darwinlm.report.comparison import comparison, sweep_table
from darwinlm.report.page import render_page
from darwinlm.report.sweep_page import sweep_page
from darwinlm.runtime.errors import RecipeError
from darwinlm.steps.chats.chat_figures import AnswerFigures, ChatFigures
from darwinlm.steps.evaluate.metric import METRICS, Metric, Tile, TokenMetric, directions, register, size_metrics
from darwinlm.steps.evaluate.model_figures import ModelFigures
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.evaluate.step import Evaluate


@pytest.fixture
def top_five():
    """A metric that was added: the share of the dense model's five likeliest tokens among the model's five."""

    @register
    class TopFive(TokenMetric):
        name, heading = "top_five", "same top five"
        smaller_is_better = False
        next_token = False

        def of(self, predictions):
            dense = predictions.dense.distribution.probabilities.topk(5).indices
            model = predictions.logits.topk(5).indices
            return (dense[:, :, None] == model[:, None, :]).any(-1).float().mean(-1)

        def words(self, value):
            return "–" if value is None else f"{100 * value:.0f} of 100"

        def tile(self, saved, dense, uniform):
            return Tile("same top five", self.words(saved[self.name]), f"dense {self.words(dense[self.name])}")

    yield METRICS.find("top_five")
    METRICS.remove("top_five")


class Scores:
    """A model whose logits depend on the present token alone."""

    device = torch.device("cpu")

    def __init__(self, seed):
        self.logits = torch.randn(50, 50, generator=torch.Generator().manual_seed(seed))

    def __call__(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.logits[input_ids])


def test_a_new_metric_is_measured_with_the_others(top_five):
    tokens = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(2))
    dense, other = Scores(0), Scores(1)
    measured = measure_quality(dense, {"dense": dense, "other": other}, tokens, batch_tokens=7)
    shared = [
        len({*dense.logits[token].topk(5).indices.tolist()} & {*other.logits[token].topk(5).indices.tolist()}) / 5
        for token in tokens.flatten().tolist()
    ]
    assert measured["other"].values["top_five"] == pytest.approx(sum(shared) / len(shared))
    assert measured["dense"].values["top_five"] == 1
    assert {"perplexity", "kl", "agreement"} < measured["other"].values.keys()


def test_a_new_metric_is_on_the_page_the_card_and_the_terminal_and_in_sweeps(top_five):
    tree = searched()
    for number, model in enumerate(tree["models"].values()):
        model["metrics"]["top_five"] = 1 - 0.13 * number
    summary = made(tree)
    page, card = Page(render_page(summary)).text, model_card(summary)
    terminal = Console(file=io.StringIO(), width=200)
    _show_table(terminal, comparison(summary))
    sweep = Page(sweep_page({"keep-50": summary})).text
    for told in (page, card, terminal.file.getvalue(), sweep):
        assert "61 of 100" in told
        assert "five" in told
        speeds = "prompt speed, decode speed" if told is sweep else "prompt tokens/s, decode tokens/s"
        assert f"higher is better for {speeds} and same top five" in told
    assert page.count("61 of 100") == 2, "also as a tile"
    assert summary.as_json()["models"]["refit"]["metrics"]["top_five"] == pytest.approx(0.61)


def test_a_metric_that_compares_two_models_is_in_the_figures_of_chats(top_five):
    metrics = {"kl": 0.25, "agreement": 0.5, "top_five": 0.75}
    (table,) = ChatFigures(answers={"uniform": AnswerFigures(tokens=10, metrics=metrics)}).tables()
    assert dict(zip(table.headings, table.rows[0], strict=True)) == {
        "answers of the dense model": "uniform",
        "KL, nats per token": "0.250",
        "same next token": "50.0 %",
        "same top five": "75 of 100",
    }


def test_a_metric_that_is_not_registered_here_goes_by_its_name():
    tree = searched()
    tree["models"]["refit"]["metrics"]["surprise"] = 0.123456
    table = comparison(made(tree))
    assert table.headings[-1] == "surprise"
    assert [row[-1] for row in table.rows] == ["–", "–", "–", "0.1235"]


def test_other_metrics_give_another_evaluation(top_five, monkeypatch):
    step = Evaluate.__new__(Evaluate)
    object.__setattr__(step, "dense", SimpleNamespace(family=SimpleNamespace(ending="language"), answers=()))
    known = step.key(None)
    assert known["metrics"]["top_five"] == 1
    assert top_five in step.extensions
    monkeypatch.setattr(type(top_five), "version", 2)
    assert step.key(None) != known


def test_the_packages_metrics_keep_their_names():
    class Other(TokenMetric):
        name, heading = "kl", "something else"

        def of(self, predictions):
            return predictions.losses

    with pytest.raises(RecipeError, match="there is a metric 'kl' in darwinlm: choose another name"):
        register(Other)
    with pytest.raises(TypeError, match="a metric is a subclass of Metric"):
        METRICS.register("mine")(max)


def test_directions_are_said_in_a_sentence():
    def metric(heading, better):
        made = Metric()
        made.heading, made.smaller_is_better = heading, better
        return made

    assert directions([metric("size", None)]) == ""
    assert directions([metric("a, in nats", True)]) == "Lower is better for a."
    both = [metric("a", True), metric("b", True), metric("c", True), metric("d", False)]
    assert directions(both) == "Lower is better for a, b and c; higher is better for d."


def test_sizes_are_whole_numbers():
    sizes = {size.name: 3 for size in size_metrics()}
    figures = ModelFigures(metrics=sizes | {"kl": None})
    assert (figures.params, figures.block_params, figures.bytes, figures.kl, figures.perplexity) == (
        3,
        3,
        3,
        None,
        None,
    )
    for wrong in (sizes | {"params": 0.5}, {"params": 3}):
        with pytest.raises(ValueError, match="no whole number for "):
            ModelFigures(metrics=wrong)


@pytest.mark.parametrize("value", [None, 0.5, math.inf])
def test_every_metric_has_words_for_every_value(value):
    for metric in METRICS.all():
        assert metric.words(value)
        assert metric.cell(value, None)


def test_the_table_of_a_sweep_has_the_columns_of_a_run():
    summary = made(searched())
    sweep, run = sweep_table({"keep-50": summary}), comparison(summary)
    same = [place for place, heading in enumerate(run.headings) if not heading.endswith("tokens/s")][1:]
    assert len(sweep.headings) == len(run.headings) == len(same) + 3, "two of them are speeds"
    assert [sweep.headings[place] for place in same] == [run.headings[place] for place in same]
    for row, expected in zip(sweep.rows, (run.rows[0], run.rows[-1]), strict=True):
        assert [row[place] for place in same] == [expected[place] for place in same]
    assert [row[0] for row in sweep.rows] == ["dense", "keep-50"]
