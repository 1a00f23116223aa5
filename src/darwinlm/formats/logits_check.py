"""The check of an export: logits of the written file in its engine, compared with those of the model on real text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.loading import check_tokens
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.runtime.errors import ExportError
from darwinlm.runtime.json_values import JsonObject

REPORT = "export.json"
"""File with the report in an exported folder."""
TOKENS = 128
LEAST_SPREAD = 0.1
"""Least spread of outputs over texts, as a share of their size: those of texts that a model finds alike vary less than
they are rounded."""
TEXT = (
    "The ferry leaves the old harbour at seven in the morning and needs a little over two hours to reach the island. "
    "Most of its passengers are people who work there: three teachers, a doctor, the woman who repairs the radio mast. "
    "In winter, when the wind comes from the north, the captain waits behind the breakwater until the sea is calmer, "
    "and nobody complains. A ticket costs 4.50 for adults and half of that for those under 12; bicycles travel free. "
    "Why does the boat carry so much flour in spring? Because the bakery on the island supplies every village on the "
    'coast during the festival, which has been held each May since 1893. "We never planned it," says the baker, "it '
    'just grew." Her recipe needs only flour, water, salt, and time. In 2021 the town council bought a second oven, '
    "and since then the queue in front of the shop has become shorter, though not by much."
)
"""Text for the check, with figures and quotation marks."""


@dataclass(frozen=True)
class Comparison:
    """Two models on the same tokens.

    Attributes:
        tokens: How many tokens, or texts, are compared.
        relative: Relative norm of the difference of their logits, after subtracting the mean of each token; or of
            embeddings or scores, after subtracting the mean over texts.
        same_top: Share of them that agree in `same`.
        tolerance: Largest allowed `relative`.
        unit: What is counted.
        same: What may agree: the most likely next token, the nearest other text, or the place in the order by score.
    """

    left: str
    right: str
    tokens: int
    relative: float
    same_top: float
    tolerance: float
    unit: str = "tokens"
    same: str = "same next token"


@dataclass
class ExportReport:
    """Result of an export and its comparisons.

    Attributes:
        format: gguf or import.
        bytes: Size of its weights.
        files: Hash of each file by its path in the folder; for gguf by the file's own name.
        notes: Differences in shape from the model, for the user.
    """

    format: str
    path: str
    bytes: int = 0
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    details: dict[str, object] = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        """Plain values for the report next to the weights, which may be published: without folders of this machine."""
        return asdict(self) | {"path": Path(self.path).name}


def text_tokens(checkpoint: Checkpoint) -> Tensor:
    """Tokens [t] of the text for the check. Raises ModelError without a tokenizer that fits the model."""
    length = min(TOKENS, int(checkpoint.config.max_position_embeddings))
    ids = checkpoint.tokenizer()(TEXT)["input_ids"][:length]
    check_tokens(max(ids), int(checkpoint.config.vocab_size), checkpoint.source)
    return torch.tensor(ids)


@torch.no_grad()
def exact_logits(checkpoint: Checkpoint, tokens: Tensor) -> Tensor:
    """A model's logits [t, v] of tokens [t], block by block in float32 on the CPU."""
    decoder = StreamedDecoder(checkpoint, tokens, dtype=torch.float32, device=torch.device("cpu"))
    (states,) = decoder.through([tokens[None]])
    with decoder.with_head():
        return decoder.head(states[0])


def compare_logits(left: tuple[str, Tensor], right: tuple[str, Tensor], tolerance: float) -> Comparison:
    """Compare the logits [t, v] of two models by name. Raises ExportError if they differ by more than `tolerance`."""
    left_logits = left[1] - left[1].mean(-1, keepdim=True)
    right_logits = right[1] - right[1].mean(-1, keepdim=True)
    relative = _relative(left_logits, right_logits)
    _check(relative, tolerance, (left[0], right[0]), "logits")
    return Comparison(
        left=left[0],
        right=right[0],
        tokens=len(left_logits),
        relative=relative,
        same_top=float((left_logits.argmax(-1) == right_logits.argmax(-1)).float().mean()),
        tolerance=tolerance,
    )


def compare_outputs(
    left: tuple[str, Tensor], right: tuple[str, Tensor], tolerance: float, *, scores: bool
) -> Comparison:
    """Compare what two models that read give, [i, c] by name. Raises ExportError if they differ too much.

    What all texts have in common is no sign of agreement, so the difference is relative to how much they vary.
    """
    (left_name, one), (right_name, other) = left, right
    relative = float("inf")
    if one.shape == other.shape:
        size = torch.maximum((one - one.mean(0)).norm(), LEAST_SPREAD * one.norm()).clamp_min(1e-12)
        relative = float((one - other).norm() / size)
    _check(relative, tolerance, (left_name, right_name), "scores" if scores else "embeddings")
    if scores:
        same, kind = (one[:, 0].argsort() == other[:, 0].argsort()).float().mean(), "same place in order"
    else:
        same, kind = (_nearest(one) == _nearest(other)).float().mean(), "same nearest text"
    return Comparison(left_name, right_name, len(one), relative, float(same), tolerance, "texts", kind)


def _nearest(embeddings: Tensor) -> Tensor:
    """The text with the most similar embedding, for each of texts, [i, m] -> [i]."""
    units = torch.nn.functional.normalize(embeddings.float(), dim=1)
    return (units @ units.T).fill_diagonal_(-2).argmax(1)


def _check(relative: float, tolerance: float, names: tuple[str, str], what: str) -> None:
    if not relative <= tolerance:
        raise ExportError(
            f"the export fails its check: {names[1]} and {names[0]} differ by {relative:.2g} in the {what} (allowed: "
            f"{tolerance:.2g}); nothing was written. Please report this with the model's config.json"
        )


def _relative(left: Tensor, right: Tensor) -> float:
    if left.shape != right.shape:
        return float("inf")
    # The median over tokens ignores a few outliers, which dominate the whole norm, so both must be small.
    difference, size = (left - right).norm(dim=-1), right.norm(dim=-1).clamp_min(1e-12)
    return float(torch.maximum(difference.norm() / size.norm(), (difference / size).median()))
