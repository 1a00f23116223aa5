"""A decoder whose weights are read from the checkpoint when a walk reaches them; they stay where there is room.

A walk holds one block, and on a GPU the next one, which is copied meanwhile. The head is read like a block. Of
embeddings, only the rows that some text uses are loaded, for the whole life of the decoder.

Processes that walk together can share the blocks: each block has an owner, which reads it and sends it to the others.
Where not all blocks have room, each process keeps its own ones, so that together they may hold a model that is larger
than the memory of each.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.shard_reading import in_memory
from darwinlm.model.walk import items
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.transfers import Arriving, Mover, pinned, pinned_like
from darwinlm.runtime import parallel
from darwinlm.runtime.amounts import size
from darwinlm.runtime.errors import DeviceMemoryError
from darwinlm.runtime.memory import Bounded, all_bytes, memory_of

HEAD = -1
"""The head among the blocks that stay."""


class StreamedDecoder(Decoder):
    """The decoder of a checkpoint on some text.

    `tokens` are all tokens that it will embed; other tokens would get wrong rows. `dtype` and `device` are those of the
    forward pass. `weights` gives the weights of a block by their names in it; by default, they are the checkpoint's. A
    `lender` is a decoder of the same checkpoint that has a block loaded whenever this one loads it: it is then shared.
    Processes share blocks by `owner`, as `share` says. Raises DeviceMemoryError if a block doesn't fit on the device.

    Attributes:
        params: Number of parameters of the whole model; a tied embedding counts once.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokens: Tensor,
        *,
        dtype: torch.dtype,
        device: torch.device,
        weights: Callable[[int], dict[str, Tensor]] | None = None,
        lender: StreamedDecoder | None = None,
        owner: Callable[[int], int] | None = None,
    ) -> None:
        super().__init__(checkpoint.skeleton(dtype), checkpoint.family)
        self.checkpoint = checkpoint
        self.params = sum(parameter.numel() for parameter in self.model.parameters())
        largest = max(sum(weight.numel() for weight in block.parameters()) for block in self.blocks) * dtype.itemsize
        total = all_bytes(device)
        if largest > total:
            raise DeviceMemoryError(
                f"a block of {checkpoint.source} takes {size(largest)}, but {device} has {size(total)}: use a device "
                "with more memory, or compute.device=cpu"
            )
        self._lender = lender
        self._given_weights = weights  # no method of its own, which would keep the decoder in a cycle
        # Noted now, since a thread reads a block while others stand in for it.
        self._names = [frozenset(block.state_dict()) for block in self.blocks]
        self._dtype = dtype
        self._mover, self._thread = None, None
        if device.type == "cuda":  # a new thread's GPU is the first one, where it would take memory
            self._mover = Mover(device)
            self._thread = ThreadPoolExecutor(1, initializer=torch.cuda.set_device, initargs=(device,))
        self._arriving: dict[int, Future[dict[str, Arriving]]] = {}
        self._loaded: set[int] = set()
        self._head_uses = 0
        memory = memory_of(device)
        self._staying: Bounded[int, list[Tensor]] = memory.watch(
            Bounded(
                lambda weights: sum(weight.nbytes for weight in weights),
                partial(memory.room, "blocks"),
                scanned=True,
                dropped=partial(_release, weakref.ref(self)),
            )
        )
        self.share(owner)
        self._load_outside(torch.unique(items.ids(tokens)), device)

    def _load_outside(self, used: Tensor, device: torch.device) -> None:
        """Load rows of embeddings and the small parts outside the blocks, and prepare a separate head."""
        family, tail = self.family, self.family.tail
        for name, module in self.model.named_modules():
            if not name.startswith(family.layers):
                for key, buffer in module.named_buffers(recurse=False):
                    module._buffers[key] = buffer.to(device)
        head, embedding = self.head_module, self.model.get_submodule(family.embedding)
        self._head_from = family.head
        if head is not None:
            if head.weight is embedding.weight:
                self._head_from = family.embedding
            head.weight = nn.Parameter(head.weight.detach(), requires_grad=False)  # no longer tied
        embeddings = [family.embedding]
        if tail is not None and getattr(self.checkpoint.config, tail.width):
            embeddings.append(tail.embedding)
        for name in embeddings:
            embedding = self.model.get_submodule(name)
            rows = self.checkpoint.rows(f"{name}.weight", used, dtype=self._dtype).to(device)
            embedding.weight, embedding.padding_idx = nn.Parameter(rows, requires_grad=False), None
            embedding.register_forward_pre_hook(partial(_row_indices, used.to(device)))
        large = tuple(f"{name}." for name in (*embeddings, family.head) if name)
        for name in self.checkpoint.names_outside_blocks():
            owner, _, leaf = name.rpartition(".")
            if not name.startswith(large) and leaf in self.model.get_submodule(owner)._parameters:
                tensor = self.checkpoint.read(name, dtype=self._dtype)[""].to(device)
                setattr(self.model.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the residual stream and of the modules' computations."""
        return self._dtype

    def share(self, owner: Callable[[int], int] | None) -> None:
        """Let the process that `owner` gives for a block read it and send it to the others; None if each reads all.

        All processes must then walk through the same blocks, inside `parallel.agree`. A decoder with a lender reads
        nothing, so it shares nothing either.
        """
        self.owner = owner if parallel.size() > 1 and self._lender is None else None
        self._keeps_all = self.owner is None or self._staying.has_room(int(self.cached_bytes))

    def reserve(self, room: int, among: int = 1) -> None:
        """Leave `room` bytes of the device free from now on; `among` decoders share what remains."""
        for block in [*self._loaded]:
            self.unload(block)
        self._arriving.clear()
        self._staying.reserve(room, among)
        self.share(self.owner)

    @property
    def cached_bytes(self) -> float:
        """Bytes of all blocks and the head."""
        parts = [self.blocks] if self.head_module is None else [self.blocks, self.head_module]
        return float(sum(weight.numel() for part in parts for weight in part.parameters())) * self._dtype.itemsize

    def walk(self, blocks: Iterable[int]) -> Iterator[int]:
        """Yield blocks in this order; each one has its weights while it is visited."""
        order = list(blocks)
        try:
            for position, block in enumerate(order):
                self.load(block, *order[position + 1 :])
                yield block
                self._leave(block, list(self.blocks[block].parameters()))
        finally:  # a block that was fetched for a walk that failed would take memory from the next one
            self._arriving.clear()

    def load(self, block: int, *following: int) -> dict[str, Tensor]:
        """Load a block; on a GPU, the next of the `following` ones is read and copied while it is used.

        Of blocks that processes share, each one reads its own next one. Returns the weights that were read, in the
        checkpoint's type; none if the block was loaded already, or was sent by another process.
        """
        if self._lender is not None:
            self._borrow(block, self._lender)
            return {}
        own, ahead = self._is_own(block), next(filter(self._is_own, following), None)
        if ahead is not None and not own:  # while the owner of this one reads it
            self._fetch(ahead)
        read = self._load_own(block) if self.owner is None else self._share(block, self.owner(block))
        if ahead is not None:
            self._fetch(ahead)
        return read

    def _is_own(self, block: int) -> bool:
        """Whether this process reads a block."""
        return self.owner is None or self.owner(block) == parallel.place()

    def _share(self, block: int, owner: int) -> dict[str, Tensor]:
        """Load a block that its owner sends to all processes, unless all have it."""
        read = self._load_own(block) if self._is_own(block) else {}
        module = self.blocks[block]
        held = module.state_dict() if block in self._loaded else {}
        met = parallel.meet((block in self._loaded, parallel.forms_of(held)))
        if all(loaded for loaded, _ in met):
            return read
        weights = parallel.send_named(held, met[owner][1], owner, self.device)
        if block not in self._loaded:
            module.load_state_dict(weights, assign=True)
            self._loaded.add(block)
        return read

    def _load_own(self, block: int) -> dict[str, Tensor]:
        if block in self._loaded:
            return {}
        if self._mover is None:
            read = self._read(block)
        else:
            self._fetch(block)
            arriving = self._arriving.pop(block).result()
            read = {name: self._mover.take(copy) for name, copy in arriving.items()}
        prefix = self.checkpoint.block_prefix(block)
        cast = {
            name: self.checkpoint.cast(prefix + name, tensor.to(self.device), self._dtype)
            for name, tensor in read.items()
        }
        self.blocks[block].load_state_dict(cast, assign=True)
        self._loaded.add(block)
        return read

    def _borrow(self, block: int, lender: StreamedDecoder) -> None:
        """Share a block's weights. Either decoder may replace some of its own afterwards."""
        if block not in self._loaded:
            assert block in lender._loaded, "the lender's stream is moved first"
            self.blocks[block].load_state_dict(lender.blocks[block].state_dict(), assign=True)
            self._loaded.add(block)

    def unload(self, block: int) -> None:
        """Release the weights of a block or of the head."""
        module = self.head_module if block == HEAD else self.blocks[block]
        if module is not None:
            module.to("meta")
        self._loaded.discard(block)

    @contextmanager
    def with_head(self, like: object = None) -> Iterator[None]:
        """Hold the head while the body runs. The head of `like`, a similar decoder, is shared if it is equal."""
        head = self.head_module
        if head is not None and HEAD not in self._loaded:
            self._load_head(head, like)
        self._head_uses += 1
        try:
            yield
        finally:
            self._head_uses -= 1
            if head is not None and not self._head_uses:
                self._leave(HEAD, list(head.parameters()))

    def _load_head(self, head: nn.Linear, like: object) -> None:
        if self._lender is not None and HEAD in self._lender._loaded:
            assert self._lender.head_module is not None, "the lender is of the same checkpoint"
            head.load_state_dict(self._lender.head_module.state_dict(), assign=True)
            self._loaded.add(HEAD)
            return
        like_head = like.head_module if isinstance(like, StreamedDecoder) else None
        for leaf, owner in (("weight", self._head_from), ("bias", self.family.head)):
            if getattr(head, leaf, None) is not None:
                tensor = self.checkpoint.read(f"{owner}.{leaf}", dtype=self._dtype)[""].to(self.device)
                shared: Tensor | None = getattr(like_head, leaf, None)
                if shared is None or shared.is_meta or not torch.equal(shared, tensor):
                    shared = tensor
                setattr(head, leaf, nn.Parameter(shared.detach(), requires_grad=False))
        self._loaded.add(HEAD)

    def _from_checkpoint(self, block: int) -> dict[str, Tensor]:
        """A block's weights as they are stored; for a GPU, they are read into pinned memory."""
        empty = in_memory if self._mover is None else pinned
        return self.checkpoint.read(self.checkpoint.block_prefix(block), mapped=False, empty=empty)

    def _read(self, block: int) -> dict[str, Tensor]:
        names = self._names[block]  # older checkpoints contain buffers that models compute
        weights = (self._given_weights or self._from_checkpoint)(block)
        return {name: tensor for name, tensor in weights.items() if name in names}

    def _fetch(self, block: int) -> None:
        missing = block in range(len(self.blocks)) and block not in self._loaded and block not in self._arriving
        if self._thread is not None and missing:
            self._arriving[block] = self._thread.submit(self._send, block)

    def _send(self, block: int) -> dict[str, Arriving]:
        """Read a block, and begin to copy it to the device."""
        assert self._mover is not None
        return {
            name: self._mover.fetch(host if host.is_pinned() else pinned_like(host).copy_(host))
            for name, host in self._read(block).items()
        }

    def _leave(self, block: int, weights: list[Tensor]) -> None:
        """Keep a block or the head if there is room, or release it."""
        if self._staying.get(block) is not None:
            return
        others = block != HEAD and not self._is_own(block)
        if (others and not self._keeps_all) or not self._staying.put(block, weights):
            self.unload(block)


def _release(decoder: weakref.ref[StreamedDecoder], block: int) -> None:
    """Release a block or the head, without a cycle that would keep the decoder's memory."""
    alive = decoder()
    if alive is not None:
        alive.unload(block)


def _row_indices(used: Tensor, _: nn.Module, ids: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Indices of tokens [b, t] in the sorted tokens [n] whose rows are loaded; a hook before an embedding's call."""
    return (torch.searchsorted(used, ids[0]).clamp_(max=len(used) - 1),)
