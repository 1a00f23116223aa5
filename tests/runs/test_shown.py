"""What a finished run shows in Python: models, pictures, and itself in a notebook."""

import json
from pathlib import Path

import pytest
from tests.tiny.summaries import NASTY, given, pictured

from darwinlm.runs.pruning import Result
from darwinlm.runtime.errors import ArtifactError


def result_of(tree: dict[str, object], folder: Path) -> Result:
    (folder / "summary.json").write_text(json.dumps(tree), encoding="utf-8")
    return Result(folder)


def test_allocation_and_models(tmp_path: Path) -> None:
    result = result_of(pictured(), tmp_path)
    assert [entry.block for entry in result.allocation] == list(range(30))
    assert list(result.models) == ["dense", "uniform", "searched", "searched + refit + recovery"]
    assert result.models["uniform"].kl == 1.37


def test_pictures_are_figures_of_matplotlib(tmp_path: Path) -> None:
    result = result_of(pictured(), tmp_path)
    for plot, titles in (
        (result.plot_blocks, ["Attention kept in each block", "MLP kept in each block"]),
        (result.plot_search, ["KL of the best model so far", "Modules that a generation changed"]),
        (result.plot_training, ["Loss of the training", "KL on held-out text"]),
        (result.plot_models, ["KL by size (lower is better)", "Same next token by size (higher is better)"]),
    ):
        figure = plot()
        assert [axes.get_title(loc="left") for axes in figure.axes] == titles
        figure.savefig(tmp_path / "figure.png")
        assert (tmp_path / "figure.png").stat().st_size > 5000
        assert "<svg" in figure._repr_svg_()


def test_a_picture_that_a_run_does_not_have_is_refused(tmp_path: Path) -> None:
    result = result_of(given() | {"allocation": []}, tmp_path)
    with pytest.raises(ArtifactError, match="has no record of a search over generations"):
        result.plot_search()
    with pytest.raises(ArtifactError, match="has no figures of its blocks"):
        result.plot_blocks()


def test_a_result_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    result = result_of(pictured() | {"model": f"owner/{NASTY}"}, tmp_path)
    for html in (result._repr_html_(), result.summary._repr_html_()):
        assert "<script>" not in html
        assert "<svg" in html
        assert "prefers-color-scheme" not in html, "a notebook's theme isn't the window's"
        assert "<td>searched + refit + recovery</td>" in html
    assert str(tmp_path / "report.html") in result._repr_html_()


def test_an_unfinished_run_says_so_in_a_notebook(tmp_path: Path) -> None:
    assert "is not a run" in Result(tmp_path)._repr_html_()


def test_a_result_of_a_run(finished_llama: Path) -> None:
    result = Result(finished_llama)
    assert len(result.plot_blocks().axes) == 2
    assert len(result.plot_search().axes) == 2
    assert result.summary.saved == list(result.models.values())[-1]
    loaded = result._loaded
    assert result.generate("the river", max_tokens=5, temperature=0)
    assert result._loaded is loaded, "it is loaded once"
