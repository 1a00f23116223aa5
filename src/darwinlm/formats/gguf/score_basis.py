"""A basis of the residual stream in which the first number of the last state is the score.

llama.cpp reads a head of scores in few architectures. In the others, its pooling for rerankers returns the first number
of the state after the last norm. A norm divides by the length of the stream alone, once its gains are multiplied into
the matrices behind it. So the stream may be given in any orthonormal basis, and a reflection that takes the score's
direction to the first axis makes a file that llama.cpp runs as it is, at no cost. With the score w·(g ∘ x / |x|),

    v = w ∘ g,   H = 1 - 2 u uᵀ,   H v = ±|v| e₁,

what reads the stream becomes (W ∘ g) H, what writes it H W, and the gain of the last norm's first number ±|v|.

Letters: m residual width, r rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from darwinlm.runtime.errors import ExportError

if TYPE_CHECKING:
    from darwinlm.model.surgery.padding import Tensors

READS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv"),
    "ffn_norm": ("ffn_gate", "ffn_up"),
}
"""Norms of a block, and the matrices behind each."""
WRITES = ("attn_output", "ffn_down")
INSIDE = ("attn_q_norm", "attn_k_norm")
"""Tensors that don't touch the stream."""


@dataclass(frozen=True)
class ScoreBasis:
    """The basis of one score.

    Attributes:
        mirror: The unit vector u of the reflection.
        gain: Gain of the last norm with which the first number is the score.
    """

    mirror: Float[Tensor, " m"]
    gain: float

    @classmethod
    def of(cls, row: Float[Tensor, " m"], gains: Float[Tensor, " m"]) -> ScoreBasis:
        """From the row of the head that gives the score, and the gains of the last norm."""
        direction = row.double() * gains.double()
        length = direction.norm()
        gain = -length if direction[0] > 0 else length  # of both signs, the one that subtracts no close numbers
        mirror = direction / gain
        mirror[0] -= 1
        return cls((mirror / mirror.norm()).float(), float(gain))

    def rows(self, matrix: Float[Tensor, "r m"]) -> Float[Tensor, "r m"]:
        """A matrix whose rows are vectors of the stream, or measure them."""
        return torch.addr(matrix, matrix @ self.mirror, self.mirror, alpha=-2)

    def columns(self, tensor: Tensor) -> Tensor:
        """A matrix [m, ·] that writes the stream, or the bias [m] of one."""
        if tensor.ndim == 1:
            return tensor - 2 * (tensor @ self.mirror) * self.mirror
        return torch.addr(tensor, self.mirror, self.mirror @ tensor, alpha=-2)

    def last_gains(self) -> Float[Tensor, " m"]:
        """Gains of the last norm; nothing reads the other numbers."""
        gains = torch.ones_like(self.mirror)
        gains[0] = self.gain
        return gains

    def block(self, tensors: Tensors) -> Tensors:
        """A block's tensors by their names in the file, without `blk.N.`, in the basis.

        Raises ExportError if the block has a tensor of another kind.
        """
        norm_of = {kind: norm for norm, kinds in READS.items() for kind in kinds}
        result: Tensors = {}
        for name, tensor in tensors.items():
            kind, _, leaf = name.rpartition(".")
            if kind in READS and leaf == "weight":
                result[name] = torch.ones_like(tensor)
            elif kind in norm_of:
                gains = tensors[f"{norm_of[kind]}.weight"]
                result[name] = self.rows(tensor * gains) if leaf == "weight" else tensor
            elif kind in WRITES:
                result[name] = self.columns(tensor)
            elif kind in INSIDE:
                result[name] = tensor
            else:
                raise ExportError(
                    f"the model has a tensor {name}, with which llama.cpp can't give its score: load its folder with "
                    "CrossEncoder of sentence-transformers"
                )
        return result
