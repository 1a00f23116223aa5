"""The plan: needs of the stages against a device, what doesn't fit, and which setting would make it fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from darwinlm.planning.devices import Device
from darwinlm.planning.estimate import StageNeed, estimate
from darwinlm.planning.model import Sizes

RESERVE = 0.9
"""Share of a device's memory that a run may use; the rest is the runtime's and fragmentation's."""


@dataclass(frozen=True)
class Plan:
    """What a run will need and give.

    Attributes:
        sizes: of model and recipe.
        device: it is planned for.
        needs: of the stages.
        problems: what doesn't fit, and what would make it fit.
    """

    sizes: Sizes
    device: Device
    needs: tuple[StageNeed, ...]
    problems: tuple[str, ...]

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return sum(need.seconds(self.device) for need in self.needs)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        sizes = self.sizes
        return {
            "model": sizes.checkpoint.source,
            "device": {"name": self.device.name, "memory": self.device.memory, "source": self.device.source},
            "dense_params": sizes.params,
            "block_params": {"dense": sizes.blocks, "lower": sizes.kept_blocks[0], "upper": sizes.kept_blocks[1]},
            "params": {"lower": sizes.kept_blocks[0] + sizes.outside, "upper": sizes.kept_blocks[1] + sizes.outside},
            "bytes": (sizes.kept_blocks[1] + sizes.outside) * sizes.element,
            "stages": [
                {
                    "stage": need.name,
                    "tokens": need.tokens,
                    "flops": need.flops,
                    "seconds": need.seconds(self.device),
                    "device_bytes": need.device_bytes(self.device),
                    "ram_bytes": need.ram_bytes(self.device),
                    "disk_bytes": need.disk,
                    "items": {item.name: item.bytes for item in (*need.device, *need.ram)},
                }
                for need in self.needs
            ],
            "seconds": self.seconds,
            "problems": list(self.problems),
        }


def make_plan(sizes: Sizes, device: Device) -> Plan:
    """Count everything. Raises BudgetError and RecipeError as the run itself would."""
    _ = sizes.budget
    needs = tuple(estimate(sizes))
    problems = [problem for need in needs for problem in _problems(need, device)]
    return Plan(sizes, device, needs, tuple(problems))


def _problems(need: StageNeed, device: Device) -> list[str]:
    room = device.memory * RESERVE
    used = need.device_bytes(device)
    if used <= room:
        return []
    over = f"{need.name} needs {gigabytes(used)} of memory, but {device.name} has {gigabytes(room)} to spare"
    items = [*need.device, *(need.ram if device.is_cpu else [])]
    by_setting: dict[str, tuple[float, int]] = {}
    for item in items:
        if item.setting:
            before = by_setting.get(item.setting, (0.0, item.value))
            by_setting[item.setting] = (before[0] + item.bytes, item.value)
    for setting, (size, value) in sorted(by_setting.items(), key=lambda entry: -entry[1][0]):
        fits = int(value * (room - (used - size)) / size)
        if fits > 0:
            return [f"{over}: {setting}={_rounded(fits)} would fit (it is {value})"]
    largest = max(items, key=lambda item: item.bytes)
    if largest.remedy:
        return [f"{over}: the most goes to '{largest.name}' ({gigabytes(largest.bytes)}), try {largest.remedy}"]
    return [f"{over}: no single setting makes it fit; the most goes to '{largest.name}' ({gigabytes(largest.bytes)})"]


def _rounded(count: int) -> int:
    """Down to a multiple of a power of two that is a sixteenth of it or less."""
    step = 1 << max(0, count.bit_length() - 5)
    return count // step * step


def gigabytes(count: float) -> str:
    """With three digits."""
    return f"{count / 1e9:.3g} GB"


HEADINGS = ("stage", "device memory", "RAM", "disk", "tokens", "FLOPs", "hours")


def cells(plan: Plan) -> list[tuple[str, ...]]:
    """Rows under `HEADINGS`, the sum last."""
    rows: list[tuple[str, ...]] = [
        (
            need.name,
            gigabytes(need.device_bytes(plan.device)),
            gigabytes(need.ram_bytes(plan.device)),
            gigabytes(need.disk),
            f"{need.tokens:,.0f}",
            f"{need.flops:.2e}",
            hours(need.seconds(plan.device)),
        )
        for need in plan.needs
    ]
    total = (
        f"{sum(n.tokens for n in plan.needs):,.0f}",
        f"{sum(n.flops for n in plan.needs):.2e}",
        hours(plan.seconds),
    )
    return [*rows, ("all", "", "", gigabytes(sum(n.disk for n in plan.needs)), *total)]


def hours(seconds: float) -> str:
    """Hours with two digits, minutes below one."""
    return f"{seconds / 3600:.2f}" if seconds >= 3600 else f"{seconds / 60:.1f} min"
