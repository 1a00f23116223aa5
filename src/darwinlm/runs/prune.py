"""Prune a model to one size: `darwinlm.prune` and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from darwinlm.execution.output import check_inputs
from darwinlm.pipeline import open_run
from darwinlm.planning.time_limit import TimeLimit
from darwinlm.recipe import Recipe, load_recipe, options
from darwinlm.report import wording
from darwinlm.report.summary import FILE, BlockFigures, Summary, read_summary
from darwinlm.runs.model import Model, load
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import ArtifactError
from darwinlm.runtime.figures import ModelFigures
from darwinlm.stages.report import REPORT

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Result:
    """A finished run: the folder of the smaller model, the path of the report, and its figures as in summary.json."""

    folder: Path
    model: Path
    report: Path
    summary: Summary = field(repr=False)

    @property
    def allocation(self) -> tuple[BlockFigures, ...]:
        """The remaining part of each block."""
        return self.summary.allocation

    @property
    def models(self) -> dict[str, ModelFigures]:
        """Figures of each measured model under its name in the tables: dense, searched, searched + refit ..."""
        return {wording.model_name(key, self.summary): figures for key, figures in self.summary.measured()}

    def load(self, *, device: str = "auto", dtype: str = "auto") -> Model:
        """Load the smaller model, as `darwinlm.load` with the run's folder does. Raises as it does."""
        return load(self.folder, device=device, dtype=dtype)

    def generate(self, prompt: str, *, max_tokens: int = 128, temperature: float | None = None) -> str:
        """Answer a prompt, as `Model.generate`; the first call loads the model, which then stays in memory."""
        return self._loaded.generate(prompt, max_tokens=max_tokens, temperature=temperature)

    @cached_property
    def _loaded(self) -> Model:
        return self.load()

    def plots(self) -> dict[str, Figure]:
        """Figures of matplotlib by name: `search`, the best KL against time, and `recovery`, losses against tokens."""
        from darwinlm.report import plots

        search, recovery = self.summary.search, self.summary.recovery
        figures = {} if search is None else {"search": plots.search_figure(search.history, search.uniform_kl)}
        return figures | ({} if recovery is None else {"recovery": plots.recovery_figure(recovery.log)})

    def _repr_html_(self) -> str:
        """A few lines for notebooks."""
        return (
            f"<b>{escape(wording.title(self.summary))}</b><br>{escape(wording.headline(self.summary))}<br>"
            f"model <code>{escape(str(self.model))}</code>, report <code>{escape(str(self.report))}</code>"
        )


SIZED_BY = ("model", "budget", "vocabulary")
"""Settings that make another model of a run, rather than continue it."""


def check_replaced(recipe: Recipe, folder: Path, *, overwrite: bool) -> None:
    """Refuse to replace a finished run by one of another model or size. Raises ArtifactError."""
    check_inputs(folder, recipe)
    if overwrite or not (folder / FILE).is_file():
        return
    before, now = read_summary(folder / FILE).recipe, recipe.model_dump(mode="json")
    changed = [name for name in SIZED_BY if name in before and before[name] != now[name]]
    if changed:
        raise ArtifactError(
            f"{folder} holds a finished run with another {' and '.join(changed)}: choose another folder with --out, "
            "or replace it with --overwrite"
        )


def prune(
    model: str | None = None,
    out: str | Path = "runs/pruned",
    *,
    keep: float | str | None = None,
    params: int | str | None = None,
    bytes: int | str | None = None,
    file: int | str | None = None,
    speedup: float | str | None = None,
    latency: str | None = None,
    vocab: float | str | None = None,
    time: float | str | None = None,
    best_effort: bool | None = None,
    ready_for: str | None = None,
    layers: str | None = None,
    text: str | None = None,
    recipe: Recipe | str | Path | None = None,
    assignments: Sequence[str] = (),
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Result:
    """Prune a model: the whole pipeline of `darwinlm prune`.

    For several sizes from one database see `darwinlm.prune_sweep`.

    Args:
        model: Hub id, folder or GGUF file; overrides the recipe's.
        out: Output folder; an earlier run of the same kind is resumed.
        keep: Share of the block parameters to keep, 0.5 or "50%". At most one of this and the next four may be given;
            it replaces the recipe's budget of any kind. Without any, the recipe's budget is used.
        params: Parameters of the whole smaller model, 350_000_000 or "350M".
        bytes: Bytes of its weights and KV cache, 4_000_000_000 or "4GB".
        file: Bytes of its GGUF file in the type that `ready_for` names, 95_000_000 or "95MB".
        speedup: Speed relative to the dense model on this machine, 2 or "2x".
        latency: Time of a request on this machine, with a unit: "30ms".
        vocab: Tokens to keep, as a share or a number: 0.5, "50%" or "24k". None keeps all.
        time: Time limit of the whole run, in minutes or as "90s" or "1h". Text and steps are lowered to keep it.
        best_effort: Keep the limit even if it is too short for a useful model.
        ready_for: Quantisation whose groups of columns all pruned widths fill: "q4_k_m", "awq", "fp8" ...
        layers: "equal" gives all layers the same sizes, for engines that need them; "unequal" loses less.
        text: Source of the text; overrides the recipe's.
        recipe: Recipe, path of a recipe, or name of a bundled one; None starts from the defaults.
        assignments: "section.field=value" strings, applied to the recipe.
        overwrite: Whether a finished run of another model or size in `out` may be replaced.
        reporter: Receiver of progress; None prints to the terminal.

    Raises:
        DarwinLMError: The input is wrong; see `darwinlm.runtime.errors`.
    """
    size = {"keep": keep, "params": params, "bytes": bytes, "file": file, "speedup": speedup, "latency": latency}
    others = {"vocab": vocab, "time": time, "ready_for": ready_for, "layers": layers, "text": text}
    others["best_effort"] = best_effort
    resolved = load_recipe(recipe, assignments, options(model=model, **size, **others))
    check_replaced(resolved, Path(out).expanduser(), overwrite=overwrite)
    run = open_run(resolved, Path(out).expanduser(), reporter or Reporter(), pace=TimeLimit.of(resolved))
    run.until(REPORT.name)
    return Result(run.folder, run.folder / "model", run.folder / "report.html", run[REPORT])
