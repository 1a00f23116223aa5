"""Needs of the refit: passes of both models by block, moments and solutions, and logits at the end."""

from __future__ import annotations

from darwinlm.planning.model import Sizes
from darwinlm.planning.need import Item, StageNeed
from darwinlm.planning.passes import batches, forward_type, pass_items
from darwinlm.stages.refit import STRENGTHS
from darwinlm.surgery.refit import RIDGES

INPUTS = 4.0 * 2**30
"""Maximum bytes of cached inputs of a module; in a run they use free memory, and others are computed twice."""

PIECE = 512
"""Tokens whose logits the comparison computes at once."""


def refit_need(sizes: Sizes) -> StageNeed:
    """Fits of output projections, and comparisons on validation text for the interpolation factor."""
    recipe = sizes.recipe
    kind, size = forward_type(sizes)
    tokens = recipe.refit.tokens
    everything = tokens + recipe.text.validation_tokens
    # The dense stream once; the smaller one once for the inputs of each module and once to advance.
    passes = everything * sizes.forward * (1 + sizes.kept * 2)
    strengths = {0.0, *STRENGTHS}
    held_out = recipe.text.validation_tokens
    # The stream of the fitted weights exists already; each comparison recomputes the dense model's logits.
    again = len(strengths - {1.0})
    passes += held_out * (again * sizes.forward * sizes.kept + 2 * len(strengths) * sizes.head)
    need = StageNeed("refit", everything + again * held_out, passes, kind, {"float32": 0.0, "float64": 0.0})
    need.calls = (batches(sizes, everything) * 3 + batches(sizes, held_out) * again) * sizes.depth
    largest = 0.0
    for shape in sizes.shapes:
        d, r = shape.width * sizes.kept, float(sizes.width)
        need.operations["float32"] += everything * (2 * d * d + 2 * d * r)
        need.operations["float64"] += len(RIDGES) * (d**3 / 3 + 4 * d * d * r)
        largest = max(largest, (2 * d * d + d * r) * 4 + d * d * 16)
    inputs = everything * max(shape.width for shape in sizes.shapes) * sizes.kept * size
    in_a_block = [
        Item("weights of one block, dense and smaller", sizes.block * (1 + sizes.kept) * (size + sizes.element)),
        Item("moments of one module", largest),
        Item("projection inputs", min(inputs, INPUTS)),
        *pass_items(sizes, size),
    ]
    at_the_end = [
        Item("residual stream of an interpolation", float(held_out * sizes.width * size)),
        Item("heads: dense, smaller", 2.0 * sizes.vocabulary * sizes.width * size),
        Item("logits of one piece", float(PIECE) * sizes.vocabulary * (4 + 2 * size)),
    ]
    need.device = [
        Item(
            "residual streams, dense, smaller and target", 4.0 * everything * sizes.width * size, "refit.tokens", tokens
        ),
        *max(in_a_block, at_the_end, key=lambda items: sum(item.bytes for item in items)),
    ]
    need.disk = sum(sizes.width * shape.width * sizes.kept * 4 for shape in sizes.shapes)
    return need
