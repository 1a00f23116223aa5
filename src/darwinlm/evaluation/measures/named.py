"""Measures by what a user calls them: `sciq,piqa:5,answers.jsonl,check.py:score`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from darwinlm.evaluation.measures.benchmark_measure import BenchmarkMeasure
from darwinlm.evaluation.measures.item_measure import Measure
from darwinlm.evaluation.measures.own_function import FunctionMeasure
from darwinlm.evaluation.measures.questions import FileMeasure
from darwinlm.evaluation.suites import listed, parse_suite
from darwinlm.runtime.errors import RecipeError
from darwinlm.runtime.quantities import parse_quantity

FILES = (".jsonl", ".jsonl.gz", ".json")
"""Endings of files of questions."""
SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class MeasureRequest:
    """What is to be measured.

    Attributes:
        names: Names of measures, several of which may be joined by commas.
        run_code: Whether code that a model writes may be run, on this machine and with the user's rights.
        time: Longest time of a function until its list, or until its next score.
        data_dir: Local files of benchmarks, as for suites.
        limit: Number of items of each benchmark and file; None takes all. Functions choose their own.
    """

    names: tuple[str, ...]
    run_code: bool = False
    time: str = "1h"
    data_dir: Path | None = None
    limit: int | None = None

    def open(self) -> list[Measure]:
        """The measures, checked as far as no model is needed. Raises DarwinLMError."""
        seconds = _seconds(self.time)
        measures = [self._opened(part, seconds) for part in _parts(self.names)]
        names = [measure.name for measure in measures]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise RecipeError(f"--measure names {', '.join(twice)} twice")
        return measures

    def _opened(self, part: str, seconds: float) -> Measure:
        path, colon, function = part.rpartition(":")
        if colon and path.endswith(".py"):
            return FunctionMeasure(Path(path).expanduser(), function, seconds)
        if part.endswith(".py"):
            raise RecipeError(f"--measure {part}: name a function of the file, as in {part}:score")
        if part.lower().endswith(FILES):
            return FileMeasure(Path(part).expanduser(), self.limit, run_code=self.run_code)
        if Path(part).expanduser().exists():
            raise RecipeError(
                f"--measure {part}: a file of questions ends with {', '.join(FILES)} and has one JSON object a line, "
                'such as {"question": "...", "answer": "..."}'
            )
        (task,) = parse_suite(part, option="--measure")
        return BenchmarkMeasure(task, self.data_dir, self.limit, run_code=self.run_code)


def _parts(names: Iterable[str]) -> list[str]:
    """The names one by one, suites as their tasks. Raises RecipeError if there is none."""
    parts = listed(",".join(names))
    if not parts:
        raise RecipeError("--measure is empty: give tasks such as sciq, a file of questions, or check.py:score")
    return parts


def _seconds(time: str) -> float:
    try:
        seconds = parse_quantity(time, SECONDS, "10m")
    except ValueError as error:
        raise RecipeError(f"--measure-time {time}: {error}") from error
    if not isinstance(seconds, float) or not 0 < seconds < 1e8:
        raise RecipeError(f"--measure-time {time}: must be longer than 0")
    return seconds
