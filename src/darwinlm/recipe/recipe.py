"""The whole configuration in stage order: one schema for Python, YAML files and the command line.

Every field has a default that suits a first run; `recipe.default.yaml` lists them. Unknown fields are errors, with a
suggestion if a similar one exists.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

from pydantic import Field, model_validator

from darwinlm.model.quantisation import SMALLEST, UNCHOSEN
from darwinlm.model.units.unit_settings import UnitsSettings
from darwinlm.recipe.presets import PRESETS, completed
from darwinlm.runtime.quantities import ByteCount, Count, Minutes, Part, Repeats, Seed, Share, Whole
from darwinlm.runtime.section import Section
from darwinlm.steps.budget.budget_settings import BudgetSettings


class ComputeSettings(Section):
    """Device and precision of the computation."""

    device: str = "auto"
    """`auto` (the first NVIDIA or AMD GPU if there is one), `cpu`, `cuda`, `cuda:1` ..., `mps` (Apple's)."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Element type of forward and backward passes. `auto` is bfloat16 on GPUs and on processors that are fast with it
    (AMX, or AMD's AVX-512), else float32. Second moments, factors, KL and trained weights are always float32 or
    better."""
    batch_tokens: Whole | None = Field(None, gt=0)
    """Tokens in one forward pass, and in one micro-batch of recovery. None takes 4096, on a CPU 1024. Fewer need less
    memory."""
    memory: ByteCount | None = Field(None, gt=0)
    """Memory of the device that a run may take, main memory without a GPU: 6GB. None takes what the stages need, and
    for caches up to half of the free main memory, or nearly all of a GPU's."""


LEAST_FOR_ANSWERS = 4096
"""Evaluation tokens from which chat models are compared on their answers too."""


class TextSettings(Section):
    """Text for calibration, search, training and evaluation; the parts are disjoint by document."""

    source: str | None = "self"
    """`self`: text that the dense model writes itself, chats if it has a chat template. Or a local .txt, .md, .jsonl,
    .json, .csv or .parquet file, a folder of them, or `hf:owner/name[:config][@split]`. A field with the text or a chat
    can follow: `#field`, `#question+answer`. Several sources, separated by commas, give equal parts."""
    sequence_length: Repeats = Field(512, ge=8)
    """Length in tokens of the sequences into which the text is cut."""
    looking_back: Share = Field(0.2, ge=0, le=0.5)
    """Share of tokens that repeat earlier passages of the same sequence, in all text except evaluation text, so that
    the smaller model still uses its context. 0 turns repetition off."""
    calibration_tokens: Whole = Field(32768, gt=0)
    """Tokens that are run through the model to see which parts matter, and for the refit; more make a better model. An
    eighth of them, at most 8192, also gives gradients of the loss. As many as an eighth, at most 65,536, are set aside
    for choices that must not use the fitted text, such as the strength of the refit."""
    evaluation_tokens: Whole = Field(6144, gt=0)
    """Tokens for the figures in the report; no choice depends on them. From 4096 on, chat models are compared on a
    quarter as many tokens of their answers too."""
    seed: Seed = 0
    """Seed of the order of the documents, their split by purpose, and the repeated passages."""

    @property
    def validation_tokens(self) -> int:
        """Tokens for choices that must not use the fitted text."""
        return max(1, min(self.calibration_tokens // 8, 65536))

    @property
    def answer_tokens(self) -> int:
        """Tokens of a chat model's own answers on which smaller models are compared with it; none for short runs."""
        return self.evaluation_tokens // 4 if self.evaluation_tokens >= LEAST_FOR_ANSWERS else 0


class DatabaseSettings(Section):
    """Second-order pruning of every module at every level."""

    metric: str = "loss"
    """Metric of the removal order: output errors weighted by their effect on the `loss`, or equally (`output`, as in
    the paper). `loss` made uniform models 0.14 nats better."""


class SelectionRound(Section):
    """One round of selection in a generation; all candidates are evaluated on the same tokens."""

    tokens: Whole = Field(gt=0)
    """Fitness tokens for each candidate."""
    survivors: Repeats = Field(gt=0)
    """Number of candidates that survive the round."""
    training_tokens: Whole = Field(0, ge=0)
    """Training tokens of each candidate before its evaluation, in addition to earlier rounds; 0 for none."""


class SearchSettings(Section):
    """Evolution over allocations: one level for every module."""

    minutes: Minutes | None = Field(None, gt=0)
    """Time limit of the search (30, 30m, 1h, 90s); it then returns the best allocation so far."""
    method: Literal["gradient", "paper"] = "gradient"
    """`gradient`: children predicted from gradients of the loss and the database's estimates; any modules may trade,
    and steps shrink. `paper`: DarwinLM's level switch, one level up and one down within a kind."""
    layers: Literal["auto", "unequal", "equal"] = "auto"
    """`equal`: all layers have the same sizes, and whole blocks may be removed; the family's own class and every engine
    run such a model. `unequal` layers often lose less. `auto` is equal if the GGUF file that `units.quantisation` asks
    for needs it."""
    generations: Repeats = Field(12, ge=1)
    """Maximum number of generations; the paper has 200. More than ten of `gradient` end when ten gained nothing
    significant."""
    offspring: Repeats = Field(12, ge=1)
    """Maximum number of candidates in a generation; the paper has 16."""
    rounds: tuple[SelectionRound, ...] = (
        SelectionRound(tokens=2048, survivors=2),
        SelectionRound(tokens=8192, survivors=1),
    )
    """Rounds of selection as in the paper: `tokens` of fitness text, `survivors`, and `training_tokens` before the
    evaluation. The largest `tokens` is the amount of fitness text, of which `gradient` uses a different part in the
    first round of each generation."""
    seed: Seed = 0
    """Seed of all random choices of the search."""

    @model_validator(mode="after")
    def _survivors_shrink(self) -> SearchSettings:
        if not self.rounds:
            raise ValueError("rounds: at least one is needed")
        counts = [self.offspring, *(each.survivors for each in self.rounds)]
        if any(later >= earlier for earlier, later in pairwise(counts)):
            raise ValueError(f"rounds: survivors must decrease, starting below the offspring, but they are {counts}")
        if self.layers == "equal" and self.method == "paper":
            raise ValueError("method=paper trades levels between layers, which layers=equal doesn't allow")
        if counts[-1] != 1:
            raise ValueError(f"rounds: the last one must leave one survivor, but it leaves {counts[-1]}")
        return self

    @property
    def training_needed(self) -> int:
        """Number of training tokens that the search needs."""
        return sum(each.training_tokens for each in self.rounds)

    @property
    def fitness_needed(self) -> int:
        """Number of fitness tokens that the search needs."""
        return max(each.tokens for each in self.rounds)


class RefitSettings(Section):
    """Least-squares correction of the stitched model's output projections towards the dense residual stream."""

    tokens: Whole = Field(32768, ge=0)
    """Calibration tokens for the fit; at most `text.calibration_tokens`. 0 skips the refit."""


SAVED_EVERY, CHECKPOINTS = 10_000_000, 20
"""Fewest tokens between two checkpoints of a training, and their largest number."""
SHORT_STEPS, SMALL_STEP, LONG_TRAINING = 8, 4096, 10_000_000
"""Steps of a training with few tokens, so that its rate can rise and fall; tokens in a step of up to 2M tokens; tokens
from which the embedding is trained too."""


class RecoverySettings(Section):
    """Continued training of the smaller model (the paper's post-training), by distillation or on plain text."""

    tokens: Count = Field(0, ge=0)
    """Number of training tokens: 300000, 300M or 10B. 0 skips recovery."""
    text: str | None = None
    """Source of the training text; none uses `text.source` without the documents of other purposes."""
    epochs: Repeats = Field(1, ge=1)
    """Passes over the text, of which `tokens` divided by this are read."""
    batch_tokens: Count | None = Field(None, gt=0)
    """Tokens in one step, over all processes. None takes a 256th of `tokens`, but 4096 to 32768, and an eighth of fewer
    than 32768 tokens. If `tokens` is smaller than a given batch, it is divided into up to eight steps."""
    distillation: Share = Field(1.0, ge=0, le=1)
    """Weight of distillation, KL(dense ‖ model) in nats per token, from 0 to 1. The next-token loss has the rest: 0.5
    weights both equally, and 0 needs no dense model."""
    learning_rate: float | None = Field(None, gt=0)
    """Learning rate of AdamW after a short warm-up; it falls to a tenth along a cosine. None takes 0.0015 times the
    root mean square of the weights, and less in proportion if the KL to the dense model on validation text is below 0.9
    before training."""
    gradient_checkpointing: bool = False
    """Recompute the activations of every block in the backward pass: less memory, about a third more time."""
    sharding: Literal["none", "fsdp", "hsdp"] = "none"
    """Distribution over several processes: `none` keeps the whole model in each (DDP), `fsdp` shards its weights
    (FSDP2), `hsdp` shards them within each node."""

    @property
    def step_tokens(self) -> int:
        """Tokens in one step, before they are divided into sequences."""
        if self.batch_tokens is not None:
            return self.batch_tokens if self.batch_tokens <= self.tokens else self.tokens // SHORT_STEPS
        return min(
            self.tokens // SHORT_STEPS, max(SMALL_STEP, min(self.tokens // 256 // SMALL_STEP * SMALL_STEP, 32768))
        )

    @property
    def save_every(self) -> int:
        """Tokens between two checkpoints, each with an evaluation on validation text; there is one at the end too."""
        return max(SAVED_EVERY, self.tokens // CHECKPOINTS)

    @property
    def trains_embeddings(self) -> bool:
        """Whether the embedding and the output head are trained, which gained nothing up to a million tokens."""
        return self.tokens >= LONG_TRAINING


class Recipe(Section):
    """A whole run."""

    model: str | None = None
    """Hub id, local folder, or GGUF file."""
    preset: Literal["default", "quick", "thorough", "paper"] = "default"
    """Values of the fields that aren't given. `quick`: about two fifths of the work; `thorough`: four times as much.
    `paper`: the DarwinLM paper's text, units, order and search, and no refit."""
    vocabulary: Part | None = Field(None, gt=0)
    """Tokens of the vocabulary to keep, as a share or a number: 50% or 24k, rounded up to a multiple of 64. Those that
    `text.source` uses most are kept; other text takes more tokens. None keeps all."""
    time: Minutes | None = Field(None, gt=0)
    """Time limit of the run (30, 30m, 1h, 90s). It chooses among `quick`, `default` and `thorough`, unless `preset` is
    given, and ends search and recovery."""
    compute: ComputeSettings = ComputeSettings()
    """Device and arithmetic."""
    text: TextSettings = TextSettings()
    """Text of all stages."""
    units: UnitsSettings = UnitsSettings()
    """Units and levels."""
    database: DatabaseSettings = DatabaseSettings()
    """The pruning database."""
    budget: BudgetSettings = BudgetSettings()
    """Size of the result."""
    search: SearchSettings = SearchSettings()
    """Search for the levels."""
    refit: RefitSettings = RefitSettings()
    """Correction of the stitched model."""
    recovery: RecoverySettings = RecoverySettings()
    """Training afterwards."""

    @model_validator(mode="before")
    @classmethod
    def _take_preset(cls, data: Any) -> Any:
        preset = PRESETS.get(str(data.get("preset"))) if isinstance(data, dict) else None
        return data if preset is None else completed(data, preset)

    @model_validator(mode="after")
    def _a_file_has_a_type(self) -> Recipe:
        if self.budget.kind == "file" and self.units.quantisation in (None, UNCHOSEN):
            object.__setattr__(self, "units", self.units.model_copy(update={"quantisation": SMALLEST}))
        return self

    @model_validator(mode="after")
    def _equal_layers_have_equal_groups(self) -> Recipe:
        if self.search.layers == "equal" and self.units.attention == "query_head":
            raise ValueError(
                "search.layers is equal, but units.attention=query_head removes single heads, after which KV heads "
                "serve different numbers of them; use units.attention=lattice"
            )
        return self
