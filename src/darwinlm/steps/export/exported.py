"""The final model as it is saved: written, checked against the model in memory, and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from darwinlm.formats.transformers.saved import RECORD, check_saved, recorded_digests, save_model, saved_digests
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.families.files import CARD
from darwinlm.model.surgery.depth import in_family_class
from darwinlm.model.surgery.smaller_model import as_dtype
from darwinlm.runtime.artifact import check_written, what_changed, write_json
from darwinlm.runtime.mapped import in_file
from darwinlm.runtime.version import VERSION

if TYPE_CHECKING:
    import torch

    from darwinlm.steps.stitch.step import Stitched


def save_final(
    final: Stitched,
    dense: Checkpoint,
    original: Checkpoint,
    text: Tensor,
    folder: Path,
    scratch: Path,
    recipe: Mapping[str, object],
    device: torch.device,
) -> dict[str, str]:
    """Save the final model into a folder.

    Args:
        final: The model to save.
        dense: The dense model with the tokens of the final one, which has its element types.
        original: The dense model whose other files are carried along.
        text: Tokens [n, t] on which the saved model is compared with the one in memory.
        folder: Folder of the model.
        scratch: Folder for mapped files.
        recipe: The recipe, for the record beside the weights.
        device: Where the two are compared, if it has room for both.

    Returns the hashes of the saved files. Raises ArtifactError if files of `folder` aren't as we wrote them, and as
    `check_saved` and `save_model`.
    """
    for checkpoint in (dense, original):
        checkpoint.check_unchanged()
    if (folder / RECORD).is_file():
        check_written(folder, {RECORD, CARD, *recorded_digests(folder / RECORD)})
    model = as_dtype(final.model(dense.dtype, keep=partial(in_file, folder=scratch)), dense.dtype)
    model = in_family_class(model, final.checkpoint)
    save_model(model, folder, tokenizer=dense.tokenizer(), source=original.carried)
    check_saved(model, folder, text, device)
    write_json(folder / RECORD, {"version": VERSION, "recipe": recipe, "files": saved_digests(folder)})
    return saved_digests(folder)


def what_differs(record: Path, folder: Path) -> str | None:
    """The first file of an exported model that isn't as recorded, with the reason: users may move, delete or edit them.

    Raises ArtifactError if the record is damaged.
    """
    if not record.is_file():
        return f"{record} is missing"
    changes = (
        (folder / name, what_changed(folder / name, digest)) for name, digest in recorded_digests(record).items()
    )
    return next((f"{path}: {change}" for path, change in changes if change), None)
