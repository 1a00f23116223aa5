"""What the page adds to the tables: commands; and the page of a sweep."""

import pytest
from tests.tiny.summaries import SUMMARIES, Page, changed, made, recovered, searched, text_of
from tests.unit.test_docs import parse

from darwinlm.report.page import render_page
from darwinlm.report.sweep import SweepSummary, sweep_page
from darwinlm.report.usage import next_steps


@pytest.mark.parametrize("name", SUMMARIES)
def test_commands_are_ones_that_the_program_takes(name):
    summary = made(SUMMARIES[name]())
    steps = next_steps(summary, ".", "../smaller", summary.model)
    text = Page(render_page(summary)).text
    for _, line in steps:
        assert line in text
        if not line.startswith("hf upload"):
            parse(line)
    trains = [line for _, line in steps if line.startswith("darwinlm recover")]
    assert len(trains) == (summary.recovery is None)
    pruned = summary.budget is not None and summary.vocabulary is None
    large = pruned and summary.dense.block_params < 0.8 * summary.dense.params
    assert any("--vocab" in line for _, line in steps) == large


def swept(second_kl, second_params=80_000_000):
    large, small = searched(), recovered()
    for tree, params, kl in ((large, 110_000_000, 0.6), (small, second_params, second_kl)):
        list(tree["models"].values())[-1].update(params=params, kl=kl)
    runs = [("keep-75", made(large)), ("keep-50", made(small))]
    sweep = SweepSummary.of(runs)
    return sweep, sweep_page(sweep, runs[0][1])


def test_the_page_of_a_sweep_links_to_each_size():
    sweep, html = swept(1.2)
    page = Page(html)
    assert [link for link in page.links if "report" in link] == ["keep-75/report.html", "keep-50/report.html"]
    assert page.resources == []
    assert "SmolLM2-135M in 2 smaller sizes" in page.text
    for row in sweep.rows:
        assert row.name in page.text
        assert f"{row.params / 1e6:.1f} M" in page.text
    assert "65,536" not in page.text
    assert "16,384 tokens (17 documents) of hf:HuggingFaceFW/fineweb-edu" in page.text


def test_a_gguf_file_that_came_in_is_followed_by_a_smaller_one():
    sizes = {"q8_0": 128_000_000, "q4_k_m": 97_000_000, "q4_0": 83_000_000}
    file = {"bytes": 98_000_000, "predicted": sizes, "dense": {**sizes, "q4_0": 91_000_000}}
    tree = changed(searched(), file=file)
    summary = made(tree)
    ((wish, _),) = [each for each in next_steps(summary, ".", "../smaller", None) if "--quant q4_k_m" in each[1]]
    assert "darwinlm[gguf]" in wish
    text = text_of(tree)
    assert "dense 128 MB 97 MB 91 MB" in text
