"""Time whole models of given sizes on the present device, in their saved form but with random weights.

On a CUDA device decoding is timed as a CUDA graph (`graphs.py`), elsewhere in eager mode.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shapes import ModuleShape
from darwinlm.model.layer_sizes import ModuleSizes, Place
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.surgery.layer_table import layer_table
from darwinlm.model.surgery.smaller_config import smaller_config
from darwinlm.model.surgery.smaller_model import empty_model
from darwinlm.model.units.levels import with_owners
from darwinlm.runtime.compute import now
from darwinlm.steps.budget.budget_settings import BudgetSettings
from darwinlm.steps.latency.graphs import GraphedDecoding, cache_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DECODE_STEPS = 8
"""Number of decoded tokens whose median time is used for all."""

STEADY = 0.01
"""Standard error of the ratio of times at which timing ends."""

PATIENCE = 3
"""Largest factor on the number of passes if the ratios disagree."""


class Timing(NamedTuple):
    """Time of a model relative to the dense one (median of paired passes), and the dense one's in seconds."""

    ratio: float
    seconds: float


@dataclass
class TimedModel:
    """A model whose passes are timed, and its decoding, once it is recorded as a CUDA graph."""

    model: PreTrainedModel
    decoding: GraphedDecoding | None = None


class ModelTimer:
    """Times models alternately with the dense one, so that drift of the machine affects both.

    The budget states the request; the checkpoint's weights aren't read. `runs` is the number of timed passes of each
    model, up to three times as many if the machine's speed changes. `tokens` is the smallest number of tokens of a
    timed model; None times all with the whole vocabulary.

    Attributes:
        rows: Number of tokens of the dense model.
        graphs: Whether decoding is timed as a CUDA graph; False after a graph of a model couldn't be recorded.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        shapes: Mapping[Place, ModuleShape],
        budget: BudgetSettings,
        *,
        dtype: torch.dtype,
        device: torch.device,
        runs: int,
        tokens: int | None = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.shapes = shapes
        self.budget = budget
        self.dtype = dtype
        self.device = device
        self.runs = runs
        self.graphs = device.type == "cuda"
        # A model that reads texts one by one never decodes, and the head is not asked for all of its tokens.
        self.reads = objective_of(checkpoint).reads
        self.decode_tokens = 0 if self.reads else budget.decode_tokens
        self._reference: TimedModel | None = None
        generator = torch.Generator().manual_seed(0)
        self._noise = torch.randn(1 << 16, generator=generator).mul_(0.02).to(dtype)
        length = max(budget.prefill_tokens, 1) + self.decode_tokens // 2
        self.rows = int(checkpoint.config.vocab_size)
        self._tokens = torch.randint(tokens or self.rows, (1, length), generator=generator).to(device)

    def compare(self, dense: ModuleSizes, modules: ModuleSizes, tokens: int) -> Timing:
        """Time a model with these modules and so many tokens against the dense one; other modules are removed."""
        reference = self._reference
        if reference is None:
            reference = self._reference = TimedModel(self.build(dense, self.rows))
            self.seconds(reference)
        timed = TimedModel(self.build(modules, tokens))
        self.seconds(timed)
        pairs: list[tuple[float, float]] = []
        ratios: list[float] = []
        while len(ratios) < self.runs or (len(ratios) < PATIENCE * self.runs and not steady(ratios)):
            pairs.append((self.seconds(reference), self.seconds(timed)))
            ratios = [time / dense_time for dense_time, time in pairs]
        return Timing(statistics.median(ratios), statistics.median(dense_time for dense_time, _ in pairs))

    def build(self, modules: ModuleSizes, tokens: int) -> PreTrainedModel:
        """A model with modules of the given sizes and so many tokens; other modules are removed."""
        # Which query heads stay isn't known yet and hardly affects the time, so use the first ones.
        owned = {
            place: with_owners(self.shapes[place], sizes, torch.arange(sizes.width)) for place, sizes in modules.items()
        }
        table = layer_table(self.checkpoint.family, self.checkpoint.n_blocks, owned)
        config = smaller_config(self.checkpoint, table)
        if tokens < self.rows:
            config.vocab_size, config.pad_token_id = tokens, None  # the padding's number may be among those that go
            if (tail := self.checkpoint.family.tail) is not None:
                setattr(config, tail.vocabulary, tokens)
        model = empty_model(config, self.checkpoint)
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                values = self._noise.repeat(-(-parameter.numel() // len(self._noise)))[: parameter.numel()]
                filled = values.view(parameter.shape).clone()
                module.register_parameter(name, nn.Parameter(filled, requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_meta:  # a saved one, such as a factor or a router's correction
                    module.register_buffer(name, torch.ones_like(buffer, device="cpu"))
        model.tie_weights()
        return model.to(self.device)

    @torch.inference_mode()
    def seconds(self, timed: TimedModel) -> float:
        """Time of one pass: the prompt, and the generated tokens."""
        model = timed.model
        prompt = max(self.budget.prefill_tokens, 1)
        begun = now(self.device)
        if self.reads:
            last = {"logits_to_keep": 1} if self.checkpoint.answers else {}
            model(input_ids=self._tokens[:, :prompt], use_cache=False, **last)
            return now(self.device) - begun
        output = model(input_ids=self._tokens[:, :prompt], use_cache=True, logits_to_keep=1)
        total = now(self.device) - begun if self.budget.prefill_tokens else 0.0
        if not self.decode_tokens:
            return total
        graphed = self._graph_of(timed)
        if graphed is not None:
            graphed.rewind()
            step: Callable[[], object] = graphed.step
        else:
            cache = {cache_name(model): output.past_key_values}
            if self._tokens.shape[1] > prompt:  # tokens are timed with a cache of average length
                model(input_ids=self._tokens[:, prompt:], use_cache=True, logits_to_keep=1, **cache)
            step = functools.partial(model, input_ids=self._tokens[:, :1], use_cache=True, **cache)
        steps = []
        for _ in range(min(DECODE_STEPS, self.budget.decode_tokens)):
            begun = now(self.device)
            step()
            steps.append(now(self.device) - begun)
        return total + self.budget.decode_tokens * statistics.median(steps)

    def _graph_of(self, timed: TimedModel) -> GraphedDecoding | None:
        """A model's decoding as a CUDA graph; None if graphs aren't available, then also for later models."""
        if not self.graphs:
            return None
        if timed.decoding is None:
            try:
                timed.decoding = GraphedDecoding(timed.model, self._tokens, DECODE_STEPS)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:
                self.graphs = False
                if self._reference is not None:
                    self._reference.decoding = None
        return timed.decoding


def steady(ratios: Sequence[float]) -> bool:
    """Whether the standard error of the ratios' median is small enough; a single ratio always is."""
    middle = statistics.median(ratios)
    spread = statistics.median(abs(ratio - middle) for ratio in ratios)
    # For normal errors, the deviation is 1.48 median distances, and a median has 1.25 times the error of a mean.
    return 1.25 * 1.48 * spread / math.sqrt(len(ratios)) <= STEADY * middle
