"""Losses that the database estimates: what they say, and what the search makes of them."""

import io

import pytest
from rich.console import Console
from tests.tiny.searching import searched

from darwinlm.runtime.artifact import read_tensors
from darwinlm.runtime.console import Reporter
from darwinlm.search.module_losses import estimated_losses, local_errors

PLAIN = "database.metric=output"


@pytest.fixture(scope="module")
def estimated(tiny_llama, make_run, finished_llama):
    return searched(make_run(tiny_llama, finished_llama))


def test_what_is_gone_costs_the_whole_output_weighted_by_the_gradients(estimated):
    """tr(S W H Wᵀ) / 2, H from the factor that is stored."""
    database = estimated.database
    reader = database.reader
    for block in (0, 2):
        gradients = read_tensors(database.stage.folder.parent / "gradients" / f"block_{block:04d}.safetensors")
        for kind in ("attention", "mlp"):
            module = next(m for m in estimated.plan.space.modules if (m.block, m.kind) == (block, kind))
            last = reader.variant(block, kind, module.levels[-1])
            (factors,) = reader.factors(block, kind, last)
            T, S = factors.target.double(), gradients[kind].double()
            expected = float((T.T @ S @ T).trace()) / 2
            assert reader.loss(block, kind, module.levels[0]) == pytest.approx(expected, rel=1e-4)


def test_local_errors_stand_for_estimates_that_are_missing(tiny_llama, make_run, tmp_path):
    said = Console(record=True, file=io.StringIO(), width=200)
    found = searched(make_run(tiny_llama, tmp_path / "out", PLAIN, reporter=Reporter(said)))
    space, reader = found.plan.space, found.database.reader
    assert estimated_losses(space, reader) is None
    assert all(any(error > 0 for error in row) for row in local_errors(space, reader))
    assert (
        "the database has no estimated losses (database.metric=loss has), so local errors are used"
        in said.export_text()
    )
    assert found.search.record["kl"] <= found.search.record["start_kl"]
