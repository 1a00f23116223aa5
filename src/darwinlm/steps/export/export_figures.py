"""Figures of the saved model."""

from __future__ import annotations

from typing import ClassVar

from darwinlm.runtime.figures import StepFigures


class ExportFigures(StepFigures):
    """The saved model; `whole` if it has further parts, such as a vision tower, around the language model.

    With `custom_code`, it needs the modelling file beside it. It `gives` text, `scores` or `states`, from which
    embeddings are made; with `modules`, its folder is one of sentence-transformers.
    """

    lasting: ClassVar[bool] = False

    folder: str
    custom_code: bool
    dtype: str
    whole: bool = False
    gives: str = "language"
    modules: bool = False
