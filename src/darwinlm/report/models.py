"""What is measured of each model; a part of `summary.json`."""

from __future__ import annotations

from typing import Literal

from darwinlm.report.figures import Figures

ModelKey = Literal["dense", "uniform", "stitched", "refit", "before", "recovered"]
"""`before` is what `darwinlm recover` was given; the others are made by a run, in this order."""


class CopyingFigures(Figures):
    """Copying of one kind of sequences: share of right predictions, mean loss in nats, and how many predictions."""

    name: str
    accuracy: float
    loss: float
    tokens: int


class LookingBackFigures(Figures):
    """How far a model reads its context, on evaluation text.

    Attributes:
        kl_seen: mean KL where the next token stood in the block before; None where none did.
        kl_new: mean KL where it didn't; None where all did.
        seen: share of the predictions whose token stood before.
        kl_by_position: mean KL up to each position, from the one before on.
        copying, remarks: of lists and passages, and what was left out.
    """

    kl_seen: float | None
    kl_new: float | None
    seen: float
    kl_by_position: tuple[tuple[int, float], ...] = ()
    copying: tuple[CopyingFigures, ...] = ()
    remarks: tuple[str, ...] = ()


class ModelFigures(Figures):
    """One model, measured.

    Attributes:
        params: parameters.
        block_params: parameters inside the blocks.
        bytes: of its weights in the element type of the saved model.
        perplexity: on evaluation text.
        kl: KL(dense ‖ model) in nats per token, on evaluation text.
        tokens: predictions that both are means of.
        tokens_per_second: of a prompt, the median of the runs.
        decode_tokens_per_second: of new text, the median of the runs.
        continuations: text after each prompt.
        looking_back: how far it reads its context; None where that wasn't measured.
    """

    params: int
    block_params: int
    bytes: int
    perplexity: float | None = None
    kl: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    continuations: tuple[str, ...] = ()
    looking_back: LookingBackFigures | None = None
