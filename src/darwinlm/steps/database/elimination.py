"""Backward elimination of units: the loop of `order`, which explains the letters r, d, n, u, m, H, S, C and G.

Let the weights be optimal on the columns kept so far. Removing unit g (u columns), with the other columns at their new
optimum, adds ``tr(C_gg⁻¹ G_gg)`` to the squared output error. Each step removes the cheapest unit. Then::

    W ← W (I - E),   C ← C - Qᵀ Q,   G ← (I - E)ᵀ G (I - E) = G - Pᵀ A - Aᵀ P
    with  C_gg = K Kᵀ,  Q = K⁻¹ C_g:,  P = K⁻ᵀ Q = C_gg⁻¹ C_g:,  E = e_g P,  A = G_g: - ½ G_gg P

W is never recomputed, since C and G are enough. Their updates have rank u and 2u. They are collected as lists of rows
and applied many at a time as matrix products. A step needs only rows g of C and G, rebuilt from the pending terms, and
the diagonal blocks of all units, which are updated at once.

A step takes 20 kernels, most of which are shorter than their launch. On CUDA the step for single columns is a CUDA
graph, recorded whenever the size of the arrays changes. It works on tensors of fixed size, and counts on the device.
Larger units are removed in few steps, by cuSOLVER, which can't be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Final

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from darwinlm.runtime.cuda_graph import recorded
from darwinlm.runtime.errors import first_line

ROWS: Final = 256
"""Rows of a matrix that are processed at once to save memory."""

COMPACTED: Final = (1 / 8, 1)
"""Share and number of removed units from which on the arrays are compacted."""

RECORDED: Final = (1 / 4, 1024)
"""The same where steps are recorded again for the new size: d = 11,008 then has 8 recordings and not 28."""

GPU_LAUNCHES: Final = 20
"""Kernels of a step on a GPU."""

SHORT_STEP: Final = 1e7
"""Maximum number of operations in a step that runs on one CPU thread.

Threads gain little on operations of microseconds, and on a busy machine they wait for each other. On two cores shared
with two other jobs, d = 4096 took 100 s with two threads throughout and 33 s with one thread for the steps. The
inversion and the matrix products use all threads.
"""


def eliminate(
    C: Float[Tensor, "d d"], G: Float[Tensor, "d d"], n: int, delay: int
) -> tuple[Int64[Tensor, " {n}"], Float64[Tensor, " {n}"]]:
    """Remove all units, cheapest first.

    Args:
        C: [d, d], inverse second moment with the columns of each unit adjacent, contiguous; overwritten.
        G: [d, d], Gram matrix of the weights in the same order, contiguous; overwritten.
        n: Number of units, each d / n neighbouring columns.
        delay: Columns removed between two applications of the pending updates.

    Returns:
        [n] int64 units, the first one removed first, and [n] float64 costs.
    """
    d = len(C)
    state = _Elimination(C, G, n, max(1, delay * n // d))
    all_threads = torch.get_num_threads()
    with _threads(all_threads if 6 * delay * d * (d // n) > SHORT_STEP else 1):
        for number in range(n):
            if state.pending == state.steps:
                with _threads(all_threads):
                    state.flush()
            state.step(last=number + 1 == n)
    return state.removed()


def why_not_recorded() -> str:
    """Why steps of this process couldn't be recorded as a CUDA graph and are launched kernel by kernel; or empty."""
    return _Elimination.failure


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Use `count` CPU threads inside the body."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Elimination:
    """C and G with their pending updates.

    Attributes:
        failure: Reason why steps can't be recorded on this machine; empty until recording fails.
        ids: [m] int64, unit at each index of the arrays.
        blocks: [2, m, u, u], diagonal blocks of C, and half of those of G, of which only the symmetric part matters.
        pending: Number of steps since the last flush.
        slot: [1] int64, the same number on the device.
        terms: [3, steps, u, m * u], Q, P and A of the pending steps; `newest` are those of one step.
    """

    failure: ClassVar[str] = ""

    def __init__(self, C: Float[Tensor, "d d"], G: Float[Tensor, "d d"], n: int, steps: int) -> None:
        self.C, self.G = C, G
        device = C.device
        self.u = len(C) // n
        self.steps = steps
        self.ids = torch.arange(n, device=device)
        self.offsets = torch.arange(self.u, device=device)
        self.eye = torch.eye(self.u, dtype=self.C.dtype, device=device)[None]
        self.removed_block = torch.stack([C.new_full((1, 1, 1), value) for value in (1, torch.inf)])
        self.recordable = self.u == 1 and device.type == "cuda"
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        self.places = torch.zeros(steps, dtype=torch.int64, device=device)
        self.costs = C.new_zeros(steps)
        self.pending = 0
        self._removed: list[tuple[Tensor, Tensor]] = []
        self._reset()

    def _reset(self) -> None:
        """Allocate everything that depends on the size of the arrays: diagonal blocks, marks and pending terms."""
        m, u = len(self.ids), self.u
        self._replay: Callable[[], object] | None = None
        self.blocks = torch.stack(
            [X.view(m, u, m, u).diagonal(dim1=0, dim2=2).permute(2, 0, 1) for X in (self.C, self.G)]
        )
        self.blocks[1] /= 2
        self.gone = torch.zeros(m, dtype=torch.bool, device=self.C.device)
        self.gone_count = 0
        self.rows = self.C.new_empty(2, u, m * u)
        self.newest = self.C.new_empty(3, u, m * u)
        self.terms = self.C.new_zeros(3, self.steps, u, m * u)

    def step(self, *, last: bool) -> None:
        """Remove the cheapest unit; nothing needs to be updated after the last one."""
        if self._replay is None and self.gone_count and self.recordable and not self.failure:
            self._record()
        if self._replay is not None:
            self._replay()
        else:
            place = self._cheapest()
            if not last:
                self._remove(place)
        self.pending += 1
        self.gone_count += 1

    def _record(self) -> None:
        """Record a step for arrays of the present size, in which one has run."""
        try:
            self._replay = recorded(lambda: self._remove(self._cheapest()), self.C.device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            _Elimination.failure = first_line(error)

    def _cheapest(self) -> Int64[Tensor, " 1"]:
        """Index [1] of the cheapest unit, which is noted with half its cost; no host synchronisation."""
        C_blocks, G_blocks = self.blocks
        if self.u == 1:  # that of a removed unit is infinite
            costs = (G_blocks / C_blocks).view(-1)
        else:
            K = torch.linalg.cholesky_ex(C_blocks).L
            costs = torch.cholesky_solve(G_blocks, K).diagonal(dim1=1, dim2=2).sum(1).masked_fill_(self.gone, torch.inf)
        cost, place = torch.min(costs.clamp_(min=0), 0, keepdim=True)
        self.places.index_copy_(0, self.slot, place)
        self.costs.index_copy_(0, self.slot, cost)
        return place

    def _remove(self, place: Int64[Tensor, " 1"]) -> None:
        """Remove the unit at an index [1]: queue its update, and apply it to the diagonal blocks at once."""
        g = place if self.u == 1 else place * self.u + self.offsets
        C_rows, G_rows = self._current_rows(g)
        C_gg, G_gg = self.rows.index_select(2, g)
        Q, P, A = self.newest
        if self.u == 1:
            torch.div(C_rows, C_gg.sqrt_(), out=Q)
            torch.div(Q, C_gg, out=P)
            torch.addcmul(G_rows, G_gg, P, value=-0.5, out=A)
            # C loses Q Q, and half of G loses P A.
            self.blocks.view(2, -1).addcmul_(self.newest[:2].view(2, -1), self.newest[::2].view(2, -1), value=-1)
            self.blocks.index_copy_(1, place, self.removed_block)
        else:
            K = torch.linalg.cholesky_ex(C_gg).L
            Q.copy_(torch.linalg.solve_triangular(K, C_rows, upper=False))
            P.copy_(torch.linalg.solve_triangular(K.T, Q, upper=True))
            torch.addmm(G_rows, G_gg, P, alpha=-0.5, out=A)
            q, p, a = (X.view(self.u, -1, self.u).transpose(0, 1) for X in self.newest)
            self.blocks[0].baddbmm_(q.mT, q, alpha=-1).index_copy_(0, place, self.eye)
            self.blocks[1].baddbmm_(p.mT, a, alpha=-1)
            self.gone.index_fill_(0, place, True)
        self.terms.index_copy_(1, self.slot, self.newest[:, None])
        self.slot += 1

    def _current_rows(self, g: Int64[Tensor, " u"]) -> tuple[Float[Tensor, "u mu"], Float[Tensor, "u mu"]]:
        """Rows g of C and of G, [u, m * u] each, with the pending terms applied."""
        C_rows, G_rows = self.rows
        torch.index_select(self.C, 0, g, out=C_rows)
        torch.index_select(self.G, 0, g, out=G_rows)
        count = self.steps if self.recordable else self.pending  # a recorded step takes all; the unused ones are zero
        if count:
            terms = self.terms[:, :count]
            Q, P, A = terms.flatten(1, 2)
            Q_at_g, P_at_g, A_at_g = terms.index_select(3, g).flatten(1, 2).mT
            C_rows.addmm_(Q_at_g, Q, alpha=-1)
            G_rows.addmm_(A_at_g, P, alpha=-1).addmm_(P_at_g, A, alpha=-1)
        return C_rows, G_rows

    def flush(self) -> None:
        """Apply the pending terms as matrix products; drop the removed columns if there are many."""
        Q, P, A = self.terms[:, : self.pending].flatten(1, 2)
        self.C.addmm_(Q.T, Q, alpha=-1)
        self.G.addmm_(A.T, P, alpha=-1).addmm_(P.T, A, alpha=-1)
        self.gone.index_fill_(0, self.places[: self.pending], True)
        self._collect()
        share, least = RECORDED if self.recordable else COMPACTED
        if self.gone_count >= max(share * len(self.ids), least):
            kept = (~self.gone).nonzero().view(-1)
            columns = (kept[:, None] * self.u + self.offsets).view(-1)
            self.ids = self.ids[kept]
            self.C, self.G = _compacted_(self.C, columns), _compacted_(self.G, columns)
            self._reset()
        elif self.recordable:
            self.terms.zero_()

    def _collect(self) -> None:
        """Take the units and costs of the pending steps, and begin a new group of steps."""
        costs = 2 * self.costs[: self.pending].to(torch.float64)
        self._removed.append((self.ids[self.places[: self.pending]], costs))
        self.slot.zero_()
        self.pending = 0

    def removed(self) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
        """All units and costs, [n] int64 and [n] float64, the first one removed first."""
        self._collect()
        picks, costs = zip(*self._removed, strict=True)
        return torch.cat(picks), torch.cat(costs)


def _compacted_(X: Float[Tensor, "d d"], columns: Int64[Tensor, " p"]) -> Float[Tensor, "p p"]:
    """Some rows and columns of X, [d, d] contiguous, moved to the beginning of its memory.

    `columns` are [p] int64, ascending, so that no row is overwritten before it is read.
    """
    compact = X.view(-1)[: len(columns) ** 2].view(len(columns), -1)
    for rows, chosen in zip(torch.split(compact, ROWS), torch.split(columns, ROWS), strict=True):
        rows.copy_(X.index_select(0, chosen).index_select(1, columns))
    return compact
