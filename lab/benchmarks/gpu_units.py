"""The parts of `gpu.py` that measure single things: rates, equality, moments, removal order, refusals."""

from __future__ import annotations

import math
import os
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch

STATED = {"H100": "h100", "H200": "h200", "A100": "a100", "L40S": "l40s", "RTX 4090": "rtx4090"}
"""Devices of the plan, by a part of the driver's name for them."""

STEPS = "removed channel"
"""Line with the time of a step of a removal order at the largest size."""


@dataclass
class Line:
    """One result.

    Attributes:
        part: Part that reports it.
        name: Name of the result.
        value: Number or text.
        unit: Unit of the number.
        bound: Bound on the value, in words.
        ok: Whether the value meets the bound; None without a bound.
    """

    part: str
    name: str
    value: float | str
    unit: str = ""
    bound: str = ""
    ok: bool | None = None

    def __str__(self) -> str:
        value = f"{self.value:.4g}" if isinstance(self.value, float) else self.value
        verdict = "" if self.ok is None else " ok" if self.ok else " FAIL"
        return f"{self.name}: {value} {self.unit} {f'({self.bound})' if self.bound else ''}".rstrip() + verdict


@dataclass
class Setup:
    """Settings that all parts share.

    Attributes:
        device: Name of the device.
        tiny: Use of small shapes, without bounds on speed.
        work: Working folder.
        lines: Queue of the results.
        blocks: Number of blocks of the large model.
    """

    device: str
    tiny: bool
    work: Path
    lines: Any
    blocks: int = 4

    @property
    def kind(self) -> torch.device:
        """The device, with the index that threads of a GPU need."""
        from darwinlm.runtime.compute import resolve_device

        return resolve_device(self.device)

    def put(self, line: Line) -> None:
        """Report a result."""
        self.lines.put(line)

    def told(self, part: str, name: str, value: float | str, unit: str = "") -> None:
        """Report a result without a bound."""
        self.put(Line(part, name, value if isinstance(value, str) else float(value), unit))

    def fast(self, part: str, name: str, value: float, unit: str, floor: float | None) -> None:
        """Report a rate with a lower bound, which doesn't apply to tiny shapes."""
        asked = floor is not None and not self.tiny
        bound = f"at least {floor:.4g}" if asked else ""
        self.put(Line(part, name, float(value), unit, bound, value >= floor if asked and floor is not None else None))

    def most(self, part: str, name: str, value: float, unit: str, most: float, *, speed: bool = False) -> None:
        """Report a figure with an upper bound. With tiny shapes a bound on speed or memory doesn't apply."""
        asked = not (speed and self.tiny)
        self.put(Line(part, name, float(value), unit, f"at most {most:.4g}", value <= most if asked else None))

    def peak(self, part: str, plan: float | None = None, slack: float = 1.05) -> None:
        """Report the part's peak memory so far, and the planned one."""
        if self.kind.type != "cuda":
            return
        value = torch.cuda.max_memory_allocated() / 1e9
        bound = "" if plan is None else f"plan {plan / 1e9:.1f}"
        ok = None if plan is None or self.tiny else value <= slack * plan / 1e9
        self.put(Line(part, f"{part} peak", value, "GB", bound, ok))

    def plan(self, part: str, checkpoint: Any, stage: str, *settings: str) -> float:
        """Bytes on a device that the plan says for a stage at the benchmark's budget."""
        from darwinlm.pipeline import STEPS
        from darwinlm.planning.run_plan import plan_card
        from darwinlm.recipe import load_recipe
        from darwinlm.steps.run_sizes import RunSizes

        more = ("compute.dtype=bfloat16", "text.looking_back=0", "budget.tolerance=0.1", *settings)
        recipe = load_recipe(None, more, {"model": str(checkpoint.folder), "budget.keep": "38%"})
        rows = plan_card(STEPS, RunSizes(checkpoint, recipe), "h100").rows
        planned = next(row for row in rows if row.step == stage).cost.bytes
        self.told(part, f"{part} planned", planned / 1e9, "GB")
        return planned

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self.kind.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, action: Callable[[], Any], repeats: int = 3) -> float:
        """Shortest time of several runs, after a warm-up run."""
        action()
        times = []
        for _ in range(repeats):
            self.wait()
            begun = time.perf_counter()
            action()
            self.wait()
            times.append(time.perf_counter() - begun)
        return min(times)


def planned_bytes(run: Any) -> dict[str, float]:
    """Planned bytes of the device by stage of a run."""
    from darwinlm.planning.speeds import PassSpeed
    from darwinlm.runs.plan_model import plan_of
    from darwinlm.steps.run_sizes import RunSizes
    from darwinlm.steps.source.whole_model import open_model

    sizes = RunSizes(open_model(run.context, run.recipe.model), run.recipe)
    plan = plan_of(sizes, run.context.device, PassSpeed(math.inf))
    return {row.step: row.cost.bytes for row in plan.rows}


def machine(setup: Setup) -> None:
    """Measure rates of matrix products, copies and the disk, against half of the vendors' figures."""
    from darwinlm.planning.speeds import CARDS
    from darwinlm.steps.database.order import exact_products

    on_gpu = setup.kind.type == "cuda"
    name = torch.cuda.get_device_name() if on_gpu else "cpu"
    setup.told("machine", "device", f"{name}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}")
    setup.told("machine", "float32 products are exact", str(exact_products()))
    row = next((rates for part, rates in STATED.items() if part in name), None)
    stated = CARDS[row].products if row else 0.0
    n = 256 if setup.tiny else 8192
    for kind in ("bfloat16", "float32", "float64"):
        a, b = (torch.randn(n, n, device=setup.kind).to(getattr(torch, kind)) for _ in range(2))
        rate = 2 * n**3 / setup.seconds(partial(torch.matmul, a, b)) / 1e12
        setup.fast("machine", f"{kind} product", rate, "TFLOP/s", stated / 2 if stated and kind == "bfloat16" else None)
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    a, b = (torch.randn(n, n, device=setup.kind) for _ in range(2))
    setup.told("machine", "TF32 product", 2 * n**3 / setup.seconds(lambda: a @ b) / 1e12, "TFLOP/s")
    torch.set_float32_matmul_precision(precision)
    size = 1 << (20 if setup.tiny else 30)
    source = torch.empty(size, dtype=torch.uint8, device=setup.kind)
    target = torch.empty_like(source)
    setup.fast("machine", "memory bandwidth", 2e-9 * size / setup.seconds(lambda: target.copy_(source)), "GB/s", None)
    for pinned in (True, False) if on_gpu else (False,):
        host = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        words = "pinned" if pinned else "pageable"
        up = 1e-9 * size / setup.seconds(partial(target.copy_, host, non_blocking=True))
        down = 1e-9 * size / setup.seconds(partial(host.copy_, source, non_blocking=True))
        setup.fast("machine", f"{words} copy up", up, "GB/s", 10.0 if pinned else None)
        setup.fast("machine", f"{words} copy down", down, "GB/s", 10.0 if pinned else None)
    setup.told("machine", "disk", _disk(setup.work / "written", size >> 2) / 1e9, "GB/s")


def _disk(path: Path, size: int) -> float:
    """Bytes per second of the disk with a file, written and read again without the machine's cache."""
    block = random.Random(0).randbytes(1 << 18)
    begun = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass
    seconds = time.perf_counter() - begun
    path.unlink()
    return 2 * size / seconds


EQUAL = {
    "default": ("llama", ()),
    "paper, trained candidates": (
        "llama",
        (
            "preset=paper",
            "search.generations=2",
            "search.rounds=[{tokens: 64, survivors: 2, training_tokens: 64}, "
            "{tokens: 128, survivors: 1, training_tokens: 128}]",
        ),
    ),
    "mixture": ("mixtral", ("budget.tolerance=0.1", "units.mlp_multiple=4")),
    "biases, recovery": ("qwen2", ("recovery.tokens=512", "recovery.batch_tokens=64", "compute.dtype=float32")),
}
"""Family and assignments."""

FEWER = (
    "text.calibration_tokens=256",
    "text.evaluation_tokens=64",
    "refit.tokens=256",
    "search.offspring=3",
    "search.rounds=[{tokens: 64, survivors: 1}]",
)
"""Settings of the same runs with `tiny`, for less text and fewer candidates."""


def _run(setup: Setup, family: str, device: str, *assignments: str) -> tuple[Path, Any]:
    """Run the pipeline up to the refit on a tiny model; return the run's folder and its results."""
    from rich.console import Console
    from tests.tiny.checkpoint import SETTINGS, tiny_checkpoint, tiny_text
    from tests.tiny.stages import run_stages

    from darwinlm.recipe import load_recipe
    from darwinlm.runs.opening import open_run
    from darwinlm.runtime.console import Reporter

    model, text = setup.work / family, setup.work / "text.txt"
    if not model.exists():
        tiny_checkpoint(model, family, num_hidden_layers=2)
        tiny_text(text)
    named = {"model": str(model), "text.source": str(text), "budget.keep": "60%", "compute.device": device}
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=setup.work))
    few = ("search.generations=1", "compute.batch_tokens=512", *(FEWER if setup.tiny else ()))
    recipe = load_recipe(None, [*SETTINGS, *few, *assignments], named)
    last = "recover" if recipe.recovery.tokens else "refit"
    return folder, run_stages(open_run(recipe, folder, Reporter(Console(quiet=True))), last)


def equality(setup: Setup) -> None:
    """Compare the whole pipeline in float32 on the CPU and on the device."""
    from safetensors.torch import load_file

    for name, (family, assignments) in EQUAL.items():
        here, ours = _run(setup, family, "cpu", *assignments)
        there, theirs = _run(setup, family, setup.device, *assignments)
        kl = abs(theirs.search.record["kl"] / ours.search.record["kl"] - 1)
        setup.most("equality", f"{name}: search KL differs by", kl, "relative", 1e-4)
        if ours.refit is not None:
            kl = abs(theirs.refit.record["kl_after"] / ours.refit.record["kl_after"] - 1)
            setup.most("equality", f"{name}: KL after the refit differs by", kl, "relative", 1e-3)
        worst = 0.0
        for path in (here / "stages" / "database").glob("block_*.safetensors"):
            a, b = load_file(path), load_file(there / "stages" / "database" / path.name)
            for key in (key for key in a if key.endswith("errors")):
                scale = a[key].abs().max().clamp_min(1e-30)
                worst = max(worst, float((a[key] - b[key]).abs().max() / scale))
        setup.most("equality", f"{name}: error curves differ by", worst, "relative", 1e-3)
        if getattr(ours, "recover", None) is not None:
            kl, other = (found.recover.record["log"][-1]["eval_kl"] for found in (ours, theirs))
            setup.most("equality", f"{name}: KL after eight steps differs by", abs(other / kl - 1), "relative", 1e-3)
        pairs = zip(ours.search.allocation, theirs.search.allocation, strict=True)
        setup.told("equality", f"{name}: modules at another level", float(sum(x != y for x, y in pairs)))
        if name == "default":
            _, low = _run(setup, family, setup.device, "compute.dtype=bfloat16")
            differs = abs(low.search.record["uniform_kl"] / ours.search.record["uniform_kl"] - 1)
            setup.most("equality", "bfloat16: KL of the best uniform model differs by", differs, "relative", 0.02)


def moments(setup: Setup) -> None:
    """Measure moments of bfloat16 inputs: their speed, and one batch against float64, with float32 outputs too."""
    from darwinlm.model.walk.moments import SecondMoment

    tokens, width = (256, 96) if setup.tiny else (8192, 11008)
    x = torch.randn(tokens, width, device=setup.kind, dtype=torch.bfloat16)
    first, moment = (SecondMoment(width, device=setup.kind) for _ in range(2))
    first.add(x)
    part = x[:, : min(width, 2048)].double()
    exact = part.T @ part / tokens
    mean = first.take()[: len(exact), : len(exact)]
    setup.most("moments", "differs from float64 by", float((mean - exact).norm() / exact.norm()), "relative", 1e-5)
    y, cross = torch.randn(tokens, 64, device=setup.kind), SecondMoment(width, 64, device=setup.kind)
    cross.add(x, y)
    wanted = y.double().T @ part / tokens
    differs = float((cross.take()[:, : part.shape[1]] - wanted).norm() / wanted.norm())
    setup.most("moments", "cross moments differ from float64 by", differs, "relative", 1e-5)
    batches = 2 if setup.tiny else 64

    def add_all() -> None:
        for _ in range(batches):
            moment.add(x)

    seconds = setup.seconds(add_all, 1)
    rate = batches * 2 * tokens * width**2 / seconds / 1e12
    setup.fast("moments", "second moments", rate, "TFLOP/s", 150.0)
    setup.peak("moments")


def order(setup: Setup) -> None:
    """Measure removal order and factor of one MLP: seconds of each step, and the order against the CPU's."""
    from darwinlm.steps.database.elimination import eliminate, why_not_recorded
    from darwinlm.steps.database.factors import unpack_lower, whole_factor_
    from darwinlm.steps.database.order import DELAY, damp_, ordered_moment, removal_order
    from lab.benchmarks.database import synthetic

    small = 96 if setup.tiny else 1536
    H, W = synthetic(small // 3, small, "cpu")
    units = torch.arange(small)[:, None]
    expected = removal_order(H, W, units).units.flip(0)
    order = removal_order(H.to(setup.kind), W.to(setup.kind), units.to(setup.kind)).units.flip(0).cpu()
    first = int(0.9 * small)
    same = float((expected[:first] == order[:first]).float().mean())
    setup.fast("order", f"places as on the CPU in the first 90 % at d = {small}", same, "", None if setup.tiny else 1.0)
    for d in (192,) if setup.tiny else (4096, 11008):
        if setup.kind.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        H, W = (tensor.to(setup.kind) for tensor in synthetic(64 if setup.tiny else 4096, d, "cpu"))
        units = torch.arange(d, device=setup.kind)[:, None]
        times = [time.perf_counter()]

        def step(times: list[float] = times) -> None:
            setup.wait()
            times.append(time.perf_counter())

        columns = units[removal_order(H, W, units).units].reshape(-1)
        step()
        packed, _, _ = whole_factor_(damp_(ordered_moment(H, columns)), W, columns)
        step()
        unpack_lower(packed, d)
        step()
        ordered, factor, unpacking = (b - a for a, b in pairwise(times))
        for name, value in (("order", ordered), ("factor", factor), ("unpacking", unpacking)):
            setup.told("order", f"d = {d} {name}", value, "s")
        limit = 8.0 * (d / 11008) ** 2
        setup.most("order", f"d = {d} order and factor", ordered + factor, "s", limit, speed=True)
        if setup.kind.type == "cuda":
            peak = torch.cuda.max_memory_allocated() / d**2
            setup.most("order", f"d = {d} peak", peak, "bytes / d²", 36.0, speed=True)  # 32, and the moment itself
        C, G = damp_(H.clone()), W.T @ W
        step()
        eliminate(C, G, d, DELAY)
        step()
        per_step = 1e6 * (times[-1] - times[-2]) / d
        setup.told("order", f"d = {d} for each removed channel", per_step, "µs")
        del H, W, C, G, columns, packed
    setup.told("order", STEPS, per_step, "µs")
    if setup.kind.type == "cuda":
        reason = why_not_recorded()
        setup.put(Line("order", "steps are a CUDA graph", reason or "yes", ok=not reason))


def traps(setup: Setup) -> None:
    """Check that wrong input ends with a one-line message."""
    from darwinlm.cli.main import _message
    from darwinlm.runtime.compute import resolve_device
    from darwinlm.runtime.errors import DarwinLMError

    for name in ("cuda:99", "meta", "gpu"):
        try:
            resolve_device(name)
            said = ""
        except DarwinLMError as error:
            said = str(error)
        setup.put(Line("traps", f"compute.device={name}", said or "was taken", ok=bool(said)))
    with mock.patch("darwinlm.steps.search.fitness.Fitness.kls", side_effect=torch.OutOfMemoryError("full")):
        try:
            _run(setup, "llama", setup.device)
            said = ""
        except DarwinLMError as error:
            said = _message(error)
    # So small a model has no setting that would help.
    advised = "memory" in said and "lower compute.batch_tokens" in said
    setup.put(Line("traps", "full memory", said or "was no message", ok=advised))
    # The Trainer of transformers, and others, copy a model onto every GPU that they see.
    with (
        mock.patch("torch.cuda.device_count", return_value=2),
        mock.patch("torch.nn.DataParallel.__init__", side_effect=AssertionError("DataParallel is used")),
    ):
        _, found = _run(setup, "llama", setup.device, *EQUAL["biases, recovery"][1])
    setup.put(Line("traps", "recovery beside a second GPU", "trained on one", ok=found.recover is not None))
