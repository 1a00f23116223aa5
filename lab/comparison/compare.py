"""Compare methods with the same model, units, budget, text and surgery. Methods and measurements are steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from darwinlm.evaluation import harness
from darwinlm.evaluation.suites import parse_suite
from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.surgery.smaller_model import block_parameters
from darwinlm.model.units.space import kept_whole
from darwinlm.model.walk.hidden import HiddenMemory
from darwinlm.model.walk.streamed import StreamedDecoder
from darwinlm.pipeline import build, check, correct, cut, plan, read_inputs
from darwinlm.recipe import Recipe
from darwinlm.runs.opening import open_run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of, read_json, write_json
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.errors import DataError, RecipeError
from darwinlm.runtime.places import check_output
from darwinlm.runtime.run import Run
from darwinlm.runtime.step import Step, Task
from darwinlm.runtime.version import VERSION
from darwinlm.steps.database.step import Database, PruningDatabase
from darwinlm.steps.evaluate.metric import TokenMetric, measured_by, token_metrics
from darwinlm.steps.evaluate.quality import measure_quality
from darwinlm.steps.gradients.step import Gradients
from darwinlm.steps.recover.step import Recover
from darwinlm.steps.refit.step import Refit
from darwinlm.steps.results import Inputs
from darwinlm.steps.search.step import Search
from darwinlm.steps.stitch.step import Stitched
from darwinlm.steps.text.sequences import TokenSequences
from darwinlm.steps.text.sources import read_documents
from darwinlm.steps.text.splits import split_documents
from lab.comparison.baseline import Baseline
from lab.comparison.entries import DENSE as DENSE_ROW
from lab.comparison.entries import HELD_OUT, OURS, MethodRow, variant_recipe
from lab.comparison.methods import BASELINES
from lab.comparison.record import ComparedBudget, ComparedMethod, ComparisonRecord, MeasuredText

Facts = dict[str, Any]


@dataclass(frozen=True)
class ComparisonRequest:
    """Requested comparison.

    Attributes:
        rows: Methods with their steps, in the order of the table.
        every: Whether these are all methods; those that the model doesn't allow are then left out.
        domains: Name and source of further evaluation texts, besides the run's held-out part.
        variants: Name and recipe file of further searches.
    """

    rows: tuple[MethodRow, ...]
    domains: tuple[tuple[str, str], ...] = ()
    variants: tuple[tuple[str, str], ...] = ()
    suite: str | None = None
    data_dir: Path | None = None
    limit: int | None = None
    every: bool = False


@dataclass(frozen=True, eq=False)
class Measure(Step[Facts]):
    """Sizes of a model, and its perplexity and KL on every text.

    Attributes:
        row: Name of the row that the model is of.
    """

    name = "measure"
    version = 3
    writes = "sizes, perplexity and KL of a row"
    arithmetic = True
    together = True

    row: str
    dense: Checkpoint
    model: Checkpoint
    evaluation: TokenSequences
    domains: dict[str, TokenSequences]

    @property
    def label(self) -> str:
        """Says which row."""
        return f"measure {self.row}"

    @property
    def extensions(self) -> tuple[TokenMetric, ...]:
        """The metrics of tokens."""
        return tuple(token_metrics())

    def key(self, task: Task) -> Mapping[str, Any]:
        """Versions of the metrics."""
        return {"metrics": measured_by(self.extensions)}

    def work(self, task: Task) -> None:
        """Measure the model on every text."""
        context, texts = task.context, {HELD_OUT: self.evaluation, **self.domains}
        read = torch.cat([text.tokens.flatten() for text in texts.values()])
        with parallel.agree():
            reference, measured = (
                StreamedDecoder(model, read, dtype=context.dtype, device=context.device)
                for model in (self.dense, self.model)
            )
        row: Facts = {
            "params": measured.params,
            "block_params": block_parameters(measured.model, self.dense.family.layers),
            "bytes": measured.params * self.dense.dtype.itemsize,
            "texts": {},
        }
        for place, text in texts.items():
            quality = measure_quality(
                reference,
                {"model": reference if self.model is self.dense else measured},
                text.tokens,
                batch_tokens=context.batch_tokens,
                memory=HiddenMemory(task.folder),
                progress=context.reporter.advance,
            )
            row["texts"][place] = asdict(quality["model"])
        parallel.in_main(write_json, task.folder / "row.json", row)

    def read(self, task: Task) -> Facts:
        """The figures."""
        return dict(read_json(task.folder / "row.json"))


class _Comparison:
    """The rows' models. What they share is done in `base`, the run in the folder of the comparison."""

    def __init__(self, base: Run[Recipe], recipe: Recipe, request: ComparisonRequest) -> None:
        self.base, self.recipe, self.request = base, recipe, request
        self.variants = {name: variant_recipe(recipe, name, source) for name, source in request.variants}
        if recipe.vocabulary.auto:
            raise RecipeError("vocabulary is auto: methods are compared with one vocabulary, so give its size")
        self.inputs = read_inputs(base)
        self.problem = plan(base, self.inputs)
        self.domains = _domains(base, self.inputs, request)
        self._runs: dict[MethodRow, Run[Recipe]] = {}
        self._searches: dict[str, Run[Recipe]] = {}

    @cached_property
    def database(self) -> PruningDatabase:
        """The database; some methods need none."""
        return build(self.base, self.inputs)

    def rows(self) -> list[MethodRow]:
        """The rows without methods of `all` that remove whole blocks, if some modules are never cut."""
        space, rows = self.problem.space, self.request.rows
        if not self.request.every or all(len(module.levels) > 1 for module in space.modules):
            return list(rows)
        left_out = {row.base for row in rows if row.base in BASELINES and BASELINES[row.base].blocks}
        why = kept_whole(space, self.inputs.dense.family)
        self.base.context.reporter.say(f"left out, since {why}: {', '.join(sorted(left_out))}")
        return [row for row in rows if row.base not in left_out]

    def run(self, row: MethodRow) -> Run[Recipe]:
        """The run of a row, which reuses the run of its first step. Raises DarwinLMError if its recipe can't work."""
        if row not in self._runs:
            before = self.run(MethodRow(row.base, row.steps[:1])) if len(row.steps) > 1 else self._searching(row.base)
            folder, recipe = self.base.folder / "rows" / row.name, row.recipe(self.variants.get(row.base, self.recipe))
            self._runs[row] = open_run(recipe, folder, self.base.context.reporter, parent=before)
            check(self._runs[row], self.inputs.dense)
        return self._runs[row]

    def _searching(self, name: str) -> Run[Recipe]:
        """The run that makes the model of a method or a variant."""
        if name not in self.variants:
            return self.base
        if name not in self._searches:
            folder, recipe = self.base.folder / "variants" / name, MethodRow(name).recipe(self.variants[name])
            self._searches[name] = open_run(recipe, folder, self.base.context.reporter, parent=self.base)
        return self._searches[name]

    def make(self, row: MethodRow) -> tuple[Facts, Checkpoint]:
        """The description of a row and its model, which is made if it doesn't exist."""
        if row.base == DENSE_ROW:
            return {"title": "Dense"}, self.inputs.dense
        facts, stitched = self._baseline(row.base) if row.base in BASELINES else self._searched(row.base)
        if not row.steps:
            return facts, stitched.checkpoint
        # Evaluation text is never used for training, in any row.
        held_out = {hashed for text in self.domains.values() for hashed in text.document_hashes}
        run = self.run(row)
        corrected = correct(run, self.inputs, stitched, reserved=held_out)
        facts["title"] = " + ".join((facts["title"].removesuffix(", one shot"), *row.steps))
        facts["seconds"] += _seconds(run, Refit.name)
        facts["resumed"] |= _resumed(run, Refit.name)
        if (refitted := run.results.get(Refit.name)) is not None:
            facts["record"]["refit"] = refitted.record
        if (recovered := run.results.get(Recover.name)) is not None:
            record = {name: value for name, value in recovered.record.items() if name != "log"}
            facts["seconds"] += max(_seconds(run, Recover.name), float(record["seconds"]))
            facts["training_tokens"] += record["tokens"]
            facts["record"]["recovery"] = record
        return facts, corrected.exported.checkpoint

    def _baseline(self, name: str) -> tuple[Facts, Stitched]:
        method, base, inputs = BASELINES[name], self.base, self.inputs
        database = self.database if method.database else None
        texts = inputs.text["calibration"], inputs.text["fitness"]
        minutes = base.recipe.search.minutes if method.searches else None
        baseline = Baseline(name, minutes, inputs.dense, *texts, self.problem, database)
        result = base(baseline)
        facts = {
            "title": method.title,
            "source": method.source,
            "seconds": _seconds(base, baseline.folder_name),
            "database_seconds": _seconds(base, Gradients.name, Database.name) if method.database else None,
            "resumed": method.database and _resumed(base, Database.name),
            "training_tokens": result.record.get("tokens", 0),
            "allocation": result.allocation,
            "record": dict(result.record),
        }
        return facts, result.stitched

    def _searched(self, name: str) -> tuple[Facts, Stitched]:
        run = self._searching(name)
        of_base = run is self.base
        problem = self.problem if of_base else plan(run, self.inputs)
        search, stitched = cut(run, self.inputs, problem, self.database if of_base else build(run, self.inputs))
        weighted = run.recipe.database.metric
        facts = {
            "title": "DarwinLM, one shot" if name == OURS else f"DarwinLM, {name}",
            "source": "arXiv 2502.07780",
            # The stage has the seconds of its last start, the record those of all.
            "seconds": max(_seconds(run, Search.name), float(search.record["seconds"])),
            "database_seconds": _seconds(run, *([Gradients.name] if weighted.gradients else []), Database.name),
            "resumed": _resumed(run, Database.name),
            "training_tokens": 0,
            "allocation": search.allocation,
            "record": {key: search.record[key] for key in ("start_kl", "kl", "evaluations")},
        }
        return facts, stitched


def compare_methods(recipe: Recipe, out: Path, reporter: Reporter, request: ComparisonRequest) -> ComparisonRecord:
    """Run and measure the methods in turn; writes `comparison.json` after each.

    Raises DarwinLMError. Suite, steps and training are checked before anything runs.
    """
    check_output(out, (), [source for _, source in request.domains])
    if request.suite is not None:
        harness.check_suite(parse_suite(request.suite), request.data_dir)
    variants = {name: variant_recipe(recipe, name, source) for name, source in request.variants}
    for row in request.rows:
        row.check(variants.get(row.base, recipe))
    comparison = _Comparison(open_run(MethodRow("").recipe(recipe), out, reporter), recipe, request)
    problem, dense = comparison.problem, comparison.inputs.dense
    rows = (MethodRow(DENSE_ROW), *comparison.rows())
    runs = {row: comparison.run(row) for row in rows}
    evaluation, domains = comparison.inputs.text["evaluation"], comparison.domains
    compared = ComparisonRecord(
        version=VERSION,
        model=dense.source,
        budget=ComparedBudget(
            kind=recipe.budget.kind,
            unit=problem.cost.unit,
            upper=problem.budget.limit,
            dense=problem.cost.dense,
            keep=recipe.budget.keep,
        ),
        texts={
            name: MeasuredText(source=text.source, tokens=text.n_tokens)
            for name, text in {HELD_OUT: evaluation, **domains}.items()
        },
        suite=request.suite,
        limit=request.limit,
        recipe=recipe.model_dump(mode="json"),
    )
    for row in rows:
        facts, model = comparison.make(row)
        measured = runs[row](Measure(row.name, dense, model, evaluation, domains))
        scores = _suite(runs[row], row.name, dense, model, request) if request.suite else []
        figures = {"method": row.name, **facts, **measured, "tasks": harness.as_json(scores)}
        compared = compared.model_copy(update={"rows": (*compared.rows, ComparedMethod.model_validate(figures))})
        if parallel.is_main():
            write_json(out / "comparison.json", compared.as_json())
    return compared


def _seconds(run: Run[Recipe], *steps: str) -> float:
    return sum(time.seconds for time in run.times if time.name in steps)


def _resumed(run: Run[Recipe], step: str) -> bool:
    return any(time.resumed for time in run.times if time.name == step)


def _domains(base: Run[Recipe], inputs: Inputs, request: ComparisonRequest) -> dict[str, TokenSequences]:
    """Further evaluation texts, disjoint from all text that methods see."""
    domains: dict[str, TokenSequences] = {}
    settings, tokenizer = base.recipe.text, inputs.dense.tokenizer()
    for name, source in request.domains:
        blocks = split_documents(
            read_documents(source, seed=settings.seed, tokenizer=tokenizer),
            {"evaluation": settings.evaluation_tokens},
            tokenizer,
            settings.sequence_length,
            settings.seed,
            source=source,
        )["evaluation"]
        for purpose, own in inputs.text.items():
            if shared := len({*own.document_hashes} & {*blocks.document_hashes}):
                raise DataError(
                    f"{purpose} and {name} share {shared} documents, so results on {name} would look better than they "
                    "are: take it from a source that has nothing in common with the text of the run"
                )
        domains[name] = blocks
    return domains


def _suite(
    run: Run[Recipe], name: str, dense: Checkpoint, checkpoint: Checkpoint, comparison: ComparisonRequest
) -> list[harness.TaskScore]:
    """Scores from the file of an earlier run, completed by the missing ones."""
    assert comparison.suite is not None
    context = run.context
    key = {
        "model": checkpoint.digest,
        "suite": comparison.suite,
        "data": None if comparison.data_dir is None else str(comparison.data_dir.absolute()),
        "limit": comparison.limit,
        "arithmetic": dict(context.arithmetic),
    }
    file = run.folder.parents[1] / "suites" / f"{name}_{digest_of(key)[:12]}.json"
    before: dict[str, harness.TaskScore] = {}
    with parallel.agree():
        if parallel.is_main() and file.exists():
            before = harness.from_json(file, read_json(file))
    before, wanted = parallel.broadcast(before), parse_suite(comparison.suite)
    if all(task.name in before and not before[task.name].error for task in wanted):
        return [before[task.name] for task in wanted]
    with parallel.agree():
        model = checkpoint.load(context.dtype, context.device)

    def save(scores: list[harness.TaskScore]) -> None:
        if parallel.is_main():
            write_json(file, harness.as_json(scores))

    with context.reporter.stage(f"suite {name}"):
        return harness.run_suite(
            model,
            dense.tokenizer(),
            wanted,
            data_dir=comparison.data_dir,
            limit=comparison.limit,
            finished=before,
            save=save,
            progress=context.reporter.advance,
        )
