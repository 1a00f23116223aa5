"""What a finished run shows in Python: its models, pictures that notebooks draw, and itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.report import wording
from darwinlm.report.pictures.blocks import blocks_picture
from darwinlm.report.pictures.sizes import compared_picture
from darwinlm.runtime.errors import ArtifactError
from darwinlm.steps.evaluate.model_figures import DENSE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from darwinlm.report.summary import BlockFigures, Summary
    from darwinlm.runtime.charts import Picture
    from darwinlm.steps.evaluate.model_figures import ModelFigures


class Shown(ABC):
    """A run with a summary."""

    folder: Path

    @property
    @abstractmethod
    def summary(self) -> Summary:
        """The figures of the run."""

    @property
    def allocation(self) -> tuple[BlockFigures, ...]:
        """What is kept of each block: query heads, KV groups, MLP channels and experts."""
        return self.summary.allocation

    @property
    def models(self) -> dict[str, ModelFigures]:
        """The measured models by their names, the dense one first and the saved one last."""
        summary = self.summary
        return {key if key == DENSE else summary.name(key): model for key, model in summary.models.items()}

    @property
    def loss(self) -> str:
        """What was lost, in the words of the command's line `loss`."""
        return wording.loss(self.summary)

    def plot_blocks(self) -> Figure:
        """What is kept of the attention and the MLP of each block, as a figure of matplotlib.

        Raises ArtifactError if the run isn't finished or has no such figures; so do the other pictures.
        """
        return self._drawn(blocks_picture(self.allocation), "figures of its blocks")

    def plot_models(self) -> Figure:
        """The measured models by their size and their loss."""
        return self._drawn(compared_picture(self.summary), "measurements that compare its models")

    def plot_search(self) -> Figure:
        """KL over the generations of the search, beside the uniform model, and how many modules changed in each."""
        return self._drawn(self._of_steps("search"), "record of a search over generations")

    def plot_training(self) -> Figure:
        """Loss of the training, and what it reached on held-out text."""
        return self._drawn(self._of_steps("training"), "record of a training")

    def _of_steps(self, name: str) -> Picture | None:
        pictures = (picture for figures in self.summary.steps.values() for picture in figures.pictures())
        return next((picture for picture in pictures if picture.name == name), None)

    def _drawn(self, picture: Picture | None, what: str) -> Figure:
        if picture is None:
            raise ArtifactError(f"the run in {self.folder} has no {what}")
        from darwinlm.report.pictures.draw import figure_of

        return figure_of(picture)

    def _repr_html_(self) -> str:
        """What notebooks show: figures and the picture of the blocks, or why there are none."""
        from darwinlm.report.notebook import notebook_html

        try:
            return notebook_html(self.summary, self.folder / "report.html")
        except ArtifactError as error:
            return f"<p>{escape(str(error))}</p>"
