"""A vocabulary whose size follows from the budget for the whole model."""

import pytest
import torch
from tests.tiny.checkpoint import SETTINGS
from tests.tiny.stages import run_stages
from tests.tiny.vocabulary import wordy_checkpoint
from transformers import AutoModelForCausalLM

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import plan_card
from darwinlm.recipe import load_recipe, parse_recipe
from darwinlm.report.summary import FILE
from darwinlm.runs.finished import read_summary
from darwinlm.runs.pruning import Result
from darwinlm.runs.sweep import prune_sweep
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import BudgetError, RecipeError
from darwinlm.steps.budget.search_problem import params_per_token
from darwinlm.steps.fitted_vocabulary.scan import FewerTokens
from darwinlm.steps.fitted_vocabulary.vocabulary_sizes import Sizes
from darwinlm.steps.latency.timing import ModelTimer, Timing
from darwinlm.steps.run_sizes import RunSizes
from darwinlm.steps.vocabulary.token_choice import ModelTokens
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A model with a head of its own. It is shared: don't write into it."""
    return wordy_checkpoint(tmp_path_factory.mktemp("wordy") / "model")


def params(folder):
    return sum(weight.numel() for weight in Checkpoint.open(folder).skeleton().parameters())


@pytest.fixture(scope="module")
def finished(dense, make_run, tmp_path_factory):
    """A finished run. It is shared: don't write into it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    run = make_run(dense, out, "vocabulary=auto", f"budget.params={int(0.75 * params(dense))}", keep=None)
    run_stages(run, "report")
    return out


def sizes_of(folder, **budget):
    """The sizes of the vocabulary at a budget, without checks of the text."""
    settings = {"model": str(folder), "vocabulary": "auto", "budget": budget, "text": {"source": "text.txt"}}
    recipe = parse_recipe({**settings, "units": {"mlp_multiple": 8}}, "here")
    checkpoint = Checkpoint.open(folder)
    return Sizes.of(recipe, checkpoint, ModelTokens.of(checkpoint))


def test_the_best_of_the_tried_sizes_is_cut(dense, finished):
    summary = read_summary(finished / FILE)
    figures = summary.of(VocabularyFigures)
    sizes = [size.tokens for size in figures.tried]
    assert sizes == sorted(set(sizes))
    assert len(sizes) >= 3
    assert figures.tokens == min(figures.tried, key=lambda size: size.bits_per_byte).tokens
    shares = [size.kept_blocks for size in figures.tried]
    assert shares == sorted(shares, reverse=True)
    made = AutoModelForCausalLM.from_pretrained(finished / "model", trust_remote_code=True)
    count = sum(weight.numel() for weight in made.parameters())
    assert 0.95 * summary.budget.upper <= summary.budget.used == count <= int(0.75 * params(dense))
    assert made.config.vocab_size == figures.tokens
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert f"{figures.tokens:,} (chosen)" in page
    assert "need the fewest bits per byte" in page
    (picture,) = figures.pictures()
    curve, level = picture.charts[0].marks
    assert curve.xs == tuple(sizes)
    assert curve.labels[sizes.index(figures.tokens)] == "chosen"
    assert level.y == figures.whole_bits_per_byte
    assert picture.charts[0].title in page


def test_blocks_that_all_fit_are_kept_without_search_and_refit(dense, make_run, tmp_path):
    small = params(dense) - (512 - 320) * params_per_token(Checkpoint.open(dense))
    out = tmp_path / "out"
    run = make_run(dense, out, "vocabulary=320", f"budget.params={small}", "refit.tokens=512", keep=None)
    assert RunSizes(Checkpoint.open(dense), run.recipe).whole
    rows = plan_card(STEPS, RunSizes(Checkpoint.open(dense), run.recipe), "h100").rows
    assert not {"search", "refit"} & {row.step for row in rows}
    stages = run_stages(run, "report")
    assert stages.search.record["evaluations"] == 0
    assert not (out / "stages" / "refit").exists()
    summary, result = read_summary(out / FILE), Result(out)
    assert list(summary.models) == ["dense", "stitched"]
    assert summary.saved.params == small
    figures = summary.of(VocabularyFigures)
    assert figures.bits_per_byte > figures.dense_bits_per_byte
    lost = f"{figures.bits_per_byte:.3f} bits per byte of held-out text instead of {figures.dense_bits_per_byte:.3f}"
    assert result.loss.startswith(lost)
    assert result.loss.endswith("since all blocks are kept")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"It needs {lost}" in page
    assert "nothing was searched or refitted" in page
    assert lost in (out / "model" / "README.md").read_text(encoding="utf-8")
    assert [*result.models] == ["dense", "fewer tokens"]


def test_a_plan_has_the_step(dense):
    recipe = sizes_of(dense, params=params(dense) // 2).recipe
    rows = plan_card(STEPS, RunSizes(Checkpoint.open(dense), recipe), "h100").rows
    (cost,) = [row.cost for row in rows if row.step == "fitted_vocabulary"]
    assert cost.operations > 0
    assert cost.bytes > 0


def test_costs_are_those_of_the_model_with_fewer_tokens(dense, finished):
    small = finished / "stages" / "fitted_vocabulary" / "model"
    tokens = Checkpoint.open(small).config.vocab_size
    for budget in ({"params": params(dense) // 2}, {"bytes": 2_000_000}):
        predicted = sizes_of(dense, **budget).problem(tokens)
        real = sizes_of(small, **budget)
        assert predicted.cost == real.problem(real.most).cost


def test_the_smallest_size_leaves_the_blocks_whole(dense):
    per_token = params_per_token(Checkpoint.open(dense))
    sizes = sizes_of(dense, params=params(dense) - (512 - 400) * per_token)
    smallest = sizes.smallest()
    assert smallest == 384 > sizes.least
    assert sizes.leaves_blocks_whole(smallest)
    assert not sizes.leaves_blocks_whole(smallest + 64)
    assert sizes.first()[0] == smallest
    assert sizes.first()[-1] == sizes.most
    assert sizes.between([320, 384, 433], 384) == []
    assert sizes_of(dense, params=params(dense) // 2).smallest() == sizes.least


def seconds_of(sizes, tokens):
    """A machine on which the times of modules and of the head's tokens add up."""
    return 0.2 + tokens / 512 + sum(0.01 * module.heads + 0.01 * module.width for module in sizes.values())


@pytest.mark.parametrize("vocabulary", ["auto", "320"])
def test_the_head_counts_in_a_budget_in_time(dense, make_run, tmp_path, monkeypatch, vocabulary):
    def compare(self, whole, modules, tokens):
        seconds = seconds_of(whole, self.rows)
        return Timing(seconds_of(modules, tokens) / seconds, seconds)

    monkeypatch.setattr(ModelTimer, "compare", compare)
    settings = (f"vocabulary={vocabulary}", "budget.speedup=1.6", "text.evaluation_tokens=2048")
    run = make_run(dense, tmp_path / "out", *settings, keep=None)
    stages = run_stages(run, "search")
    figures, space = stages.vocabulary.figures, stages.plan.space
    whole = seconds_of(space.sizes(space.dense), stages.original.config.vocab_size)
    reached = seconds_of(space.sizes(stages.search.allocation), figures.tokens) * figures.growth
    assert whole / reached == pytest.approx(1.6, rel=0.03)
    if vocabulary == "auto":
        sizes = [(size.tokens, size.growth) for size in figures.tried]
        assert sizes == sorted(sizes, key=lambda size: -size[1]), "fewer tokens, longer text"
        assert sizes[0][1] > 1 == sizes[-1][1]
    else:
        assert (figures.tokens, figures.growth) == (320, 1 + figures.longer)


def test_budgets_out_of_reach_are_refused(dense):
    with pytest.raises(BudgetError, match="more than the whole model: there is nothing to prune"):
        sizes_of(dense, params=2 * params(dense)).smallest()
    with pytest.raises(BudgetError, match="less than the smallest model that the units allow"):
        sizes_of(dense, params=1000).smallest()


def test_plans_count_the_budget(dense):
    sizes = RunSizes(Checkpoint.open(dense), sizes_of(dense, params=params(dense) // 2).recipe)
    assert sizes.saved_params == pytest.approx(params(dense) // 2, rel=0.01)


def test_removed_tokens_are_never_predicted(dense):
    checkpoint, tokens = Checkpoint.open(dense), torch.arange(8)[None]
    decoder = FewerTokens(checkpoint, tokens, dtype=torch.float32, device=torch.device("cpu"))
    decoder.removed = torch.tensor([9, 11])
    (hidden,) = decoder.through([tokens])
    with decoder.with_head():
        probabilities = decoder.head(hidden[0]).softmax(-1)
    whole = AutoModelForCausalLM.from_pretrained(dense)(tokens).logits[0].softmax(-1)
    whole[:, [9, 11]] = 0
    torch.testing.assert_close(probabilities, whole / whole.sum(-1, keepdim=True))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": {"keep": 0.5}}, "vocabulary is auto, but the budget is keep.*give params, .* or latency"),
        ({"text": {"source": "self"}}, "vocabulary is auto, but no text is given"),
        ({"vocabulary": {"keep": 0.5, "auto": True}}, "give either a number of tokens to keep, or auto"),
        ({"vocabulary": "automatic"}, "vocabulary.keep: must be a number with a unit"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    good = {"vocabulary": "auto", "budget": {"params": 1000}, "text": {"source": "text.txt"}}
    with pytest.raises(RecipeError, match=message):
        parse_recipe({**good, **settings}, "here")


def test_settings_are_written_and_read_again():
    recipe = parse_recipe({"vocabulary": "auto", "budget": {"params": 9}, "text": {"source": "a.txt"}}, "here")
    assert recipe.vocabulary.auto
    assert recipe.vocabulary.cut
    assert parse_recipe(recipe.model_dump(mode="json"), "here") == recipe


def test_sizes_of_a_sweep_share_the_database_and_have_their_own_vocabularies(dense, tiny_text_file, tmp_path):
    bounds = [params(dense) // 2, int(0.75 * params(dense))]
    given = ("vocabulary=auto", f"text.source={tiny_text_file}", f"model={dense}")
    recipes = [load_recipe(None, (*SETTINGS, *given, f"budget.params={bound}")) for bound in bounds]
    summaries = prune_sweep(recipes, tmp_path / "out", reporter=Reporter(quiet=True))
    assert [summary.budget.used for summary in summaries.values()] == sorted(
        (summary.saved.params for summary in summaries.values()), reverse=True
    )
    for summary, bound in zip(summaries.values(), reversed(bounds), strict=True):
        assert summary.saved.params <= bound
        assert len(summary.of(VocabularyFigures).tried) >= 3
    assert (tmp_path / "out" / "stages" / "database").is_dir()
    assert not [*(tmp_path / "out").glob("params-*/stages/database")]
