"""A page with a slider over sizes: what the database predicts for each, before any search."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from darwinlm.database.modules import ModuleReader
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.report import wording
from darwinlm.report.render import render
from darwinlm.report.strip import block_rows, kept_cells
from darwinlm.report.summary import BlockFigures
from darwinlm.search.predict.module_losses import FACTOR, POWER, PredictedSize
from darwinlm.search.problem.space import SearchSpace

START = 0.5
"""Share of the block parameters that the page opens with."""


def sizes_page(
    name: str,
    checkpoint: Checkpoint,
    reader: ModuleReader,
    outside: int,
    sizes: Sequence[PredictedSize],
    calibration: str,
    command: Mapping[str, str],
    files: Mapping[str, int],
) -> str:
    """Render the page; without scripts it shows one allocation and the table of all sizes.

    `name` is the model's, `outside` the number of parameters outside the blocks; `calibration` names the text of the
    database. `command` has the `model`, `database` and `text` of the command that makes a size. `files` are predicted
    bytes of the dense model's GGUF files by quantisation.
    """
    space = SearchSpace(reader.modules)
    dense, dtype = space.params(space.dense), checkpoint.dtype
    most = max(size.kl for size in sizes) or 1.0
    views = []
    for size in sizes:
        kept, params = _blocks(checkpoint.n_blocks, reader, space, size), outside + size.params
        view = {
            "keep": f"{100 * size.share:.4g}%",
            "kept": wording.percent(size.params, dense),
            "kl": wording.kl(size.kl),
            "bar": 100 * size.kl / most,
            "params": wording.count(params),
            "bytes": wording.size(params * dtype.itemsize),
            "strips": block_rows(kept),
            "rows": [(block.block, kept_cells(block)) for block in kept],
        }
        views.append(view)
    return render(
        "sizes.html.j2",
        "copy.js",
        "sizes.js",
        title=f"How small can {name} be?",
        n_blocks=checkpoint.n_blocks,
        whole=wording.count(outside + dense),
        dense=wording.count(dense),
        dtype=str(dtype).removeprefix("torch."),
        start=min(range(len(sizes)), key=lambda at: abs(sizes[at].share - START)),
        sizes=views,
        calibration=calibration,
        factor=FACTOR,
        power=POWER,
        files=", ".join(f"{kind} {wording.size(size)}" for kind, size in files.items()),
        **{part: shlex.quote(value) for part, value in command.items()},
    )


def _blocks(n_blocks: int, reader: ModuleReader, space: SearchSpace, size: PredictedSize) -> list[BlockFigures]:
    rows: list[dict[str, Any]] = [{"block": block} for block in range(n_blocks)]
    for shape, level in zip(reader.shapes.values(), space.levels(size.allocation), strict=True):
        if shape.kind == "attention":
            rows[shape.block] |= {
                "groups": level.groups,
                "heads": level.query_heads,
                "dense_groups": shape.groups,
                "dense_heads": shape.width // shape.head_dim,
            }
        else:
            rows[shape.block] |= {
                "width": level.width,
                "dense_width": shape.width,
                "experts": level.experts,
                "dense_experts": shape.experts,
            }
    return [BlockFigures.model_validate(row) for row in rows]
