"""A causal LM as a sequence of blocks that can be run and swapped one by one.

The arguments of a block (masks, rotary embeddings, cache positions) differ between families. So they are recorded: the
model's forward is run with recorders in place of its blocks. Likewise, the computation from the last block to the
logits (norm, head, soft caps) is the model's forward, run on a stored residual stream.

Letters: b sequences, t tokens, m residual width, v vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from darwinlm.model.families.block_parts import chained, has_part, is_removed, part_of, put_part
from darwinlm.model.families.ending import outputs_of
from darwinlm.model.families.family import Family
from darwinlm.model.families.parts import ModuleKind, Part
from darwinlm.model.walk import items
from darwinlm.model.walk.apart import apart
from darwinlm.model.walk.hidden import HiddenMemory, HiddenStates
from darwinlm.runtime.compute import exact, to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BlockArguments = dict[str, object]
"""Keyword arguments of a block's call, by name: masks, rotary embeddings, caches, and others of the family."""

LOGIT_TOKENS, FEWEST_TOKENS = 512, 16
"""Most and fewest tokens whose logits over the whole vocabulary are computed at once."""
CPU_LOGITS = 24 << 20
"""Maximum bytes of such logits on a CPU. glibc returns larger allocations to the system each time, and page faults are
slow."""

LARGE = 1e4
"""Size of artificial logits, far above any soft cap."""


def head_tokens(logits: int, *, on_cpu: bool) -> int:
    """Tokens whose logits over the whole vocabulary are computed at once, from the bytes of those of one."""
    return max(min(CPU_LOGITS // logits, LOGIT_TOKENS), FEWEST_TOKENS) if on_cpu else LOGIT_TOKENS


class _AllRecorded(Exception):  # noqa: N818
    """Ends a forward pass once everything is recorded."""


def input_of(module: nn.Module, call: Callable[[], object]) -> Tensor:
    """The first input that a call passes to a module. The call ends there."""
    inputs: list[Tensor] = []

    def note(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        inputs.append(arguments[0])
        raise _AllRecorded

    with module.register_forward_pre_hook(note), suppress(_AllRecorded):
        call()
    return inputs[0]


class _Recorder(nn.Module):
    """Replaces a block and records its arguments."""

    def __init__(self, calls: list[tuple[Tensor, BlockArguments]], names: Sequence[str], *, last: bool) -> None:
        super().__init__()
        self.calls = calls
        self.names = names  # of the block's arguments after the residual stream
        self.last = last

    def forward(self, hidden: Tensor, *positional: object, **named: object) -> Tensor:
        self.calls.append((hidden, {**dict(zip(self.names, positional, strict=False)), **named}))
        if self.last:
            raise _AllRecorded
        return hidden


class KnownResult(nn.Module):
    """Replaces a module whose result is known."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result

    def forward(self, *_: object, **__: object) -> object:
        """The result, whatever the arguments."""
        return self.result


def finished(part: Part, result: Tensor) -> nn.Module:
    """A replacement of a sub-layer whose output [b, t, m] is known."""
    known = KnownResult((result, None) if part.pair else result)
    return chained(part, [known]) if part.chain else known


class Decoder:
    """Access to the blocks of a causal LM of transformers in evaluation mode, which is never copied.

    Attributes:
        linked: Whether the arguments of a block depend on the tokens, and hold what earlier blocks computed.
        owner: The process of a block, if several share its blocks: they must then walk together.
    """

    owner: Callable[[int], int] | None = None

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        if getattr(model.config, "output_router_logits", False):
            model.config = copy.copy(model.config)
            model.config.output_router_logits = False  # the balancing loss needs every block to have run
        self.model = model
        self.family = family
        self.blocks: nn.ModuleList = model.get_submodule(family.layers)
        self.linked = family.linked(model.config)
        self._arguments: dict[tuple[int, int], list[BlockArguments]] = {}
        self._norms: dict[tuple[int, str], nn.Module] = {}  # that were taken out of a block

    @property
    def device(self) -> torch.device:
        """Device of the embedding, and so of the tokens."""
        device: torch.device = next(self.model.get_submodule(self.family.embedding).parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the residual stream and of the modules' computations."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    def walk(self, blocks: Iterable[int]) -> Iterator[int]:
        """Yield blocks in this order; each one has its weights while it is visited."""
        yield from blocks

    @torch.no_grad()
    def through(
        self, batches: Sequence[Tensor], *, keep: Sequence[int] = (), memory: HiddenMemory | None = None
    ) -> HiddenStates:
        """The residual stream of batches of tokens after the last block, in one walk.

        Batches are [b, t]; the stream is [b, t, m]. `keep` is the number of last positions of each batch to keep; by
        default, all positions are kept. Raises StorageError if the disk has no room for a stream in a file.
        """
        hidden = HiddenStates(
            (self.embed(batch) for batch in batches),
            sum(batch.numel() for batch in batches) * int(self.model.config.hidden_size),
            memory,
        )
        self.move(hidden, [self.block_arguments(batch) for batch in batches])
        if not keep:
            return hidden
        return HiddenStates((batch[:, -last:] for batch, last in zip(hidden, keep, strict=True)), hidden.elements)

    @torch.no_grad()
    def move(
        self,
        hidden: HiddenStates,
        arguments: Sequence[Sequence[BlockArguments]],
        visiting: Callable[[int], AbstractContextManager[object]] = nullcontext,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Move a stream through all blocks, with the arguments of each of its batches by block.

        `visiting` surrounds the work of a block; `check` is called before each batch.
        """
        for block in self.walk(range(len(self.blocks))):
            with visiting(block):
                for index, by_block in enumerate(arguments):
                    check()
                    hidden[index] = self.run_block(block, hidden[index], by_block[block])

    def back(
        self,
        inputs: list[HiddenStates],
        gradients: HiddenStates,
        arguments: Callable[[int, int], BlockArguments],
        visiting: Callable[[int], AbstractContextManager[object]] = nullcontext,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[int]:
        """Move gradients from behind the last block to the first; yields each block that they have passed.

        A block's forward pass is repeated with gradients. `inputs` are the streams before every block; the list is
        emptied from its end. `arguments` gives those of a batch (first index) in a block (second index). `visiting`
        surrounds the work of a block; `check` is called before each batch.
        """
        for block in self.walk(reversed(range(len(self.blocks)))):
            with visiting(block):
                for index, hidden in enumerate(inputs.pop()):
                    check()
                    with torch.enable_grad():
                        before = hidden.detach().requires_grad_()
                        after = self.run_block(block, before, arguments(index, block))
                    if after.grad_fn is not None:  # an empty block returns its input
                        (gradients[index],) = torch.autograd.grad(after, before, gradients[index])
            yield block

    def reserve(self, room: int, among: int = 1) -> None:
        """Leave `room` bytes of the device free from now on. No effect here, since the whole model stays loaded."""

    @property
    def cached_bytes(self) -> float:
        """Bytes of the device that all blocks would take that are read again otherwise."""
        return 0.0

    @property
    def head_module(self) -> nn.Linear | None:
        """The output projection; None if the model has none."""
        return self.model.get_submodule(self.family.head) if self.family.head else None

    @property
    def head_tokens(self) -> int:
        """Tokens whose logits over the whole vocabulary are computed at once."""
        outputs = int(self.model.config.hidden_size) if self.head_module is None else len(self.head_module.weight)
        return head_tokens(outputs * self.dtype.itemsize, on_cpu=self.device.type == "cpu")

    @contextmanager
    def with_head(self, like: object = None) -> Iterator[None]:
        """Hold the head while the body runs. The head of `like`, a similar decoder, is shared if it is equal."""
        yield

    @torch.no_grad()
    def embed(self, tokens: Tensor) -> Tensor:
        """Residual stream before the first block, [b, t] -> [b, t, m]."""
        return self._record(tokens)[0][0]

    def block_arguments(self, tokens: Tensor) -> list[BlockArguments]:
        """Arguments of each block's call, for unpadded tokens of this shape [b, t].

        If blocks are linked, or the tokens are items (`items.py`), the arguments belong to these tokens and to one pass
        through the blocks.
        """
        if self.linked or items.is_marked(tokens):
            return [arguments for _, arguments in self._record(tokens)]
        shape = (tokens.shape[0], tokens.shape[1])
        if shape not in self._arguments:
            self._arguments[shape] = [arguments for _, arguments in self._record(tokens)]
        return self._arguments[shape]

    @torch.no_grad()
    def _record(self, tokens: Tensor) -> list[tuple[Tensor, BlockArguments]]:
        calls: list[tuple[Tensor, BlockArguments]] = []
        count = len(self.blocks)
        family_class = getattr(type(self.blocks[0]), "_parent", type(self.blocks[0]))
        names = list(inspect.signature(family_class.forward).parameters)[2:]  # after self and the residual stream
        with self._stand_ins({i: _Recorder(calls, names, last=i == count - 1) for i in range(count)}):
            try:
                ids = to_device(items.ids(tokens), self.device)
                self.model(input_ids=ids, use_cache=False, **self._places(tokens))
            except _AllRecorded:
                return calls
        raise AssertionError("the model's forward never reached its last block")

    def _places(self, tokens: Tensor) -> dict[str, object]:
        """What keeps items in tokens [b, t] apart, if they are items; else the model counts positions itself."""
        return apart(self.model, to_device(tokens, self.device)) if items.is_marked(tokens) else {}

    def run_block(self, block: int, hidden: Tensor, arguments: BlockArguments) -> Tensor:
        """One block, [b, t, m] -> [b, t, m]."""
        output = self.blocks[block](hidden, **arguments)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def head(self, hidden: Tensor) -> Tensor:
        """What the model gives for residual streams after the last block, [n, m]: logits [n, v], scores or states."""
        stand_ins: dict[int, nn.Module] = {i: KnownResult(hidden[None]) for i in range(len(self.blocks))}
        with self._stand_ins(stand_ins):
            token = to_device(torch.zeros(1, 1, dtype=torch.int64), self.device)
            outputs = outputs_of(self.model, self.family.ending, input_ids=token, use_cache=False)
        return outputs[0]

    def head_inputs(self, hidden: Tensor) -> Tensor:
        """Inputs of the output embedding, [n, m], for residual streams after the last block, [n, m]."""
        assert self.head_module is not None
        return input_of(self.head_module, lambda: self.head(hidden))[0]

    @torch.no_grad()
    def logit_scale(self) -> float | None:
        """Factor on the results of the output embedding; None if the logits aren't a multiple of them."""
        artificial: list[Tensor] = []

        def replace(_: nn.Module, __: object, output: Tensor) -> Tensor:
            artificial.append(torch.linspace(-LARGE, LARGE, output.numel(), dtype=output.dtype, device=output.device))
            return artificial[0].view(output.shape)

        assert self.head_module is not None
        hook = self.head_module.register_forward_hook(replace)
        try:
            hidden = torch.zeros(1, self.model.config.hidden_size, dtype=self.dtype, device=self.device)
            logits = exact(self.head(hidden).flatten()).double()
        finally:
            hook.remove()
        outputs = exact(artificial[0]).double()
        scale = float(logits @ outputs / (outputs @ outputs))  # over all entries, so that rounding averages out
        return scale if torch.allclose(logits, scale * outputs, rtol=2.0**-6, atol=0.0) else None

    @contextmanager
    def _stand_ins(self, stand_ins: dict[int, nn.Module]) -> Iterator[None]:
        originals = {i: self.blocks[i] for i in stand_ins}
        try:
            for i, stand_in in stand_ins.items():
                if (kind := getattr(originals[i], "attention_type", None)) is not None:
                    stand_in.attention_type = kind  # by which some models choose a block's mask
                self.blocks[i] = stand_in
            yield
        finally:
            for i, original in originals.items():
                self.blocks[i] = original

    @contextmanager
    def without_tail(self, block: int) -> Iterator[None]:
        """Let a block end after its MLP."""
        tail, module = self.family.tail, self.blocks[block]
        if tail is None:
            yield
            return
        scale, width = getattr(module, tail.scale), getattr(module, tail.width)
        setattr(module, tail.scale, torch.ones_like(scale))
        setattr(module, tail.width, 0)
        try:
            yield
        finally:
            setattr(module, tail.scale, scale)
            setattr(module, tail.width, width)

    def has(self, block: int, kind: ModuleKind) -> bool:
        """Whether a block has a module of this kind, even one that was replaced."""
        return has_part(self.blocks[block], self.family.module(kind))

    def module(self, block: int, kind: ModuleKind) -> nn.Module:
        """The current module of this kind of a block."""
        return part_of(self.blocks[block], self.family.module(kind))

    def set_module(self, block: int, kind: ModuleKind, module: nn.Module) -> None:
        """Replace the module of this kind of a block."""
        put_part(self.blocks[block], self.family.module(kind), module)
        self._settle_norms(block)

    def _settle_norms(self, block: int) -> None:
        """Take out the norms that removed sub-layers leave (`SubLayer.sum_norm`) while a block has none left."""
        layer, parts = self.blocks[block], [self.family.module(kind) for kind in self.family.kinds]
        empty = all(is_removed(part_of(layer, part)) for part in parts if part.sum_norm is not None)
        for name in (part.sum_norm for part in parts if part.sum_norm is not None):
            present = layer.get_submodule(name)
            if empty and not isinstance(present, nn.Identity):
                self._norms[block, name] = present
                layer.set_submodule(name, nn.Identity())
            elif not empty and (block, name) in self._norms:
                layer.set_submodule(name, self._norms.pop((block, name)))
