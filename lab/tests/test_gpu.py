"""The acceptance test of a GPU runs, tiny, on a CPU: it can't rot while there is no GPU."""

from types import SimpleNamespace

import pytest

from lab.benchmarks import gpu
from lab.benchmarks.gpu_units import Line, Setup


def test_all_time_limits_together_are_nine_minutes():
    assert sum(seconds for seconds, _ in gpu.PARTS.values()) < gpu.ALL == 9 * 60


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The benchmark with small shapes; its parts share models."""
    lines: list[Line] = []
    setup = Setup("cpu", tiny=True, work=tmp_path_factory.mktemp("gpu"), lines=SimpleNamespace(put=lines.append))
    return SimpleNamespace(setup=setup, parts=gpu.PARTS, lines=lines)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", [name for name in gpu.PARTS if name != "plan"])  # of whole recipes alone
def test_each_part_runs_on_a_cpu(tiny, part):
    tiny.parts[part][1](tiny.setup)
    lines = [line for line in tiny.lines if line.part == part]
    assert lines
    assert not [line for line in lines if line.ok is False]
