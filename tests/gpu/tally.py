"""What the pretend device counts and refuses, by the line of the package that asked for it."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType

from darwinlm.model.walk import decoder, stream
from darwinlm.steps.database import block_moments, elimination, store
from darwinlm.steps.search import fitness, slopes

PACKAGE = "/darwinlm/"

HOT = {
    (elimination, "_cheapest"),
    (elimination, "_remove"),
    (stream, "run"),
    (decoder, "through"),
    (decoder, "move"),
    (decoder, "back"),
    (fitness, "_walk"),
}
"""Loops over batches, candidates or removed units in which the host must not wait for the device: module, function."""

KNOWN_WAITS = {
    (stream, "check"),  # once for all batches
    (slopes, "_levels"),  # once for each module
    (decoder, "_record"),  # before a walk, once for each shape of text
    (store, "_computed"),  # a file, once; what is read again is pinned
    (block_moments, "watch_mixture"),  # the host must know the experts of the tokens
}
"""Functions called from them that may."""


def file_of(module: ModuleType) -> str:
    """A module's file as lines are named: from the package on."""
    assert module.__file__ is not None
    return module.__file__.rpartition(PACKAGE)[2]


HOT_PLACES, KNOWN_PLACES = ({(file_of(module), name) for module, name in places} for places in (HOT, KNOWN_WAITS))


class MixedDevicesError(RuntimeError):
    """What CUDA says as "Expected all tensors to be on the same device"."""


class HostWaitError(AssertionError):
    """The host waits for the device in a hot loop."""


class UnfinishedError(AssertionError):
    """Memory is used before earlier work on it has ended."""


@dataclass
class Tally:
    """What was counted, by the line of the package that asked for it.

    Attributes:
        kernels: Operations that the device computes.
        waits: Times that the host waits for the device.
        uploads: Copies from main memory to the device.
        mixes: Operations that CUDA would refuse, with the reason.
        amounts: What all of them ask of the device's units, as in `amounts_of`.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    uploads: Counter[str] = field(default_factory=Counter)
    mixes: Counter[str] = field(default_factory=Counter)
    amounts: Counter[str] = field(default_factory=Counter)

    def inside(self, module: ModuleType) -> dict[str, int]:
        """Totals over the lines of a module."""
        named = {name: getattr(self, name) for name in ("kernels", "waits", "uploads")}
        place = f"{file_of(module)}:"
        return {name: sum(n for at, n in counter.items() if at.startswith(place)) for name, counter in named.items()}


def asking_line() -> str:
    """The innermost line of the package on the stack."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.rpartition(PACKAGE)
        if found:
            return f"{path}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


def hot_loop() -> str:
    """The hot loop that the present line runs in, if any."""
    frame = sys._getframe(1)
    while frame is not None:
        _, found, path = frame.f_code.co_filename.rpartition(PACKAGE)
        if found and (path, frame.f_code.co_name) in KNOWN_PLACES:
            return ""
        if found and (path, frame.f_code.co_name) in HOT_PLACES:
            return f"{path} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""
