"""Guard against text that benchmarks evaluate a model on."""

from __future__ import annotations

import re

from darwinlm.runtime.errors import DataError
from darwinlm.steps.text.sources import HubSource, parse_source, parts_of

_BENCHMARK = re.compile(
    r"(?<![a-z0-9])(?:sciq|piqa|winogrande|ai2[-_ ]?arc|arc[-_ ]?(?:easy|challenge|e|c)|hellaswag|logiqa|boolq|mmlu|"
    r"hendrycks[-_ ]?test)(?![a-z])(?!.*train)|(?<![a-z0-9])(?:wikitext(?![a-z]).*|wiki\.)test(?![a-z])"
)
"""Lower-case names of evaluation benchmarks without a word for training after them. WikiText is ordinary text, of which
only the test split is reserved."""


def check_not_evaluation_text(source: str) -> None:
    """Refuse a source that looks like the evaluation split of a known benchmark.

    Only names are checked: those of hub data sets, and the paths of all files, links as they are and followed. Raises
    DataError if the source looks like evaluation text, or doesn't exist.
    """
    for part in map(parse_source, parts_of(source)):
        if isinstance(part, HubSource):
            names = [(str(part), f"{part.name}/{part.config}/{split}") for split in part.split.split("+")]
        else:
            names = [(str(file), str(path)) for file in part.files() for path in (file.absolute(), file.resolve())]
        for shown, name in names:
            if match := _BENCHMARK.search(name.lower()):
                raise DataError(
                    f"Text source {source!r}: {shown} looks like evaluation text of a benchmark ({match[0]}), which "
                    "would inflate the scores of a model made with it. Give other text or the training split; rename a "
                    "file that only has such a name."
                )
