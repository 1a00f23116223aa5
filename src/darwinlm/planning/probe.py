"""How fast this machine works: a piece of the real work of each kind, timed on random weights.

The weights are random, so that a configuration is enough. The run's own threads and element types are used. Other
programs slow the machine, so every piece is short and runs several times. Its time is the median, or the median of one
thread's processor time where that is less: a piece that waited for a processor has used less of it than has passed.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from darwinlm.calibration.moments import add_products_
from darwinlm.database.elimination import eliminate
from darwinlm.database.order import DELAY
from darwinlm.evaluation.divergence import DenseDistribution
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.needs.counted import typical_blocks
from darwinlm.needs.need import Work
from darwinlm.needs.sizes import Sizes
from darwinlm.needs.training import UPDATE_BYTES
from darwinlm.runtime.compute import DTYPES, await_device, exact
from darwinlm.runtime.errors import storage_error
from darwinlm.streaming.streamed import StreamedDecoder

TRIALS, ENOUGH = (3, 9), 0.3
"""Least and largest number of trials, and seconds after which no more than the least are made."""

OPERATIONS = 4e10
"""Operations of a timed pass, at most, by its number of tokens: up to a second on a slow processor."""

TOKENS, LOGITS = 512, 128
"""Most tokens of a sequence in a timed pass, and tokens whose logits are timed."""

WIDTH = 2048
"""Largest width of timed products, factors and solves."""

PARAMETERS, BYTES = 1 << 22, 1 << 25
"""Parameters of a timed update, and bytes that are hashed, copied, and written to a file."""

TOKENISED = 2e5
"""Tokens of text per second, read, split and tokenised: the least of three tokenizers. Measured on 2026-11-28."""

PRESENT_SECONDS = 1.5
"""Least seconds for the present speed of passes, over which the load of other programs varies."""


class RandomWeights(Checkpoint):
    """A checkpoint with random weights, from its configuration alone."""

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of all tensors by name."""
        return {name: tensor.shape for name, tensor in self.skeleton().state_dict().items()}

    @cached_property
    def tensors(self) -> Any:
        """Names of all tensors."""
        return self.shapes

    def read(self, prefix: str = "", *, dtype: torch.dtype | None = None, mapped: bool = True) -> dict[str, Tensor]:
        """Random tensors."""
        found = {name: shape for name, shape in self.shapes.items() if name.startswith(prefix)}
        return {
            name.removeprefix(prefix): self.cast(name, random(shape), dtype or torch.float32)
            for name, shape in found.items()
        }

    def rows(self, name: str, index: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Random rows."""
        return random((len(index), *self.shapes[name][1:])).to(dtype)


def random(shape: tuple[int, ...]) -> Tensor:
    """Small random numbers, which repeat, so that many of them take no time."""
    some, count = 0.02 * torch.randn(1 << 16), math.prod(shape)
    return some.repeat(-(-count // len(some)))[:count].view(shape)


class Machine(Mapping[Work, float]):
    """Work in a second by kind, measured when it is first asked for.

    `clocks` are those of wall time and of processor time, in seconds.
    """

    def __init__(
        self,
        sizes: Sizes,
        device: torch.device,
        clocks: tuple[Callable[[], float], Callable[[], float]] = (time.perf_counter, time.process_time),
    ) -> None:
        self.sizes, self.device, self.clocks = sizes, device, clocks
        self.dtype = DTYPES[sizes.kind]
        self._rates: dict[Work, float] = {}
        own = {each.name: getattr(sizes.checkpoint, each.name) for each in fields(sizes.checkpoint)}
        self._checkpoint = RandomWeights(**own)
        self._pieces: dict[Work, Callable[[], float]] = {
            "passes": self._passes,
            "training": self._training,
            "heads": self._heads,
            "moments": self._moments,
            "removal": self._removal,
            "solves": self._solves,
            "factors": self._factors,
            "decoding": self._decoding,
            "updates": self._updates,
            "transfers": self._transfers,
            "disk": self._disk,
            "hashing": self._hashing,
            "tokenising": lambda: TOKENISED,
        }

    def __getitem__(self, kind: Work) -> float:
        if kind not in self._rates:
            self._rates[kind] = self._pieces[kind]()
        return self._rates[kind]

    def __iter__(self) -> Any:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def slowdown(self) -> float:
        """Present time of a pass by its time on an idle machine, at least 1."""
        idle, begun, passes = self._passing[0] / self["passes"], self.clocks[0](), 0
        while not passes or self.clocks[0]() - begun < PRESENT_SECONDS:
            for index, hidden, arguments, _ in self._blocks:
                self._run(index, hidden, arguments)
            passes += 1
        present = (self.clocks[0]() - begun) / passes
        return max(1.0, present / (idle * self._passing[1]))

    def _timed(self, action: Callable[[], object]) -> float:
        """Seconds of an action on an idle machine."""
        action()
        threads = torch.get_num_threads()
        walls, processor = self._several(action)
        if threads > 1 and self.device.type == "cpu":  # threads that wait for each other use the processor too
            torch.set_num_threads(1)
            try:
                _, processor = self._several(action)
            finally:
                torch.set_num_threads(threads)
        return min(median(walls), median(processor)) if self.device.type == "cpu" else median(walls)

    def _several(self, action: Callable[[], object]) -> tuple[list[float], list[float]]:
        walls: list[float] = []
        processor: list[float] = []
        while len(walls) < TRIALS[0] or (len(walls) < TRIALS[1] and sum(walls) < ENOUGH):
            before = [clock() for clock in self.clocks]
            action()
            await_device(self.device)
            wall, used = (clock() - begun for clock, begun in zip(self.clocks, before, strict=True))
            walls.append(wall)
            processor.append(used)
        return walls, processor

    @cached_property
    def _decoder(self) -> StreamedDecoder:
        return StreamedDecoder(self._checkpoint, self._tokens, dtype=self.dtype, device=self.device)

    @cached_property
    def _tokens(self) -> Tensor:
        """Tokens [n, t] of a timed pass."""
        sizes, depth = self.sizes, self.sizes.depth
        most = max(16, int(OPERATIONS * depth / sizes.forward))
        length = min(sizes.recipe.text.sequence_length, TOKENS, most)
        return torch.zeros(max(1, min(sizes.pass_tokens, most, 2 * TOKENS) // length), length, dtype=torch.int64)

    @cached_property
    def _blocks(self) -> list[tuple[int, Tensor, dict[str, Any], float]]:
        """Typical blocks, loaded, with their inputs and the number of blocks that cost as much."""
        decoder = self._decoder
        hidden, arguments = decoder.embed(self._tokens), decoder.block_arguments(self._tokens)
        sources, found = self.sizes.checkpoint.family.attention.sources(self._checkpoint.config), []
        for index, alike in list(typical_blocks(decoder)):
            if index in sources:  # whose keys and values it reuses
                decoder.load(sources[index])
                self._run(sources[index], hidden, arguments[sources[index]])
            decoder.load(index)
            found.append((index, hidden, arguments[index], alike))
        return found

    def _run(self, index: int, hidden: Tensor, arguments: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return self._decoder.run_block(index, hidden, arguments)

    @cached_property
    def _passing(self) -> tuple[float, float]:
        """Operations of the timed passes through all blocks, and the part of them in one pass through typical ones."""
        count = self._tokens.numel() * self.sizes.forward
        return count, len(self._blocks) / sum(alike for *_, alike in self._blocks)

    @cached_property
    def _block_seconds(self) -> list[float]:
        return [self._timed(lambda each=each: self._run(*each[:3])) for each in self._blocks]  # type: ignore[misc]

    def _passes(self) -> float:
        weighted = zip(self._blocks, self._block_seconds, strict=True)
        return self._passing[0] / sum(block[3] * seconds for block, seconds in weighted)

    def _training(self) -> float:
        """A forward and a backward pass are three times a forward pass."""
        (index, hidden, arguments, _), forward = self._blocks[0], self._block_seconds[0]
        block, hidden = self._decoder.blocks[index], hidden.detach().requires_grad_()

        def step() -> None:
            output = self._decoder.run_block(index, hidden, arguments)
            output.backward(torch.ones_like(output))  # type: ignore[no-untyped-call]
            block.zero_grad(set_to_none=True)

        block.requires_grad_(requires_grad=True)
        seconds = self._timed(step)
        block.requires_grad_(requires_grad=False)
        return self["passes"] * 3 * forward / seconds

    def _heads(self) -> float:
        hidden = random((LOGITS, self.sizes.width)).to(self.device, self.dtype)

        def evaluate() -> None:
            logits = self._decoder.head(hidden)
            DenseDistribution(logits).kl(logits)

        with torch.no_grad(), self._decoder.with_head():
            seconds = self._timed(evaluate)
        self._decoder.unload_head()
        return LOGITS * self.sizes.head / seconds

    @property
    def _width(self) -> int:
        return min(max(shape.width for shape in self.sizes.shapes), WIDTH)

    def _numbers(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return random(shape).to(self.device, dtype)

    def _spd(self, d: int, dtype: torch.dtype) -> Tensor:
        return self._numbers(d, d, dtype=dtype).tril_(-1) / d + torch.eye(d, device=self.device, dtype=dtype)

    def _moments(self) -> float:
        d, n = self._width, self._tokens.numel()
        inputs, total = self._numbers(n, d, dtype=self.dtype), self._numbers(d, d)
        return 2 * n * d * d / self._timed(lambda: add_products_(total, inputs, inputs))

    def _removal(self) -> float:
        """The whole loop for single columns."""
        d = self._width
        C, G = self._spd(d, torch.float32), self._spd(d, torch.float32)
        C, G = C @ C.T, G @ G.T
        return 2 * d**3 / self._timed(lambda: eliminate(C.clone(), G.clone(), d, DELAY))

    def _solves(self) -> float:
        d, r = self._width, min(self.sizes.width, WIDTH)
        L, T = self._spd(d, torch.float32), self._numbers(r, d)
        return r * d * d / self._timed(lambda: torch.linalg.solve_triangular(L, T, upper=False, left=False))

    def _factors(self) -> float:
        d = self._width
        A = exact(self._spd(d, torch.float32)).double()
        A = A @ A.T
        return d**3 / self._timed(lambda: torch.cholesky_inverse(torch.linalg.cholesky_ex(A).L))

    def _decoding(self) -> float:
        hidden, arguments = (
            self._decoder.embed(self._tokens[:1, :1]),
            self._decoder.block_arguments(self._tokens[:1, :1]),
        )
        index = self._blocks[0][0]
        size = sum(parameter.nbytes for parameter in self._decoder.blocks[index].parameters())
        return size / self._timed(lambda: self._run(index, hidden, arguments[index]))

    def _updates(self) -> float:
        weight = torch.nn.Parameter(self._numbers(PARAMETERS))
        weight.grad = torch.ones_like(weight)
        optimiser = torch.optim.AdamW([weight], fused=True)

        def step() -> None:
            torch.nn.utils.clip_grad_norm_([weight], 1.0)
            optimiser.step()

        return UPDATE_BYTES * PARAMETERS / self._timed(step)

    def _transfers(self) -> float:
        there = torch.zeros(BYTES, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        return BYTES / self._timed(lambda: there.to(self.device, copy=True))

    def _disk(self) -> float:
        content = bytes(BYTES)

        def write_and_read() -> None:
            with tempfile.TemporaryFile() as file:
                file.write(content)
                file.seek(0)
                file.read()

        try:
            return 2 * BYTES / self._timed(write_and_read)
        except OSError as error:
            raise storage_error(Path(tempfile.gettempdir()), error) from error

    def _hashing(self) -> float:
        content = bytes(BYTES)
        return BYTES / self._timed(lambda: hashlib.blake2b(content))
