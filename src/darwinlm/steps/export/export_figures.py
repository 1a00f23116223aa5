"""Figures of the saved model."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from darwinlm.runtime.figures import StepFigures

if TYPE_CHECKING:
    pass


class ExportFigures(StepFigures):
    """The saved model; `whole` if it has further parts, such as a vision tower, around the language model.

    With `custom_code`, it needs the modelling file beside it.
    """

    lasting: ClassVar[bool] = False

    folder: str
    custom_code: bool
    dtype: str
    whole: bool = False
