"""Devices of the plan: measured, at hand, known by name, or described in a file."""

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from darwinlm.planning.devices import find_device, measure_cpu
from darwinlm.runtime.errors import RecipeError


@pytest.mark.parametrize(("tiles", "expected"), [(True, 0.8), (False, 0.57)])
def test_passes_get_more_of_a_products_speed_from_matrix_tiles(
    monkeypatch: pytest.MonkeyPatch, tiles: bool, expected: float
) -> None:
    monkeypatch.setattr("darwinlm.planning.devices.has_matrix_tiles", lambda: tiles)
    assert measure_cpu.__wrapped__().efficiency == expected


def test_cpu_is_measured_and_devices_have_sources() -> None:
    cpu = find_device("cpu")
    assert cpu is measure_cpu()
    assert min(*cpu.rates.values(), cpu.bandwidth, cpu.memory) > 1e8
    assert "data sheet" in find_device("h100").source
    with pytest.raises(RecipeError, match="'h10' isn't known: did you mean 'h100'"):
        find_device("h10")
    with pytest.raises(RecipeError, match=r"known are h100, .*, cpu"):
        find_device("abacus")


@pytest.mark.parametrize(("load", "busy"), [(0.4, False), (6.0, False), (6.1, True)])
def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch, load: float, busy: bool) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    source = measure_cpu.__wrapped__().source
    assert source.startswith("measured here, 1 thread")
    assert source.endswith("busy, load 6.1 on 4 cores: times are shorter when it is idle") == busy


@pytest.mark.parametrize(
    ("card", "memory", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 85e9, "h100"),
        ("NVIDIA A100-SXM4-40GB", 42e9, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 85e9, "a100"),
        ("NVIDIA GeForce RTX 3090", 25e9, "rtx3090"),
        ("NVIDIA L40S", 47e9, "l40s"),
    ],
)
def test_cuda_is_the_card_at_hand(monkeypatch: pytest.MonkeyPatch, card: str, memory: float, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    found = SimpleNamespace(name=card, total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    device = find_device("cuda")
    assert (device.name, device.memory) == (expected, memory)
    assert device.rates == find_device(expected).rates
    found.name = "Some Card 7"
    with pytest.raises(RecipeError, match="'Some Card 7' isn't known: give the most similar of h100"):
        find_device("cuda")


def test_cuda_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        RecipeError, match=r"--device cuda: this machine's PyTorch finds no GPU: give cpu or one of h100"
    ):
        find_device("cuda")


@pytest.mark.parametrize(("slowness", "sizes"), [(1e-6, {128, 256, 512, 1024}), (1.0, {128})])
def test_a_cpu_is_measured_without_long_products(
    monkeypatch: pytest.MonkeyPatch, slowness: float, sizes: set[int]
) -> None:
    """An emulated type may be a hundred times slower, so one small product is timed once."""
    whole, made = torch.matmul, []
    clock = itertools.count()

    def counted(a: Tensor, b: Tensor) -> Tensor:
        made.append(len(a))
        return whole(a[:1], b)

    monkeypatch.setattr(torch, "matmul", counted)
    device = measure_cpu.__wrapped__(lambda: next(clock) * slowness)
    assert set(made) == sizes
    assert len(made) == 3 * (1 if slowness == 1.0 else 6 * len(sizes))
    assert device.rates["float32"] == pytest.approx(4 * max(sizes) ** 3 / slowness)


ROW = "measured: {memory: 80, bfloat16: 700, float32: 50, float64: 30, bandwidth: 2800, source: here"


def test_a_file_of_measured_rates_is_a_device(tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    path.write_text(f"{ROW}, efficiency: 0.5, product_efficiency: 0.8}}", encoding="utf-8")
    device = find_device(str(path))
    assert (device.name, device.memory, device.rates["bfloat16"]) == ("measured", 80e9, 700e12)
    assert (device.efficiency, device.product_efficiency, device.disk) == (0.5, 0.8, 2e9)
    path.write_text(f"{ROW}, disk: 0.5}}", encoding="utf-8")
    assert find_device(str(path)).disk == 0.5e9


@pytest.mark.parametrize(
    "text",
    [None, "", "[]", "{}", "a: 1", f"{ROW}, efficiency: -1}}", f"{ROW}, efficiency: .nan}}", "a: {memory: 80}", "a: ["],
)
def test_other_files_are_no_device(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "gpu.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"gpu\.yaml: it describes no device .*: give the YAML file that benchmarks"):
        find_device(str(path))
