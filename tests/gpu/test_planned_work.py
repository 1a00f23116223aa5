"""What a plan says that stages ask of a GPU is what they ask of the pretend one: operations by type, bytes, kernels."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.walk import moments
from darwinlm.pipeline import STEPS
from darwinlm.planning.run_plan import plan_card
from darwinlm.runtime.step import AnyStep, Task, Work
from darwinlm.steps.database import elimination, factors, inverse
from darwinlm.steps.run_sizes import RunSizes
from tests.gpu.device import pretend_gpu
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.stages import run_stages

SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 2, "vocab_size": 260}
SETTINGS = ("compute.dtype=bfloat16", "compute.batch_tokens=1024", "text.calibration_tokens=2048", "refit.tokens=2048")
SETTINGS += ("search.generations=2", "units.mlp_multiple=16", "budget.tolerance=0.1")
STAGES = ("gradients", "database", "search", "refit")
"""Those whose work doesn't depend on what caches of earlier ones still hold."""
WITHIN = {"products": (0.8, 1.25), "float32": (0.6, 1.25), "float64": (0.8, 1.25), "moved": (0.5, 1.5)}
WITHIN |= {"launches": (0.4, 1.5)}
"""Planned over counted amounts. What is asked for once, whatever the sizes, isn't planned; here it is a large share."""


@pytest.fixture
def fine_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of triangles that are as small, relative to these matrices, as the real ones relative to real matrices."""
    for module, name in ((moments, "PANEL"), (inverse, "PANEL"), (factors, "COLUMNS"), (factors, "ROWS")):
        monkeypatch.setattr(module, name, 16)
    monkeypatch.setattr(elimination, "RECORDED", (1 / 4, 16))


def test_stages_ask_for_what_is_planned(fine_blocks, make_run, tmp_path: Path, monkeypatch) -> None:
    model = tiny_checkpoint(tmp_path / "model", "llama", **SIZES)
    counted: dict[str, Counter[str]] = {}
    with pretend_gpu() as gpu:
        for step in STEPS:
            work = step.work

            def counting(self: AnyStep, task: Task, work: Callable[[AnyStep, Task], None] = work) -> None:
                gpu.restart()
                earlier = len(gpu.recordings)
                work(self, task)
                tally, _ = gpu.restart()
                replayed = sum(each.kernels * each.replays for each in gpu.recordings[earlier:])
                counted[self.name] = tally.amounts + Counter(launches=sum(tally.kernels.values()) + replayed // 2)

            monkeypatch.setattr(step, "work", counting)
        run = make_run(model, tmp_path / "out", *SETTINGS)
        run_stages(run, "refit")
    plan = plan_card(STEPS, RunSizes(Checkpoint.open(model), run.recipe), "h100")
    for row in plan.rows:
        if row.step in STAGES:
            planned = sum(row.cost.parts.values(), Work())
            for name, (least, most) in WITHIN.items():
                found = counted[row.step][name]
                assert least * found <= getattr(planned, name) <= most * found, f"{row.step} {name}: {found}"
