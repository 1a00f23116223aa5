"""Compare methods: same model, units, budget, text and surgery; each method and each measurement is a stage."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from darwinlm import __version__
from darwinlm.artifact import digest_of, read_json, write_json
from darwinlm.data import assert_disjoint, read_documents, split_documents
from darwinlm.data.splits import TokenBlocks
from darwinlm.errors import BudgetError, RecipeError
from darwinlm.evaluation import harness, summary
from darwinlm.evaluation.quality import measure_quality
from darwinlm.evaluation.suites import parse_suite
from darwinlm.export.hf import save_model
from darwinlm.families.checkpoint import Checkpoint
from darwinlm.recipe import Recipe, find_recipe, merge
from darwinlm.run import Run
from darwinlm.stages.export import export_stage
from darwinlm.stages.methods import BASELINES, Bench
from darwinlm.stages.plan import plan_stage
from darwinlm.stages.refit import refit_stage
from darwinlm.stages.search import search_stage
from darwinlm.stages.stitch import stitch_stage
from darwinlm.stages.text import text_stage
from darwinlm.surgery.stitch import block_parameters, stitch

OURS = {"darwinlm": "DarwinLM, one shot", "darwinlm+refit": "DarwinLM + refit"}
HELD_OUT = "held out"
Row = dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """What is to be compared.

    Attributes:
        methods: names, in the order of the table.
        domains: name and source of more text to measure on, beside the run's own held-out part.
        variants: name and recipe file of more searches, each a row of its own.
        suite: benchmark tasks; None leaves them out.
        data_dir: local files of the tasks.
        limit: items of each task.
    """

    methods: tuple[str, ...]
    domains: tuple[tuple[str, str], ...] = ()
    variants: tuple[tuple[str, str], ...] = ()
    suite: str | None = None
    data_dir: Path | None = None
    limit: int | None = None


def parse_methods(text: str) -> tuple[str, ...]:
    """Names of methods, `all` for all of them. Raises RecipeError with a near name."""
    known = [*BASELINES, *OURS]
    names = tuple(known) if text == "all" else tuple(filter(None, (part.strip() for part in text.split(","))))
    if not names:
        raise RecipeError(f"--methods is empty: give all, or some of {', '.join(known)}")
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
            raise RecipeError(f"--methods: there is no method '{name}': {hint}")
    if len(set(names)) < len(names):
        raise RecipeError(f"--methods names one twice: {', '.join(names)}")
    return names


def parse_named(option: str, items: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`NAME=SOURCE` strings of an option. Raises RecipeError."""
    found: list[tuple[str, str]] = []
    for item in items:
        name, separator, source = item.partition("=")
        if not separator or not name.strip() or not source.strip():
            raise RecipeError(f"{option} takes NAME=SOURCE, not '{item}'")
        if name.strip() in (HELD_OUT, *BASELINES, *OURS, *(known for known, _ in found)):
            raise RecipeError(f"{option} names '{name.strip()}' twice")
        found.append((name.strip(), source.strip()))
    return tuple(found)


def compare(run: Run, comparison: Comparison) -> dict[str, Any]:
    """Run and measure the methods; writes `comparison.json` after every one.

    Raises:
        DarwinLMError: the input is wrong. A suite is checked before anything runs.
    """
    if "darwinlm+refit" in comparison.methods and not run.recipe.refit.enabled:
        raise RecipeError("--methods names darwinlm+refit, but refit.enabled is false")
    if comparison.suite is not None:
        harness.check_suite(parse_suite(comparison.suite), comparison.data_dir)
    variants = {name: variant_run(run, name, source) for name, source in comparison.variants}
    bench = Bench(run, text_stage(run), plan_stage(run))
    texts = {HELD_OUT: bench.texts["evaluation"], **_domains(run, bench, comparison)}
    models = {"dense": _dense(run)}
    found = _head(run, bench, texts, comparison)
    for name in comparison.methods:
        models[name] = _ours(bench, name) if name in OURS else _baseline(bench, name)
    for name, variant in variants.items():
        checkpoint, facts = _ours(Bench(variant, bench.texts, plan_stage(variant)), "darwinlm")
        models[name] = checkpoint, {**facts, "title": f"DarwinLM, {name}"}
    dense: Any = None
    for name, (checkpoint, facts) in models.items():
        measured, dense = _measure(run, bench, name, checkpoint, texts, dense)
        scores = _suite(run, name, checkpoint, comparison) if comparison.suite else []
        found["rows"].append({"method": name, **facts, **measured, "tasks": harness.as_json(scores)})
        write_json(run.folder / "comparison.json", found)
    return found


class _Variant(Run):
    """A run inside another's folder that shares its model and text, and its database where the units are the same."""

    def __init__(self, base: Run, name: str, recipe: Recipe) -> None:
        self.base = base
        same = recipe.units == base.recipe.units and recipe.database == base.recipe.database
        self.common = {"source", "text", *(("plan", "database") if same else ())}
        super().__init__(recipe, base.folder / "variants" / name, base.reporter)

    def path(self, stage: str) -> Path:
        """Folder of a stage."""
        return self.base.path(stage) if stage in self.common else super().path(stage)


def variant_run(run: Run, name: str, source: str) -> Run:
    """The same run with other settings of the search, from a recipe that holds only what differs.

    Raises:
        RecipeError: the recipe is wrong, or changes more than search, units, database and refit.
    """
    path = find_recipe(source)
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    allowed = ("search", "units", "database", "refit")
    if not isinstance(tree, dict) or not set(tree) <= set(allowed):
        raise RecipeError(
            f"--variant {name}: {source} must be a recipe with nothing but {', '.join(allowed)}, so that model, text "
            "and budget stay comparable"
        )
    flat = {f"{section}.{field}": value for section, part in tree.items() for field, value in (part or {}).items()}
    return _Variant(run, name, merge(run.recipe, (), flat))


def _head(run: Run, bench: Bench, texts: Mapping[str, TokenBlocks], comparison: Comparison) -> dict[str, Any]:
    plan = bench.plan
    return {
        "version": __version__,
        "model": run.checkpoint.source,
        "budget": {
            "kind": run.recipe.budget.kind,
            "unit": plan.cost.unit,
            "upper": plan.budget.limit,
            "dense": plan.cost.dense,
            "keep": run.recipe.budget.keep,
        },
        "texts": {name: {"source": text.source, "tokens": text.n_tokens} for name, text in texts.items()},
        "suite": comparison.suite,
        "limit": comparison.limit,
        "recipe": run.recipe.model_dump(mode="json"),
        "rows": [],
    }


def _dense(run: Run) -> tuple[Checkpoint, Row]:
    return run.checkpoint, {"title": "Dense", "seconds": None, "database_seconds": None, "record": {}}


def _baseline(bench: Bench, name: str) -> tuple[Checkpoint, Row]:
    run, method = bench.run, BASELINES[name]
    key = {
        "model": run.checkpoint.digest,
        "calibration": bench.texts["calibration"].digest,
        "fitness": bench.texts["fitness"].digest,
        "units": run.recipe.units.model_dump(),
        "budget": run.recipe.budget.model_dump(),
        "settings": run.recipe.baselines.model_dump(),
        "score_tokens": run.recipe.search.score_tokens,
        "seed": run.recipe.search.seed,
        "database": bench.database.stage.digest if method.database else None,
        "arithmetic": run.arithmetic,
    }
    with run.stage(f"method_{name}", key, method.title) as (stage, work):
        if work:
            made = method.make(bench, stage.folder)
            cost = bench.plan.cost
            used = cost.of(made.allocation)
            if used > bench.plan.budget.limit:
                raise BudgetError(f"{name} needs {cost.words(used)}, more than the budget: please report this")
            save_model(stitch(made.reader, made.allocation), stage.folder / "model")
            write_json(stage.folder / "result.json", {"allocation": made.allocation, "record": made.record})
        result = read_json(stage.folder / "result.json")
    return Checkpoint.open(stage.folder / "model"), {
        "title": method.title,
        "source": method.source,
        "seconds": run.timings[-1]["seconds"],
        "database_seconds": _seconds(run, "database") if method.database else None,
        "allocation": result["allocation"],
        "record": result["record"],
    }


def _ours(bench: Bench, name: str) -> tuple[Checkpoint, Row]:
    run = bench.run
    search = search_stage(run, bench.texts, bench.database, bench.plan)
    stitched = stitch_stage(run, bench.database, search)
    facts: Row = {
        "title": OURS[name],
        "source": "arXiv 2502.07780",
        # Scores are a stage of their own; a search that is reused doesn't open it again.
        "seconds": max(_seconds(run, "search"), float(search.record["seconds"])),
        "database_seconds": _seconds(run, "database"),
        "allocation": search.allocation,
        "record": {key: search.record[key] for key in ("start_kl", "kl", "evaluations")},
    }
    if name == "darwinlm":
        return stitched.checkpoint, facts
    refitted = refit_stage(run, bench.texts, stitched)
    assert refitted is not None, "checked before anything runs"
    exported = export_stage(run, bench.texts, stitched, refitted)
    facts["seconds"] = facts["seconds"] + _seconds(run, "refit")
    return Checkpoint.open(exported.folder), facts


def _seconds(run: Run, stage: str) -> float:
    return max((float(entry["seconds"]) for entry in run.timings if entry["name"] == stage), default=0.0)


def _domains(run: Run, bench: Bench, comparison: Comparison) -> dict[str, TokenBlocks]:
    """More text, disjoint from all that methods see."""
    found = {}
    settings = run.recipe.text
    for name, source in comparison.domains:
        blocks = split_documents(
            read_documents(source),
            {"evaluation": settings.evaluation_tokens},
            run.checkpoint.tokenizer(),
            settings.sequence_length,
            run.recipe.search.seed,
            source=source,
        )["evaluation"]
        assert_disjoint({**bench.texts, name: blocks})
        found[name] = blocks
    return found


def _measure(
    run: Run, bench: Bench, name: str, checkpoint: Checkpoint, texts: Mapping[str, TokenBlocks], dense: Any
) -> tuple[Row, Any]:
    """Sizes, perplexity and KL on every text; returns the dense model too, so that it is loaded once."""
    key = {
        "dense": run.checkpoint.digest,
        "model": checkpoint.digest,
        "texts": {place: text.digest for place, text in texts.items()},
        "arithmetic": run.arithmetic,
    }
    with run.stage(f"measure_{name}", key, f"measure {name}") as (stage, work):
        if work:
            dense = dense or run.checkpoint.load(run.dtype, run.device)
            model = dense if checkpoint is run.checkpoint else checkpoint.load(run.dtype, run.device)
            params = sum(parameter.numel() for parameter in model.parameters())
            row: Row = {
                "params": params,
                "block_params": block_parameters(model, run.checkpoint.family.layers),
                "bytes": params * _itemsize(run.checkpoint.dtype),
                "texts": {},
            }
            for place, text in texts.items():
                quality = measure_quality(
                    dense, {name: model}, text.tokens, batch_tokens=run.batch_tokens, progress=run.reporter.advance
                )
                row["texts"][place] = asdict(quality[name])
            write_json(stage.folder / "row.json", row)
        measured: Row = read_json(stage.folder / "row.json")
    return measured, dense


def _itemsize(dtype: Any) -> int:
    return dtype.itemsize if isinstance(dtype, torch.dtype) else torch.float32.itemsize


def _suite(run: Run, name: str, checkpoint: Checkpoint, comparison: Comparison) -> list[harness.TaskScore]:
    assert comparison.suite is not None
    key = {
        "model": checkpoint.digest,
        "suite": comparison.suite,
        "data": None if comparison.data_dir is None else str(comparison.data_dir.absolute()),
        "limit": comparison.limit,
        "arithmetic": run.arithmetic,
    }
    file = run.folder / "suites" / f"{name}_{digest_of(key)[:12]}.json"
    before = harness.from_json(read_json(file)) if file.exists() else {}
    wanted = parse_suite(comparison.suite)
    if all(one.task in before and not before[one.task].error for one in wanted):
        return [before[one.task] for one in wanted]
    model = checkpoint.load(run.dtype, run.device)
    with run.reporter.stage(f"suite {name}"):
        return harness.run_suite(
            model,
            run.checkpoint.tokenizer(),
            wanted,
            data_dir=comparison.data_dir,
            limit=comparison.limit,
            done=before,
            save=lambda scores: write_json(file, harness.as_json(scores)),
            progress=run.reporter.advance,
        )


def comparison_cells(found: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]], list[str]]:
    """Headings, cells and remarks of the one table."""
    places = list(found["texts"])
    headings = ["method", "block params", "kept, %", "MB", "minutes"]
    headings += [f"{figure}, {place}" for place in places for figure in ("perplexity", "KL")]
    tasks = found["rows"][0]["tasks"] if found["rows"] else []
    headings += [f"{score['title']}, %" for score in tasks] + (["average, %"] if len(tasks) > 1 else [])
    cells, remarks = [], []
    for row in found["rows"]:
        time = "" if row["seconds"] is None else f"{(row['seconds'] + (row['database_seconds'] or 0)) / 60:.1f}"
        line = [
            row["title"],
            f"{row['block_params'] / 1e6:.1f} M",
            f"{100 * row['block_params'] / found['rows'][0]['block_params']:.2f}",
            f"{row['bytes'] / 1e6:.0f}",
            time,
        ]
        for place in places:
            line += [f"{row['texts'][place]['perplexity']:.4g}", f"{row['texts'][place]['kl']:.4f}"]
        if tasks:
            scores = list(harness.from_json(row["tasks"]).values())
            line += [f"{summary.percent(score.value)} ± {summary.percent(score.stderr)}" for score in scores]
            mean = summary.average(scores)
            if len(tasks) > 1:
                line.append(f"{summary.percent(mean.value)} ± {summary.percent(mean.stderr)}")
            remarks += [f"{row['title']}: {note}" for note in summary.notes(scores)]
        cells.append(tuple(line))
    remarks.append(
        "minutes: the method itself and, where it uses the pruning database, building that. "
        + "; ".join(f"{place}: {text['tokens']:,} tokens of {text['source']}" for place, text in found["texts"].items())
    )
    return tuple(headings), cells, remarks
