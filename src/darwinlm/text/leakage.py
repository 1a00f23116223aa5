"""Guards against evaluating a model on text that it was made with."""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING

from darwinlm.runtime.errors import DataError
from darwinlm.text.sources import HubSource, LocalSource, parse_source, parts_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from darwinlm.text.sequences import TokenSequences

_BENCHMARKS = {
    "SciQ": r"sciq",
    "PIQA": r"piqa",
    "WinoGrande": r"winogrande",
    "ARC": r"ai2[-_ ]?arc|arc[-_ ]?(?:easy|challenge|e|c)",
    "HellaSwag": r"hellaswag",
    "LogiQA": r"logiqa",
    "BoolQ": r"boolq",
    "MMLU": r"mmlu|hendrycks[-_ ]?test",
    "WikiText": r"wikitext|wiki(?=\.test)",
}
"""Evaluation benchmarks, and patterns of their lower-case paths."""

_ORDINARY = frozenset({"WikiText"})
"""Ordinary text, of which only the test split is reserved."""

_TRAINING_WORDS = frozenset({"train", "training"})
_EVALUATION_WORDS = frozenset({"test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "all"})
_TEST_WORDS = frozenset({"test", "testing", "all"})


def assert_disjoint(named: Mapping[str, TokenSequences]) -> None:
    """Refuse two purposes that share a document. Raises DataError."""
    for (first, one), (second, other) in combinations(named.items(), 2):
        shared = len(set(one.document_hashes) & set(other.document_hashes))
        if shared:
            documents = "1 document" if shared == 1 else f"{shared} documents"
            raise DataError(
                f"{first} and {second} share {documents}, so results on one of them would look better than they are. "
                "Split both from one source, or take them from sources that have nothing in common."
            )


def check_not_evaluation_text(source: str) -> None:
    """Refuse a source that looks like the evaluation split of a known benchmark.

    Only names are checked: ids, configurations and splits of hub data sets, and the components of absolute local paths.
    For a folder, the paths of all files in it are checked; for a link with a neutral name, its target. A question
    benchmark must be named as a training split; for WikiText only the test split is refused. Raises DataError if the
    source looks like evaluation text, or there is no such source.
    """
    for each in map(parse_source, parts_of(source)):
        for where, parts in _names_of(each):
            if (benchmark := _benchmark_in(parts)) is not None:
                raise DataError(
                    f"Text source {source!r}: {where} looks like evaluation text of {benchmark}, which would inflate "
                    "the scores of a model made with it. Give other text or the training split; rename a file that "
                    "only has such a name."
                )


def _benchmark_in(parts: Sequence[str]) -> str | None:
    """Name of the benchmark whose evaluation split a path or a name resembles, by its lower-case components, if any.

    Words for splits count in the component with the benchmark's name, below it, or as the full name of the folder
    above: ``boolq/validation/0.arrow``, ``boolq_train.jsonl``, ``test/boolq.jsonl``. The last one decides.
    """
    splits = _TRAINING_WORDS | _EVALUATION_WORDS
    for benchmark, pattern in _BENCHMARKS.items():
        first = _place(parts, pattern)
        if first is not None:
            above = [part for part in parts[max(first - 1, 0) : first] if part in splits]
            below = [word for part in parts[first:] for word in re.findall(r"[a-z]+", part) if word in splits]
            last = ["", *above, *below][-1]
            if last in _TEST_WORDS if benchmark in _ORDINARY else last not in _TRAINING_WORDS:
                return benchmark
    return None


def _place(parts: Sequence[str], pattern: str) -> int | None:
    named = re.compile(rf"(?<![a-z0-9])(?:{pattern})(?![a-z])")
    return next((index for index, part in enumerate(parts) if named.search(part)), None)


def _names_of(source: HubSource | LocalSource) -> Iterator[tuple[str, list[str]]]:
    """What is read, with the lower-case components of its name; of a link with a neutral name, those of its target."""
    if isinstance(source, HubSource):
        for split in source.split.lower().split("+"):
            yield str(source), [*f"{source.name}/{source.config or ''}".lower().split("/"), split]
        return
    for path in source.files():
        named, target = ([part.lower() for part in each.parts] for each in (path.absolute(), path.resolve()))
        mentions = any(_place(named, pattern) is not None for pattern in _BENCHMARKS.values())
        yield str(path), named if mentions else target
