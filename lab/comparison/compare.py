"""Compare methods with the same model, units, budget, text and surgery. Methods and measurements are stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from darwinlm.evaluation import harness
from darwinlm.evaluation.quality import measure_quality
from darwinlm.evaluation.suites import parse_suite
from darwinlm.execution.run import Run
from darwinlm.execution.stage import Deferred, Graph, Stage, Task
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.pipeline import PRUNE
from darwinlm.recipe import Recipe
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of, read_json, write_json
from darwinlm.runtime.console import Reporter
from darwinlm.runtime.places import check_output
from darwinlm.runtime.version import VERSION
from darwinlm.search.problem.space import SearchSpace, kept_whole
from darwinlm.stages.database import DATABASE, SALIENCY
from darwinlm.stages.export import EXPORT
from darwinlm.stages.model import DENSE
from darwinlm.stages.plan import PLAN
from darwinlm.stages.recover import RECOVER
from darwinlm.stages.refit import REFIT
from darwinlm.stages.search import SEARCH
from darwinlm.stages.stitch import Stitched
from darwinlm.stages.text import EVALUATION, RESERVED, TEXT, Texts
from darwinlm.streaming.hidden import HiddenMemory
from darwinlm.streaming.streamed import StreamedDecoder
from darwinlm.surgery.stitch import block_parameters
from darwinlm.text import TokenSequences, assert_disjoint, read_documents, split_documents
from lab.comparison.baseline import baseline_stage
from lab.comparison.entries import DENSE as DENSE_ROW
from lab.comparison.entries import HELD_OUT, OURS, MethodRow, variant_recipe
from lab.comparison.methods import BASELINES
from lab.comparison.record import ComparedBudget, ComparedMethod, ComparisonRecord, MeasuredText

Row = dict[str, Any]


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


def _measure(
    task: Task, dense: Checkpoint, model: Checkpoint, evaluation: TokenSequences, domains: dict[str, TokenSequences]
) -> None:
    """Sizes of a model, and its perplexity and KL on every text."""
    context, texts = task.context, {HELD_OUT: evaluation, **domains}
    read = torch.cat([text.tokens.flatten() for text in texts.values()])
    with parallel.agree():
        reference, measured = (
            StreamedDecoder(each, read, dtype=context.dtype, device=context.device) for each in (dense, model)
        )
    row: Row = {
        "params": measured.params,
        "block_params": block_parameters(measured.model, dense.family.layers),
        "bytes": measured.params * dense.dtype.itemsize,
        "texts": {},
    }
    for place, text in texts.items():
        quality = measure_quality(
            reference,
            {"model": reference if model is dense else measured},
            text.tokens,
            batch_tokens=context.batch_tokens,
            memory=HiddenMemory(task.folder),
            progress=context.reporter.advance,
        )
        row["texts"][place] = asdict(quality["model"])
    parallel.in_main(write_json, task.folder / "row.json", row)


MEASURE: Stage[Row] = Stage(
    "measure",
    lambda task: read_json(task.folder / "row.json"),
    work=_measure,
    version=2,
    writes="sizes, perplexity and KL of a row",
    arithmetic=True,
    together=True,
)


def row_graph(row: MethodRow) -> Graph:
    """The stages of a row: a method alone, one with steps after it, or the dense model."""
    model = Stage("model", lambda task, stitch: stitch.checkpoint)
    if row.base == DENSE_ROW:
        model = Stage("model", lambda task, dense: dense)
    elif row.steps:
        model = Stage("model", lambda task, export: export.checkpoint)
    measure = replace(MEASURE, title=f"measure {row.name}")
    return Graph(*PRUNE, model, measure, given=(*PRUNE.given, "domains"))


def methods_graph() -> Graph:
    """The stages of a run, and those of all baselines."""
    return Graph(*PRUNE, *map(baseline_stage, BASELINES), given=PRUNE.given)


def compare_methods(
    recipe: Recipe,
    out: Path,
    reporter: Reporter,
    comparison: ComparisonRequest,
    *,
    allow_remote_code: bool = False,
) -> ComparisonRecord:
    """Run and measure the methods in turn; writes `comparison.json` after each.

    Raises DarwinLMError. Suite, steps and training are checked before anything runs.
    """
    check_output(out, "--out", (), [source for _, source in comparison.domains])
    if comparison.suite is not None:
        harness.check_suite(parse_suite(comparison.suite), comparison.data_dir)
    recipes = {name: variant_recipe(recipe, name, source) for name, source in comparison.variants}
    for row in comparison.rows:
        row.check(recipes.get(row.base, recipe))
    base = Run(methods_graph(), MethodRow("").recipe(recipe), out, reporter, allow_remote_code=allow_remote_code)
    base.check(PLAN.name)
    problem, dense = base[PLAN], base[DENSE]
    rows = (MethodRow(DENSE_ROW), *_possible(base, comparison, problem.space))
    domains = _domains(base, comparison)
    runs = _runs(base, rows, recipes, recipe, domains)
    texts = {HELD_OUT: base[EVALUATION], **domains}
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
        texts={name: MeasuredText(source=text.source, tokens=text.n_tokens) for name, text in texts.items()},
        suite=comparison.suite,
        limit=comparison.limit,
        recipe=recipe.model_dump(mode="json"),
    )
    for row in rows:
        run = runs[row]
        facts = _facts(base, run, row)
        measured = run[MEASURE]
        scores = _suite(run, row.name, dense, comparison) if comparison.suite else []
        figures = {"method": row.name, **facts, **measured, "tasks": harness.as_json(scores)}
        compared = compared.model_copy(update={"rows": (*compared.rows, ComparedMethod.model_validate(figures))})
        if parallel.is_main():
            write_json(out / "comparison.json", compared.as_json())
    return compared


def _runs(
    base: Run, rows: tuple[MethodRow, ...], variants: Mapping[str, Recipe], recipe: Recipe, domains: Texts
) -> dict[MethodRow, Run]:
    """A run for each row, which shares everything that it can; all are checked. Raises DarwinLMError."""
    out, reporter = base.folder, base.context.reporter
    searches = {
        name: Run(PRUNE, MethodRow("").recipe(variant), out / "variants" / name, reporter, parent=base)
        for name, variant in variants.items()
    }
    # Evaluation text is never used for training, in any row.
    held_out = {hashed for text in domains.values() for hashed in text.document_hashes}
    documents = base[RESERVED]
    reserved = tuple(sorted(held_out.union(documents)))
    stitched = {name: Deferred(partial(_stitched, base, name)) for name in BASELINES}
    runs: dict[MethodRow, Run] = {}
    for row in sorted(rows, key=lambda each: len(each.steps)):
        given: dict[str, Any] = {"domains": domains, "reserved": reserved}
        if row.base in stitched:
            given["stitch"] = stitched[row.base]
        parent = runs.get(MethodRow(row.base, row.steps[:1]), searches.get(row.base, base))
        of_row = row.recipe(variants.get(row.base, recipe))
        runs[row] = Run(row_graph(row), of_row, out / "rows" / row.name, reporter, given=given, parent=parent)
        runs[row].check(RECOVER.name)
    return runs


def _stitched(base: Run, name: str) -> Stitched:
    stitched: Stitched = base.result(f"method_{name}").stitched
    return stitched


def _possible(base: Run, comparison: ComparisonRequest, space: SearchSpace) -> list[MethodRow]:
    """The rows without methods of `all` that remove whole blocks, if some modules are never cut."""
    if not comparison.every or all(len(module.levels) > 1 for module in space.modules):
        return list(comparison.rows)
    left_out = {row.base for row in comparison.rows if row.base in BASELINES and BASELINES[row.base].blocks}
    why = kept_whole(space, base[DENSE].family)
    base.context.reporter.say(f"left out, since {why}: {', '.join(sorted(left_out))}")
    return [row for row in comparison.rows if row.base not in left_out]


def _facts(base: Run, run: Run, row: MethodRow) -> Row:
    """The description of a row; its model is made if it doesn't exist."""
    if row.base == DENSE_ROW:
        return {"title": "Dense"}
    facts = _baseline(base, row.base) if row.base in BASELINES else _searched(run, row.base)
    if not row.steps:
        return facts
    run.until(EXPORT.name)
    refit, recover = run[REFIT], run[RECOVER]
    facts["title"] = " + ".join((facts["title"].removesuffix(", one shot"), *row.steps))
    facts["seconds"] += _seconds(run, REFIT)
    facts["resumed"] |= _resumed(run, REFIT)
    facts["record"] |= {} if refit is None else {"refit": refit.record}
    if recover is not None:
        record = {name: value for name, value in recover.record.items() if name != "log"}
        facts["seconds"] += max(_seconds(run, RECOVER), float(record["seconds"]))
        facts["training_tokens"] += record["tokens"]
        facts["record"]["recovery"] = record
    return facts


def _baseline(base: Run, name: str) -> Row:
    method, stage = BASELINES[name], base.graph[f"method_{name}"]
    result = base[stage]
    return {
        "title": method.title,
        "source": method.source,
        "seconds": _seconds(base, stage),
        "database_seconds": _seconds(base, SALIENCY, DATABASE) if method.database else None,
        "resumed": method.database and _resumed(base, DATABASE),
        "training_tokens": result.record.get("tokens", 0),
        "allocation": result.allocation,
        "record": dict(result.record),
    }


def _searched(run: Run, name: str) -> Row:
    run.until(SEARCH.name)  # a shared stage that isn't asked for has no time here
    search = run[SEARCH]
    return {
        "title": "DarwinLM, one shot" if name == OURS else f"DarwinLM, {name}",
        "source": "arXiv 2502.07780",
        # The stage has the seconds of its last start, the record those of all.
        "seconds": max(_seconds(run, SEARCH), float(search.record["seconds"])),
        "database_seconds": _seconds(run, SALIENCY, DATABASE),
        "resumed": _resumed(run, DATABASE),
        "training_tokens": 0,
        "allocation": search.allocation,
        "record": {key: search.record[key] for key in ("start_kl", "kl", "evaluations")},
    }


def _seconds(run: Run, *stages: Stage[Any]) -> float:
    names = {stage.name for stage in stages}
    return sum(entry.seconds for entry in run.times if entry.name in names)


def _resumed(run: Run, stage: Stage[Any]) -> bool:
    return any(entry.resumed for entry in run.times if entry.name == stage.name)


def _domains(base: Run, comparison: ComparisonRequest) -> Texts:
    """Further evaluation texts, disjoint from all text that methods see."""
    domains: Texts = {}
    texts = base[TEXT]
    settings, tokenizer = base.recipe.text, base[DENSE].tokenizer()
    for name, source in comparison.domains:
        blocks = split_documents(
            read_documents(source, seed=settings.seed, tokenizer=tokenizer),
            {"evaluation": settings.evaluation_tokens},
            tokenizer,
            settings.sequence_length,
            settings.seed,
            source=source,
        )["evaluation"]
        assert_disjoint({**texts, name: blocks})
        domains[name] = blocks
    return domains


def _suite(run: Run, name: str, dense: Checkpoint, comparison: ComparisonRequest) -> list[harness.TaskScore]:
    """Scores from the file of an earlier run, completed by the missing ones."""
    assert comparison.suite is not None
    context, checkpoint = run.context, run.result("model")
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
    if all(one.task in before and not before[one.task].error for one in wanted):
        return [before[one.task] for one in wanted]
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
            done=before,
            save=save,
            progress=context.reporter.advance,
        )
