"""Guards against evaluating a model on text that it was made with."""

from __future__ import annotations

import re
from itertools import combinations
from typing import TYPE_CHECKING

from darwinlm.runtime.errors import DataError
from darwinlm.text.sources import HubSource, LocalSource, parse_source, parts_of

if TYPE_CHECKING:
    from collections.abc import Mapping

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


def check_not_evaluation_text(source: str, *, allow_benchmark_text: str = "") -> None:
    """Refuse a source that looks like the evaluation split of a known benchmark.

    Only names are checked: ids, configurations and splits of hub data sets, and the components of absolute local paths.
    For a folder, the paths of all files in it are checked; for a link with a neutral name, its target. A question
    benchmark must be named as a training split; for WikiText only the test split is refused. A reason in the user's
    words in `allow_benchmark_text` allows such text. Raises DataError if the source looks like evaluation text and no
    reason is given, or there is no such source.
    """
    if allow_benchmark_text.strip():
        return
    for each in map(parse_source, parts_of(source)):
        match = _in_hub_name(each) if isinstance(each, HubSource) else _in_local_files(each)
        if match is None:
            continue
        benchmark, where = match
        raise DataError(
            f"Text source {source!r}: {where} looks like evaluation text of {benchmark}, which would inflate the "
            "scores of a model made with it. Give other text or the training split, or write the reason why it's fine "
            "in text.allow_benchmark_text."
        )


def _in_hub_name(source: HubSource) -> tuple[str, str] | None:
    split = set(_words(source.split))
    trains = split & _TRAINING_WORDS and not split & _EVALUATION_WORDS
    name = f"{source.name}/{source.config or ''}".lower()
    for benchmark, pattern in _BENCHMARKS.items():
        reserved = split & _TEST_WORDS if benchmark in _ORDINARY else not trains
        if reserved and _mention(name, pattern) is not None:
            return benchmark, str(source)
    return None


def _in_local_files(source: LocalSource) -> tuple[str, str] | None:
    for path in source.files():
        named, target = ([part.lower() for part in each.parts] for each in (path.absolute(), path.resolve()))
        mentions = any(_mention(part, pattern) for part in named for pattern in _BENCHMARKS.values())
        benchmark = _in_path(named if mentions else target)
        if benchmark is not None:
            return benchmark, str(path)
    return None


def _in_path(parts: list[str]) -> str | None:
    """Name of the benchmark whose evaluation split a file resembles, if any."""
    for benchmark, pattern in _BENCHMARKS.items():
        words = _split_words(parts, pattern)
        if words is None:
            continue
        last = words[-1] if words else ""
        if last in _TEST_WORDS if benchmark in _ORDINARY else last not in _TRAINING_WORDS:
            return benchmark
    return None


def _split_words(parts: list[str], pattern: str) -> list[str] | None:
    """Names of splits that belong to a benchmark's name in a path, in order; None if the name isn't in it.

    They are in the component with the benchmark's name, below it, or are the full name of the folder above:
    ``boolq/validation/0.arrow``, ``boolq_train.jsonl``, ``test/boolq.jsonl``.
    """
    first = next((index for index, part in enumerate(parts) if _mention(part, pattern) is not None), None)
    if first is None:
        return None
    splits = _TRAINING_WORDS | _EVALUATION_WORDS
    above = [part for part in parts[max(first - 1, 0) : first] if part in splits]
    below = [word for part in parts[first:] for word in _words(part) if word in splits]
    return above + below


def _mention(name: str, pattern: str) -> re.Match[str] | None:
    return re.search(rf"(?<![a-z0-9])(?:{pattern})(?![a-z])", name)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", name.lower())
