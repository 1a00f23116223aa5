"""What a run leaves for people and tools: `summary.json` as a closed, versioned model.

The page, the model card, the terminal, sweeps and `darwinlm recover` read this model and nothing else of a run. A new
figure is a new field with a default; a change of what a field means is a new `format`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from darwinlm.model.families.origin import Origin
from darwinlm.model.layer_sizes import BlockSizes
from darwinlm.runtime.figures import Figures, StageTime, TimeFigures, read_figures
from darwinlm.steps.chats.step import ChatFigures
from darwinlm.steps.evaluate.step import ModelFigures, ModelKey
from darwinlm.steps.export.step import ExportFigures
from darwinlm.steps.file.step import FileChoice
from darwinlm.steps.recover.step import RecoveryFigures
from darwinlm.steps.refit.step import RefitFigures
from darwinlm.steps.search.step import SearchFigures
from darwinlm.steps.text.step import TextFigures
from darwinlm.steps.vocabulary.step import VocabularyFigures

FILE = "summary.json"


class BudgetFigures(Figures):
    """The budget, and how much of it the saved model uses.

    `dense`, `upper` and `used` are amounts of `unit`, for the dense model, the bound
    and the saved model. `keep` is a share of the original's block parameters, None for other kinds. A share of `upper`
    is unused.
    """

    kind: str
    keep: float | None
    unit: str
    dense: float
    upper: float
    used: float
    unused: float
    dense_block_params: int
    block_params: int


class BlockFigures(Figures):
    """What is left of a block; each `dense_` figure is the original model's, 0 where it has no such sub-layer.

    `width` are MLP channels, of a mixture those of each expert; `experts` is 0 where the MLP is no mixture.
    """

    block: int
    groups: int = 0
    heads: int = 0
    width: int = 0
    dense_groups: int = 0
    dense_heads: int = 0
    dense_width: int = 0
    experts: int = 0
    dense_experts: int = 0

    @classmethod
    def of(cls, dense: BlockSizes, left: BlockSizes) -> BlockFigures:
        """What is left of a block of the original model."""
        return cls(
            block=dense.block,
            groups=left.attention.groups,
            heads=left.attention.heads,
            width=left.mlp.width,
            dense_groups=dense.attention.groups,
            dense_heads=dense.attention.heads,
            dense_width=dense.mlp.width,
            experts=left.mlp.experts,
            dense_experts=dense.mlp.experts,
        )

    @property
    def channels(self) -> int:
        """MLP channels of all experts together."""
        return self.width * max(self.experts, 1)

    @property
    def dense_channels(self) -> int:
        """The same of the original model."""
        return self.dense_width * max(self.dense_experts, 1)


class FileFigures(Figures):
    """GGUF files: predicted bytes of the dense and of the saved model by quantisation, the largest first.

    `bytes` are those of the file that the model came as, None without one.
    """

    dense: dict[str, int]
    predicted: dict[str, int]
    bytes: int | None = None

    @property
    def smaller(self) -> str:
        """The quantisation that makes the largest file smaller than the one that came in; the smallest without any."""
        fits = [name for name, size in self.predicted.items() if self.bytes is None or size < self.bytes]
        return fits[0] if fits else list(self.predicted)[-1]


class MachineFigures(Figures):
    """What the figures were measured on."""

    device: str
    threads: int
    torch: str
    transformers: str
    compute_dtype: str


class Summary(Figures):
    """A finished run, or a finished recovery.

    Attributes:
        model: the original dense model, as the user named it.
        budget: None where the model was pruned elsewhere.
        models: what was measured; the last one is the saved model.
        chat: whether prompts are questions in the model's chat template; else they are beginnings of a text.
        chats: figures on chats; None where they weren't wanted.
        kept, left_out: the modules that are never cut, and what the original has and no step reads, each as a clause;
            empty where there is nothing.
        search, refit, recovery: None where there was none, or none is known of.
        file: None where llama.cpp can't run the saved model.
        bounded: the file that the budget bounds; None for other budgets.
        vocabulary: None where all tokens are kept; otherwise `dense` among the models has the smaller one, too.
        time: None where no limit was given.
    """

    format: Literal[1] = 1
    version: str
    model: str
    budget: BudgetFigures | None = None
    models: dict[ModelKey, ModelFigures]
    origin: Origin = Origin()
    prompts: tuple[str, ...] = ()
    chat: bool = False
    chats: ChatFigures | None = None
    allocation: tuple[BlockFigures, ...] = ()
    kept: str = ""
    left_out: str = ""
    search: SearchFigures | None = None
    refit: RefitFigures | None = None
    recovery: RecoveryFigures | None = None
    vocabulary: VocabularyFigures | None = None
    text: TextFigures
    stages: tuple[StageTime, ...] = ()
    time: TimeFigures | None = None
    export: ExportFigures
    file: FileFigures | None = None
    bounded: FileChoice | None = None
    machine: MachineFigures
    recipe: dict[str, Any] = Field(default_factory=dict)

    @property
    def dense(self) -> ModelFigures:
        """The dense model."""
        return self.models["dense"]

    @property
    def saved_key(self) -> ModelKey:
        """Name of the model that is saved: the last one made."""
        return list(self.measured())[-1][0]

    @property
    def saved(self) -> ModelFigures:
        """The model that is saved."""
        return self.models[self.saved_key]

    def measured(self) -> Iterator[tuple[ModelKey, ModelFigures]]:
        """Models that were measured, in the order in which they are made."""
        for key in ModelKey.__args__:  # type: ignore[attr-defined]
            if key in self.models:
                yield key, self.models[key]


def read_summary(path: Path) -> Summary:
    """Read a summary.json. Raises ArtifactError as `read_figures`."""
    return read_figures(path, Summary, "summary of a run")


def dense_of(source: str) -> str | None:
    """The original model of a finished run, which `source` names by its folder; None if it is something else.

    Raises ArtifactError if the run's summary is damaged.
    """
    run = Path(source).expanduser()
    if not (run / FILE).is_file():
        return None
    converted = run / "stages" / "source"  # of a GGUF file
    return str(converted) if converted.is_dir() else read_summary(run / FILE).model
