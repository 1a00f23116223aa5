"""A removal metric of a user's own on a mixture: each expert keeps the channels that it says, with the best weights."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import result, run_stages

from darwinlm.model.walk.stream import stream_of
from darwinlm.steps.database.block_moments import stream_moments
from darwinlm.steps.database.order import damp_
from darwinlm.steps.database.removal_metrics import REMOVAL_METRICS, RemovalMetric

CHANNELS, EXPERTS, FIRST = 32, 4, 5


class FromAChannelOn(RemovalMetric):
    """Keeps units from one on, around the end; every expert begins `first` units after the one before it."""

    first: int = 1

    def order(
        self, moment: torch.Tensor, W: torch.Tensor, units: torch.Tensor, S: torch.Tensor | None, name: str
    ) -> torch.Tensor:
        """See `RemovalMetric.order`."""
        assert S is None, "it needs no gradients"
        _, _, expert = name.partition(" expert ")
        return torch.arange(len(units), device=units.device).roll(-self.first * int(expert or 0))


@pytest.fixture
def metric() -> Iterator[dict[str, object]]:
    REMOVAL_METRICS.register("from_a_channel_on")(FromAChannelOn)
    yield {"name": "from_a_channel_on", "first": FIRST}
    REMOVAL_METRICS.remove("from_a_channel_on")


def test_experts_keep_the_channels_that_it_says(metric: dict[str, object], make_run, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "mixtral", "mixtral", intermediate_size=CHANNELS)
    settings = (f"database.metric={metric}", "units.experts=both", "text.evaluation_tokens=256", "search.generations=1")
    run = make_run(folder, tmp_path / "out", *settings, keep="70%")
    calibration, reader = result(run, "text")["calibration"], result(run, "database").reader
    seen = {
        moments.block: moments
        for moments in stream_moments(stream_of(run.context, reader.checkpoint, calibration.tokens))
    }
    dense, narrowed = reader.checkpoint.read(), 0
    for module in reader.modules:
        for level in module.levels:
            sizes = level.sizes
            if module.kind != "mlp" or sizes.width in (0, CHANNELS):
                continue
            experts, kept = reader.best_experts(module.block, level).tolist(), reader.kept(module.block, "mlp", level)
            for expert, columns, weight in zip(experts, kept.columns, kept.weight, strict=True):
                said = [(FIRST * expert + step) % CHANNELS for step in range(sizes.width)]
                assert columns.tolist() == sorted(said)
                W = dense[f"model.layers.{module.block}.mlp.experts.down_proj"][expert].double()
                H = damp_(seen[module.block].moments["mlp"][expert].double())
                best = torch.linalg.lstsq(H[columns][:, columns], (W @ H)[:, columns].T).solution.T
                torch.testing.assert_close(weight.double(), best, rtol=1e-3, atol=1e-4)
                narrowed += 1
    assert narrowed >= 3 * EXPERTS, "experts are narrowed, not only removed"
    assert not (tmp_path / "out" / "stages" / "gradients").exists()
    budget = run_stages(run, "report").report.budget
    assert 0 < budget.used <= budget.upper
