"""Sampling of many sequences at once, each through several segments, without waiting for the device at every step.

A *segment* is a part of a sequence that the model writes, such as the user's turn and then the answer. When it ends,
given tokens follow, and the next segment begins. Rows of the batch are filled with new sequences as soon as others end
(continuous batching, Orca, OSDI 2022) where the model's cache allows it. Otherwise all rows begin together.

A sequence's random numbers depend on the seed and its number alone: not on the batch, the process, or an interruption.

Letters: B rows, L positions, S segments, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from darwinlm.runtime.memory import memory_of
from darwinlm.steps.own_text.sampling_cache import RowCache, takes_rows

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

CPU_ROWS, GPU_ROWS = 64, 256
"""Maximum number of sequences at once."""
STEPS = 8
"""Number of steps after which the ended rows are looked up."""


@dataclass(frozen=True)
class Segment:
    """A part that the model writes.

    Attributes:
        ends: Tokens that end it.
        then: Tokens that follow, the first of which replaces the token that ended it. Empty for the last segment.
        until: Position at which a sequence that hasn't ended this segment is given up.
    """

    temperature: float
    ends: tuple[int, ...]
    until: int
    then: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sampled:
    """A written sequence.

    Attributes:
        tokens: All tokens, including the prompt and the token that ended it.
        begins: Position at which each begun segment starts.
        parts: Tokens of each begun segment, without the token that ended it and those that follow.
        ended: Whether the last segment ended by itself.
    """

    number: int
    tokens: tuple[int, ...]
    begins: tuple[int, ...]
    parts: tuple[tuple[int, ...], ...]
    ended: bool


class Sampler:
    """Samples sequences that begin with the same `prefix`, of at most `length` tokens.

    `rows` is the number of sequences at once; None chooses it from the device's memory. The model's own element type is
    used, and float32 for probabilities. `on_steps` is called every few steps, with the number of tokens in the
    sequences that have begun and not ended.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: Sequence[int],
        segments: Sequence[Segment],
        length: int,
        seed: int,
        rows: int | None = None,
        on_steps: Callable[[int], object] = lambda unfinished: None,
    ) -> None:
        self.model = model
        self._on_steps = on_steps
        self.device: torch.device = next(model.parameters()).device
        self.prefix = tuple(prefix)
        self.segments = segments
        self.length = length
        self.seed = seed
        parameters = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"
        self._only_last = {"logits_to_keep": 1} if "logits_to_keep" in parameters else {}
        self._prompt = self._read(1)
        self.continuous = takes_rows(self._prompt, length)
        self.rows = rows or self._fitting_rows()
        longest = max(len(segment.then) for segment in segments)
        vocabulary = model.get_input_embeddings().weight.shape[0]
        self._ends = torch.zeros(len(segments) + 1, vocabulary, dtype=torch.bool)
        self._then = torch.full((len(segments) + 1, longest + 1), -1)
        for index, segment in enumerate(segments):
            self._ends[index, [end for end in segment.ends if end < vocabulary]] = True
            self._then[index, : len(segment.then)] = torch.tensor(segment.then, dtype=torch.int64)
        self._then_length = torch.tensor([*(max(len(segment.then) - 1, 0) for segment in segments), 0])
        self._temperature = torch.tensor([*(segment.temperature for segment in segments), 1.0])
        self._until = torch.tensor([*(min(segment.until, length) for segment in segments), length])
        for name in ("_ends", "_then", "_then_length", "_temperature", "_until"):
            setattr(self, name, getattr(self, name).to(self.device))

    def _read(self, rows: int) -> Cache:
        """A cache with the prefix in every row, without its last token, unless that is the only one."""
        prompt = torch.tensor([self.prefix[:-1] or self.prefix], device=self.device).expand(rows, -1)
        output = self.model(input_ids=prompt, use_cache=True, **self._only_last)
        return output.get("cache") or output.get("past_key_values")

    def _fitting_rows(self) -> int:
        limit = GPU_ROWS if self.device.type == "cuda" else CPU_ROWS
        # Layers of linear attention have a state instead of keys and values.
        states = (getattr(layer, name, None) for layer in self._prompt.layers for name in ("keys", "values"))
        present = [state for state in states if state is not None]
        column = sum(state[:, :, 0].numel() * state.element_size() for state in present)
        room = memory_of(self.device).room("keys and values")
        return int(max(1, min(limit, room // max(column * self.length, 1))))

    @torch.no_grad()
    def sample(self, numbers: Iterator[int]) -> Iterator[Sampled]:
        """Write sequences by number, and yield each soon after it has ended, in no particular order.

        `numbers` is asked for the next sequence whenever a row is free, and may end at any time.
        """
        state = self._begin(numbers)
        while state is not None:
            for _ in range(STEPS):
                self._step(state)
            done, positions = state.done.tolist(), state.positions.tolist()
            finished = [row for row, over in enumerate(done) if over and state.numbers[row] is not None]
            begun = [
                position + 1 for position, number in zip(positions, state.numbers, strict=True) if number is not None
            ]
            unfinished = sum(begun) - sum(positions[row] + 1 for row in finished)
            yield from self._taken(state, finished, positions)
            self._on_steps(unfinished)
            state = self._filled(state, finished, numbers)

    def _begin(self, numbers: Iterator[int]) -> _State | None:
        """Rows for the next sequences; None if no sequence is left."""
        first = list(islice(numbers, self.rows))
        if not first:
            return None
        rows = len(first)
        cache = RowCache(self._prompt, rows, self.length, self.device) if self.continuous else self._read(rows)
        state = _State(cache, rows, self.length, len(self.segments), self.device)
        for row, number in enumerate(first):
            self._place(state, row, number)
        return state

    def _place(self, state: _State, row: int, number: int) -> None:
        """Begin a sequence in a row; its keys and values of the prefix are there already."""
        prompt = torch.tensor(self.prefix, device=self.device)
        state.numbers[row] = number
        state.forced[row] = -1
        state.written[row, : len(prompt)] = prompt
        state.begins[row] = 0
        state.begins[row, 0] = len(prompt)
        state.segment[row], state.done[row], state.positions[row] = 0, False, len(prompt) - 1
        state.tokens[row] = prompt[-1]
        random = np.random.default_rng([self.seed, number]).random(self.length, dtype=np.float32)
        state.uniform[row] = torch.from_numpy(random).to(self.device)

    def _step(self, state: _State) -> None:
        """Feed a token to every row and choose the next one. Rows that are done stay where they are."""
        arguments: dict[str, Cache | Tensor] = {self._cache_name: state.cache}
        if isinstance(state.cache, RowCache):
            state.cache.positions = state.positions
            arguments["attention_mask"] = state.cache.mask()
            arguments["position_ids"] = state.positions[:, None]
        output = self.model(input_ids=state.tokens[:, None], use_cache=True, **arguments)
        following = (state.positions + 1).clamp(max=self.length - 1)
        logits = output.logits[:, -1]
        random = state.uniform.gather(1, following[:, None])[:, 0]
        sampled = choose(logits, self._temperature[state.segment], random)
        forced = state.forced.gather(1, following[:, None])[:, 0]
        free = forced < 0
        token = torch.where(free, sampled, forced)
        ended = free & self._ends[state.segment, token] & ~state.done
        then = self._then[state.segment]  # [B, longest + 1]
        token = torch.where(ended & (then[:, 0] >= 0), then[:, 0], token)
        places = (following[:, None] + torch.arange(then.shape[1], device=self.device)).clamp(max=self.length - 1)
        state.forced.scatter_(1, places, torch.where(ended[:, None], then, state.forced.gather(1, places)))
        begin = (following + 1 + self._then_length[state.segment]).clamp(max=self.length)
        state.segment = state.segment + ended.long()
        now = state.begins.gather(1, state.segment[:, None])[:, 0]
        state.begins.scatter_(1, state.segment[:, None], torch.where(ended, begin, now)[:, None])
        old = state.written.gather(1, following[:, None])[:, 0]
        state.written.scatter_(1, following[:, None], torch.where(state.done, old, token)[:, None])
        state.positions = torch.where(state.done, state.positions, following)
        state.tokens = torch.where(state.done, state.tokens, token)
        full = state.positions + 1 >= self._until[state.segment]
        state.done = state.done | (state.segment == len(self.segments)) | full

    def _taken(self, state: _State, rows: list[int], positions: list[int]) -> Iterator[Sampled]:
        if not rows:
            return
        index = torch.tensor(rows, device=self.device)
        written, begins = state.written[index].tolist(), state.begins[index].tolist()
        segments = state.segment[index].tolist()
        for row, tokens, begun, segment in zip(rows, written, begins, segments, strict=True):
            number = state.numbers[row]
            assert number is not None
            tokens = tokens[: positions[row] + 1]  # noqa: PLW2901 - the rest of the room is of no use
            last = min(segment, len(self.segments) - 1)
            ended = segment == len(self.segments)
            stops = [begin - max(len(part.then), 1) for begin, part in zip(begun[1:], self.segments, strict=True)]
            stops[last] = len(tokens) - ended
            parts = (tuple(tokens[begun[index] : stops[index]]) for index in range(last + 1))
            yield Sampled(number, tuple(tokens), tuple(begun[: last + 1]), tuple(parts), ended)
            state.numbers[row] = None

    def _filled(self, state: _State, finished: list[int], numbers: Iterator[int]) -> _State | None:
        """The state for the next steps: finished rows take new sequences, or are dropped if there are none left."""
        if not self.continuous:
            return state if any(number is not None for number in state.numbers) else self._begin(numbers)
        for row in finished:
            if (number := next(numbers, None)) is None:
                break
            self._place(state, row, number)
        active = [row for row, number in enumerate(state.numbers) if number is not None]
        if not active:
            return None
        if 4 * len(active) <= 3 * len(state.numbers):
            state.keep(torch.tensor(active, device=self.device))
        positions = state.positions.tolist()
        state.cache.columns = min(self.length, max(positions) + STEPS + 1)
        return state


def choose(logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """Sample a token from logits [B, V] by inversion; returns [B] int64.

    Each row has a temperature above 0 and a random number in [0, 1), [B].
    """
    total = torch.softmax(logits.float() / temperature[:, None], -1).cumsum_(-1)
    threshold = uniform * total[:, -1]
    return torch.searchsorted(total, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


class _State:
    """The rows of a batch.

    Attributes:
        forced: Tokens that aren't sampled, -1 elsewhere, [B, L].
        written: All tokens so far, [B, L].
        begins: Position at which each segment begins, [B, S + 1].
        segment: Index of the present segment; S after the last one, [B].
        positions: Position of `tokens`, the last tokens, [B].
        uniform: Random number for each position, [B, L].
        numbers: Number of the sequence in each row; None if the row is free.
    """

    def __init__(self, cache: Cache, rows: int, length: int, segments: int, device: torch.device) -> None:
        self.cache = cache
        self.forced = torch.full((rows, length), -1, device=device)
        self.written = torch.zeros(rows, length, dtype=torch.int64, device=device)
        self.begins = torch.zeros(rows, segments + 1, dtype=torch.int64, device=device)
        self.uniform = torch.zeros(rows, length, device=device)
        self.segment = torch.zeros(rows, dtype=torch.int64, device=device)
        self.positions = torch.zeros(rows, dtype=torch.int64, device=device)
        self.tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self.done = torch.ones(rows, dtype=torch.bool, device=device)
        self.numbers: list[int | None] = [None] * rows

    def keep(self, rows: Tensor) -> None:
        """Keep some rows only."""
        for name in ("forced", "written", "begins", "uniform", "segment", "positions", "tokens", "done"):
            setattr(self, name, getattr(self, name)[rows])
        self.numbers = [self.numbers[row] for row in rows.tolist()]
        self.cache.keep(rows)
