"""What a run leaves for people and tools: `summary.json` as a closed, versioned model.

The page, the model card, the terminal, sweeps and `darwinlm recover` read this model and nothing else of a run. What
steps tell is in `steps`, each in the words of its own figures. A change of what a field means is a new `format`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, PositiveInt, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from darwinlm.model.families.origin import Origin
from darwinlm.model.layer_sizes import BlockSizes
from darwinlm.report.curve_figures import CurveFigures
from darwinlm.runtime.figures import Figures, StageTime, StepFigures, TimeFigures, first_mistake, read_figures
from darwinlm.runtime.json_values import JsonObject
from darwinlm.steps.evaluate.model_figures import BEFORE, DENSE, STITCHED, UNIFORM, ModelFigures
from darwinlm.steps.export.export_figures import ExportFigures
from darwinlm.steps.search.search_figures import SearchFigures
from darwinlm.steps.text.text_figures import TextFigures
from darwinlm.steps.vocabulary.vocabulary_figures import VocabularyFigures

FILE = "summary.json"
KINDS = "kinds"
"""Where the context of a validation holds the classes of figures by step."""

AnyStepFigures = TypeVar("AnyStepFigures", bound=StepFigures)


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
    dense_block_params: PositiveInt
    block_params: int


Count = Annotated[int, Field(ge=0, lt=1 << 31)]
"""A number of parts of a block: the page and the terminal draw one sign for some of them."""


class BlockFigures(Figures):
    """What is left of a block; each `dense_` figure is the original model's, 0 where it has no such sub-layer.

    `width` are MLP channels, of a mixture those of each expert; `experts` is 0 where the MLP is no mixture.
    """

    block: Count
    groups: Count = 0
    heads: Count = 0
    width: Count = 0
    dense_groups: Count = 0
    dense_heads: Count = 0
    dense_width: Count = 0
    experts: Count = 0
    dense_experts: Count = 0

    @classmethod
    def of(cls, dense: BlockSizes, remaining: BlockSizes) -> BlockFigures:
        """What is left of a block of the original model."""
        return cls(
            block=dense.block,
            groups=remaining.attention.groups,
            heads=remaining.attention.heads,
            width=remaining.mlp.width,
            dense_groups=dense.attention.groups,
            dense_heads=dense.attention.heads,
            dense_width=dense.mlp.width,
            experts=remaining.mlp.experts,
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
        models: what was measured: the dense model first, the saved one last. If the vocabulary was cut, the dense one
            has the smaller vocabulary too.
        chat: whether prompts are questions in the model's chat template; else they are beginnings of a text.
        kept, left_out: the modules that are never cut, and what the original has and no step reads, each as a clause;
            empty where there is nothing.
        curve: scores on the user's own measures, of this size and of others that were tried; None without a measure.
        steps: what each step tells, by its name, in the order of the steps.
        text_use: what text was used for, by purpose.
        file: None where llama.cpp can't run the saved model.
        time: None where no limit was given.
    """

    format: Literal[2] = 2
    version: str
    model: str
    budget: BudgetFigures | None = None
    models: dict[str, ModelFigures] = Field(min_length=2)
    origin: Origin = Origin()
    prompts: tuple[str, ...] = ()
    chat: bool = False
    allocation: tuple[BlockFigures, ...] = ()
    kept: str = ""
    left_out: str = ""
    curve: CurveFigures | None = None
    steps: dict[str, SerializeAsAny[StepFigures]]
    text_use: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    stages: tuple[StageTime, ...] = ()
    time: TimeFigures | None = None
    file: FileFigures | None = None
    machine: MachineFigures
    recipe: JsonObject = Field(default_factory=dict)

    @field_validator("models")
    @classmethod
    def _has_the_dense_model(cls, models: dict[str, ModelFigures]) -> dict[str, ModelFigures]:
        if next(iter(models)) != DENSE:
            raise ValueError(f"the first model isn't {DENSE}")
        if min(models[DENSE].params, models[DENSE].block_params, models[DENSE].bytes) < 1:
            raise ValueError(f"the {DENSE} model has no parameters")
        return models

    @field_validator("steps", mode="before")
    @classmethod
    def _figures_of_steps(cls, steps: object, info: ValidationInfo) -> dict[str, StepFigures]:
        """The figures of each step as its own class, from those in the context."""
        kinds: Mapping[str, type[StepFigures]] = (info.context or {}).get(KINDS, {})
        if not isinstance(steps, dict):
            raise ValueError("there are no figures of steps")  # noqa: TRY004 - pydantic reports ValueError
        figures: dict[str, StepFigures] = {}
        for name, record in steps.items():
            if not isinstance(record, StepFigures) and name not in kinds:
                raise ValueError(f"there is no step {name}")
            try:
                figures[name] = record if isinstance(record, StepFigures) else kinds[name].model_validate(record)
            except ValidationError as error:
                raise ValueError(f"{name}.{first_mistake(error)}") from error
        for needed in (TextFigures, ExportFigures):
            if not any(isinstance(figure, needed) for figure in figures.values()):
                raise ValueError(f"no {needed.__name__}")
        return figures

    @property
    def dense(self) -> ModelFigures:
        """The dense model."""
        return self.models[DENSE]

    @property
    def uniform(self) -> ModelFigures | None:
        """The best model with equal layers."""
        return self.models.get(UNIFORM)

    @property
    def saved_key(self) -> str:
        """Name of the model that is saved."""
        return next(reversed(self.models))

    @property
    def saved(self) -> ModelFigures:
        """The model that is saved."""
        return self.models[self.saved_key]

    @property
    def text(self) -> TextFigures:
        """The text of the run."""
        return self._needed(TextFigures)

    @property
    def export(self) -> ExportFigures:
        """The saved model."""
        return self._needed(ExportFigures)

    @property
    def searched(self) -> bool:
        """Whether it is known how the sizes were chosen."""
        return self.of(SearchFigures) is not None

    def of(self, kind: type[AnyStepFigures]) -> AnyStepFigures | None:
        """The figures of a class; None where no step told any."""
        return next((figures for figures in self.steps.values() if isinstance(figures, kind)), None)

    def _needed(self, kind: type[AnyStepFigures]) -> AnyStepFigures:
        figures = self.of(kind)
        assert figures is not None, "every summary has them"
        return figures

    def _repr_html_(self) -> str:
        """What notebooks show."""
        from darwinlm.report.notebook import notebook_html

        return notebook_html(self)

    def name(self, key: str) -> str:
        """What a model is called: the name lists the steps that created it, and no others."""
        if key == BEFORE:
            return "before recovery"
        if key == DENSE and self.of(VocabularyFigures) is not None:
            return "dense with fewer tokens"
        labels = [figures.label for figures in self.steps.values() if figures.label]
        labels = labels if self.searched else ["pruned", *labels]
        if key == STITCHED:
            return labels[0]
        return " + ".join(labels) if key == self.saved_key else key


def read_summary(path: Path, kinds: Mapping[str, type[StepFigures]]) -> Summary:
    """Read a summary.json, with the figures of steps as these classes. Raises ArtifactError as `read_figures`."""
    return read_figures(path, Summary, "summary of a run", {KINDS: kinds})
