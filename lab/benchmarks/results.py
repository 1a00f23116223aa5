"""All rows of the comparison in docs/results.md. Takes hours on two cores, is resumable, and never runs in CI.

Every part is one `python -m lab compare` in a separate folder. An interrupted run therefore resumes, and each part can
be repeated alone. The tables are written to OUT/results.md after every part.

    python -m lab.benchmarks.results --out runs/results --text TEXT --domain web=WEB --data-dir DATA

- `half-SEED`: half of the block parameters. The first seed runs every method, some with training, and the quick suite.
  Further seeds run the methods that search.
- `paper-suite`: the paper's nine tasks with its shots, for the rows that the paper compares. The models are reused.
- `75` and `35`: other budgets, with perplexity and KL only.

Times of the parts of `half-0` with the demo's model in bfloat16, on one thread of a processor with AVX-512 whose other
core was busy:

    each row     perplexity and KL, three texts of 8,192 tokens                1.5 to 2 min
                 quick suite, 200 items a task, 105,000 tokens                 4 to 6 min
    uniform, magnitude, ziplm                                                  under 1 min
    minitron, shortgpt: a pass over the calibration text                       2 to 5 min
    random, darwinlm, paper: --minutes
    sheared: 65,536 tokens in float32                                          16 min
    database: 65,536 tokens, and once more for the paper's units               5 and 4 min
    +refit, 65,536 tokens                                                      6 min
    a trained row, 98,304 tokens: 11 min of training, the dense model's pass   18 min

With the defaults, 10 minutes a search and 300,000 tokens of training for each of four rows, that is six to seven hours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from darwinlm.evaluation.suites import parse_suite
from darwinlm.runs.demo_recipe import demo_model
from darwinlm.runtime.tables import Table, markdown
from lab.comparison.entries import everywhere
from lab.comparison.record import ComparisonRecord, read_comparison
from lab.comparison.table import comparison_cells

PAPER = Path(__file__).with_name("paper_search.yaml")
ALL = (*everywhere(), "darwinlm", "darwinlm+refit", "paper")
SEARCHING = ("random", "sheared", "darwinlm", "darwinlm+refit", "paper")
"""Methods with results that depend on a seed."""
PAPER_ROWS = ("uniform", "ziplm", "sheared", "paper", "darwinlm", "darwinlm+refit")
"""Rows of the paper's suite; some of them are trained in the first table."""
FITTED = 65536
"""Tokens of calibration and of the refit."""


@dataclass(frozen=True)
class Part:
    """One comparison.

    Attributes:
        name: Name of its table.
        folder: Folder of its run, shared by parts that reuse the same models.
        keep: Share of the block parameters.
        methods: Rows of the table.
        seed: Seed of search and text.
        suite: Benchmark tasks, or None.
        limit: Items of each task.
    """

    name: str
    folder: str
    keep: str
    methods: tuple[str, ...]
    seed: int = 0
    suite: str | None = None
    limit: int | None = None


def parts(options: argparse.Namespace) -> list[Part]:
    """All comparisons, with the cheap and informative ones first."""
    trained = tuple(options.recovered) if options.recovery else ()
    ours = tuple(name for name in trained if name.startswith("darwinlm+"))
    quick, paper = (_suite(name, options) for name in (options.suite, "paper"))
    half = [Part("half-0", "half-0", "50%", (*ALL, *trained), 0, quick, options.limit)]
    half += [Part(f"half-{seed}", f"half-{seed}", "50%", SEARCHING, seed) for seed in range(1, options.seeds)]
    budgets = [Part(keep.strip("%"), f"keep-{keep.strip('%')}", keep, (*ALL, *ours)) for keep in options.keep]
    if options.paper_limit:
        half.append(Part("paper-suite", "half-0", "50%", (*PAPER_ROWS, *trained), 0, paper, options.paper_limit))
    return [*half, *budgets]


def _suite(name: str, options: argparse.Namespace) -> str | None:
    """The suite's tasks with their numbers of examples."""
    return ",".join(f"{task.name}:{task.shots}" for task in parse_suite(name)) if name else None


def command(part: Part, options: argparse.Namespace) -> list[str]:
    """The command line of one comparison."""
    line = [sys.executable, "-m", "lab", "compare", options.model or str(demo_model())]
    line += ["--methods", ",".join(part.methods), "--keep", part.keep, "--out", str(options.out / part.folder)]
    line += ["--text", options.text, "--variant", f"paper={PAPER}"]
    for domain in options.domain:
        line += ["--domain", domain]
    if part.suite:
        line += ["--suite", part.suite, "--limit", str(part.limit)]
        line += ["--data-dir", str(options.data_dir)] if options.data_dir else []
    settings = [f"text.seed={part.seed}", f"search.seed={part.seed}", f"search.minutes={options.minutes}"]
    settings += ["search.generations=100000", f"text.calibration_tokens={FITTED}", f"refit.tokens={FITTED}"]
    if options.recovery:
        settings.append(f"recovery.tokens={options.recovery}")
    settings += options.settings
    for setting in settings:
        line += ["--set", setting]
    return line


def tables(done: dict[str, ComparisonRecord]) -> str:
    """Tables of all parts, and the spread over seeds, as Markdown."""
    text = []
    for name, comparison in done.items():
        text.append(f"## {name}\n\n{markdown(comparison_cells(comparison))}")
    seeds = [comparison for name, comparison in done.items() if name.startswith("half-")]
    if len(seeds) > 1:
        text.append(f"## Half, {len(seeds)} seeds: mean and standard deviation\n\n{spread(seeds)}")
    return "\n".join(text)


def spread(seeds: Sequence[ComparisonRecord]) -> str:
    """Perplexity and KL of the methods common to all seeds."""
    places = list(seeds[0].texts)
    headings = ["method", *(f"{figure}, {place}" for place in places for figure in ("perplexity", "KL"))]
    by_method = [{row.method: row for row in comparison.rows} for comparison in seeds]
    cells = []
    for name, first in by_method[0].items():
        rows = [comparison[name] for comparison in by_method if name in comparison]
        if len(rows) < len(seeds):
            continue
        line = [first.title]
        for place in places:
            for figure in ("perplexity", "kl"):
                values = [getattr(row.texts[place], figure) for row in rows]
                line.append(f"{statistics.mean(values):.4g} ± {statistics.stdev(values):.2g}")
        cells.append(tuple(line))
    return markdown(Table(headings, cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/results"))
    parser.add_argument("--model", help="default: the demo's")
    parser.add_argument("--text", required=True, help="text of all purposes but recovery")
    parser.add_argument("--domain", action="append", default=[], metavar="NAME=SOURCE", help="further evaluation text")
    parser.add_argument("--data-dir", type=Path, help="folder with local files of the tasks; default: the hub")
    parser.add_argument("--suite", default="quick", help="suite of the first table; '' for none")
    parser.add_argument("--limit", type=int, default=200, help="items of each task of the suite")
    parser.add_argument(
        "--paper-limit", type=int, default=50, help="items of each task of the paper's suite; 0 for none"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--keep", nargs="*", default=["75%", "35%"], help="other budgets")
    parser.add_argument("--minutes", default="10m", help="time of each search, including random search")
    parser.add_argument("--recovery", default="300k", help="training tokens of each trained row; '' for none")
    parser.add_argument(
        "--recovered",
        nargs="*",
        default=["darwinlm+refit+recovery", "paper+recovery", "sheared+recovery", "minitron+recovery"],
        help="rows with training",
    )
    parser.add_argument("--only", nargs="*", help="names of parts")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="FIELD=VALUE")
    options = parser.parse_args()
    done: dict[str, ComparisonRecord] = {}
    for part in parts(options):
        if options.only and part.name not in options.only:
            continue
        print(f"== {part.name}", flush=True)
        subprocess.run(command(part, options), check=True)
        comparison = read_comparison(options.out / part.folder / "comparison.json")
        (options.out / f"{part.name}.json").write_text(json.dumps(comparison.as_json(), indent=1), encoding="utf-8")
        done[part.name] = comparison
        (options.out / "results.md").write_text(tables(done), encoding="utf-8")
    print(f"tables {options.out / 'results.md'}")


if __name__ == "__main__":
    main()
