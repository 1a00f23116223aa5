"""Compare methods with the same model, units, budget, text and surgery. Methods and measurements are stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from darwinlm import __version__
from darwinlm.comparison.entries import DENSE, HELD_OUT, OURS, MethodRow, steps_run, variant_run
from darwinlm.comparison.methods import BASELINES, MethodInputs
from darwinlm.comparison.record import ComparedBudget, ComparedMethod, ComparisonRecord, MeasuredText
from darwinlm.data import Shuffle, TokenBlocks, assert_disjoint, read_documents, split_documents
from darwinlm.evaluation import harness
from darwinlm.evaluation.quality import measure_quality
from darwinlm.evaluation.suites import parse_suite
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.run import Run
from darwinlm.runtime import parallel
from darwinlm.runtime.artifact import digest_of, read_json, write_json
from darwinlm.runtime.errors import BudgetError
from darwinlm.runtime.places import check_output
from darwinlm.search.problem.space import SearchSpace, kept_whole
from darwinlm.stages.export import export_stage
from darwinlm.stages.plan import plan_stage
from darwinlm.stages.recover import check_recovery, recover_stage
from darwinlm.stages.refit import refit_stage
from darwinlm.stages.search import search_stage
from darwinlm.stages.stitch import Stitched, stitch_stage
from darwinlm.stages.text import text_stage
from darwinlm.stages.vocabulary import vocabulary_stage
from darwinlm.surgery.stitch import block_parameters, stitch

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


def compare_methods(run: Run, comparison: ComparisonRequest) -> ComparisonRecord:
    """Run and measure the methods in turn; writes `comparison.json` after each.

    Raises DarwinLMError. Suite, steps and training are checked before anything runs.
    """
    check_output(run.folder, "--out", (), [source for _, source in comparison.domains])
    if comparison.suite is not None:
        harness.check_suite(parse_suite(comparison.suite), comparison.data_dir)
    vocabulary_stage(run)
    runs = {name: variant_run(run, name, source) for name, source in comparison.variants}
    for row in comparison.rows:
        row.check(runs.get(row.base, run).recipe)
    inputs = MethodInputs(run, text_stage(run), plan_stage(run))
    methods = _possible(run, comparison, inputs.plan.space)
    for row in methods:
        if "recovery" in row.steps:
            check_recovery(runs.get(row.base, run))
    variant_inputs = {name: MethodInputs(variant, inputs.texts, plan_stage(variant)) for name, variant in runs.items()}
    domains = _domains(run, inputs, comparison)
    texts = {HELD_OUT: inputs.texts["evaluation"], **domains}
    settings, cost = run.recipe.budget, inputs.plan.cost
    compared = ComparisonRecord(
        version=__version__,
        model=run.checkpoint.source,
        budget=ComparedBudget(
            kind=settings.kind,
            unit=cost.unit,
            upper=inputs.plan.budget.limit,
            dense=cost.dense,
            keep=settings.keep,
        ),
        texts={name: MeasuredText(source=text.source, tokens=text.n_tokens) for name, text in texts.items()},
        suite=comparison.suite,
        limit=comparison.limit,
        recipe=run.recipe.model_dump(mode="json"),
    )
    for method in (MethodRow(DENSE), *methods):
        checkpoint, facts = _made(variant_inputs.get(method.base, inputs), method, domains)
        measured = _measure(run, method.name, checkpoint, texts)
        scores = _suite(run, method.name, checkpoint, comparison) if comparison.suite else []
        figures = {"method": method.name, **facts, **measured, "tasks": harness.as_json(scores)}
        rows = (*compared.rows, ComparedMethod.model_validate(figures))
        compared = compared.model_copy(update={"rows": rows})
        if parallel.is_main():
            write_json(run.folder / "comparison.json", compared.as_json())
    return compared


def _possible(run: Run, comparison: ComparisonRequest, space: SearchSpace) -> list[MethodRow]:
    """The rows without methods of `all` that remove whole blocks, if some modules are never cut."""
    if not comparison.every or all(len(module.levels) > 1 for module in space.modules):
        return list(comparison.rows)
    left_out = {row.base for row in comparison.rows if row.base in BASELINES and BASELINES[row.base].blocks}
    run.reporter.say(f"left out, since {kept_whole(space, run.checkpoint.family)}: {', '.join(sorted(left_out))}")
    return [row for row in comparison.rows if row.base not in left_out]


def _made(inputs: MethodInputs, row: MethodRow, domains: Mapping[str, TokenBlocks]) -> tuple[Checkpoint, Row]:
    """The model of a row, and its description."""
    if row.base == DENSE:
        return inputs.run.checkpoint, {"title": "Dense"}
    stitched, facts = _baseline(inputs, row.base) if row.base in BASELINES else _searched(inputs, row.base)
    if not row.steps:
        return stitched.checkpoint, facts
    run = steps_run(inputs.run, row)
    refitted = refit_stage(run, inputs.texts, stitched) if "refit" in row.steps else None
    # Evaluation text is never used for training, in any row.
    texts = {**inputs.texts, **domains}
    recovered = recover_stage(run, texts, stitched, refitted) if "recovery" in row.steps else None
    exported = export_stage(run, inputs.texts, stitched, refitted, recovered)
    facts["title"] = " + ".join((facts["title"].removesuffix(", one shot"), *row.steps))
    facts["seconds"] += _seconds(run, "refit")
    facts["resumed"] |= _resumed(run, "refit")
    facts["record"] |= {} if refitted is None else {"refit": refitted.record}
    if recovered is not None:
        record = {name: value for name, value in recovered.record.items() if name != "log"}
        facts["seconds"] += max(_seconds(run, "recover"), float(record["seconds"]))
        facts["training_tokens"] += record["tokens"]
        facts["record"]["recovery"] = record
    return Checkpoint.open(exported.folder), facts


def _baseline(inputs: MethodInputs, name: str) -> tuple[Stitched, Row]:
    run, method = inputs.run, BASELINES[name]
    key = {
        "model": run.checkpoint.digest,
        "calibration": inputs.texts["calibration"].digest,
        "fitness": inputs.texts["fitness"].digest,
        "units": run.recipe.units.model_dump(),
        "budget": run.recipe.budget.model_dump(),
        "score_tokens": run.recipe.search.stages[0].tokens,
        "seed": run.recipe.search.seed,
        "minutes": run.recipe.search.minutes if method.searches else None,
        "database": inputs.database.stage.digest if method.database else None,
        "arithmetic": run.arithmetic,
    }
    stage_name = f"method_{name}"
    with run.stage(stage_name, key, method.title) as (stage, work):
        if work:
            made = method.make(inputs, stage.folder)
            cost = inputs.plan.cost
            used = cost.of(made.allocation)
            if used > inputs.plan.budget.limit:
                raise BudgetError(f"{name} needs {cost.words(used)}, more than the budget: please report this")
            save_model(stitch(made.reader, made.allocation), stage.folder / "model")
            write_json(stage.folder / "result.json", {"allocation": made.allocation, "record": made.record})
        result = read_json(stage.folder / "result.json")
    return Stitched(stage, Checkpoint.open(stage.folder / "model")), {
        "title": method.title,
        "source": method.source,
        "seconds": _seconds(run, stage_name),
        "database_seconds": _seconds(run, "saliency", "database") if method.database else None,
        "resumed": method.database and _resumed(run, "database"),
        "training_tokens": result["record"].get("tokens", 0),
        "allocation": result["allocation"],
        "record": result["record"],
    }


def _searched(inputs: MethodInputs, name: str) -> tuple[Stitched, Row]:
    run = inputs.run
    search = search_stage(run, inputs.texts, inputs.database, inputs.plan)
    stitched = stitch_stage(run, inputs.database, search)
    return stitched, {
        "title": "DarwinLM, one shot" if name == OURS else f"DarwinLM, {name}",
        "source": "arXiv 2502.07780",
        # Scores are a separate stage, which a reused search doesn't open.
        "seconds": max(_seconds(run, "search"), float(search.record["seconds"])),
        "database_seconds": _seconds(run, "saliency", "database"),
        "resumed": _resumed(run, "database"),
        "training_tokens": 0,
        "allocation": search.allocation,
        "record": {key: search.record[key] for key in ("start_kl", "kl", "evaluations")},
    }


def _seconds(run: Run, *stages: str) -> float:
    """Total time of stages; a stage that was opened twice counts once."""
    times = ([entry.seconds for entry in run.timings if entry.name == stage] for stage in stages)
    return sum(max(seconds, default=0.0) for seconds in times)


def _resumed(run: Run, stage: str) -> bool:
    return any(entry.resumed for entry in run.timings if entry.name == stage)


def _domains(run: Run, inputs: MethodInputs, comparison: ComparisonRequest) -> dict[str, TokenBlocks]:
    """Further evaluation texts, disjoint from all text that methods see."""
    domains = {}
    settings, tokenizer = run.recipe.text, run.checkpoint.tokenizer()
    for name, source in comparison.domains:
        blocks = split_documents(
            read_documents(source, shuffle=Shuffle(run.recipe.search.seed), tokenizer=tokenizer),
            {"evaluation": settings.evaluation_tokens},
            tokenizer,
            settings.sequence_length,
            run.recipe.search.seed,
            source=source,
        )["evaluation"]
        assert_disjoint({**inputs.texts, name: blocks})
        domains[name] = blocks
    return domains


def _measure(run: Run, name: str, checkpoint: Checkpoint, texts: Mapping[str, TokenBlocks]) -> Row:
    """Sizes of a model, and its perplexity and KL on every text."""
    key = {
        "dense": run.checkpoint.digest,
        "model": checkpoint.digest,
        "texts": {place: text.digest for place, text in texts.items()},
        "arithmetic": run.arithmetic,
    }
    with run.stage(f"measure_{name}", key, f"measure {name}", shared=True) as (stage, work):
        if work:
            with parallel.agree():
                dense = run.checkpoint.load(run.dtype, run.device)
                model = dense if checkpoint is run.checkpoint else checkpoint.load(run.dtype, run.device)
            params = sum(parameter.numel() for parameter in model.parameters())
            row: Row = {
                "params": params,
                "block_params": block_parameters(model, run.checkpoint.family.layers),
                "bytes": params * run.checkpoint.dtype.itemsize,
                "texts": {},
            }
            for place, text in texts.items():
                quality = measure_quality(
                    dense, {name: model}, text.tokens, batch_tokens=run.batch_tokens, progress=run.reporter.advance
                )
                row["texts"][place] = asdict(quality[name])
            parallel.in_main(write_json, stage.folder / "row.json", row)
        measured: Row = read_json(stage.folder / "row.json")
    return measured


def _suite(run: Run, name: str, checkpoint: Checkpoint, comparison: ComparisonRequest) -> list[harness.TaskScore]:
    """Scores from the file of an earlier run, completed by the missing ones."""
    assert comparison.suite is not None
    key = {
        "model": checkpoint.digest,
        "suite": comparison.suite,
        "data": None if comparison.data_dir is None else str(comparison.data_dir.absolute()),
        "limit": comparison.limit,
        "arithmetic": run.arithmetic,
    }
    file = run.folder / "suites" / f"{name}_{digest_of(key)[:12]}.json"
    before: dict[str, harness.TaskScore] = {}
    with parallel.agree():
        if parallel.is_main() and file.exists():
            before = harness.from_json(read_json(file))
    before, wanted = parallel.broadcast(before), parse_suite(comparison.suite)
    if all(one.task in before and not before[one.task].error for one in wanted):
        return [before[one.task] for one in wanted]
    with parallel.agree():
        model = checkpoint.load(run.dtype, run.device)

    def save(scores: list[harness.TaskScore]) -> None:
        if parallel.is_main():
            write_json(file, harness.as_json(scores))

    with run.reporter.stage(f"suite {name}"):
        return harness.run_suite(
            model,
            run.checkpoint.tokenizer(),
            wanted,
            data_dir=comparison.data_dir,
            limit=comparison.limit,
            done=before,
            save=save,
            progress=run.reporter.advance,
        )
