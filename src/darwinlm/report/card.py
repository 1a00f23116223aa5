"""The model card: the README.md in the folder of the weights."""

from __future__ import annotations

import re
from dataclasses import replace

import yaml

from darwinlm.report.comparison import comparison, passages
from darwinlm.report.model_index import hub_dataset, model_index
from darwinlm.report.render import render
from darwinlm.report.summary import Summary
from darwinlm.runtime import tables
from darwinlm.runtime.limits import visible
from darwinlm.steps.recover.recovery_figures import RecoveryFigures
from darwinlm.steps.search.search_figures import SearchFigures


def model_card(summary: Summary) -> str:
    """Write the card of the model that is saved: Markdown with YAML front matter.

    Files on disk are named without their folders, since cards are published.
    """
    compared = comparison(summary)
    recovery, search = summary.of(RecoveryFigures), summary.of(SearchFigures)
    return render(
        "card.md.j2",
        summary=summary,
        front_matter=_front_matter(summary),
        compared=tables.markdown(replace(compared, remarks=["In bold: this model.", *compared.remarks])),
        passages=passages(summary),
        narrowed=search is None or search.first is None,
        trained=recovery is not None and recovery.kept == "trained",
        markdown=tables.markdown,
        plain=_plain,
        code=_code,
    )


def _front_matter(summary: Summary) -> str:
    origin = summary.origin
    licence = list(origin.license) if isinstance(origin.license, tuple) else origin.license
    fields: dict[str, object] = {
        "language": list(origin.languages),
        "license": licence or ("other" if origin.license_name else None),
        "license_name": origin.license_name,
        "license_link": origin.license_link,
        "base_model": origin.base_model,
        "base_model_relation": "finetune" if origin.base_model else None,  # the hub has no word for pruning
    }
    fields = {name: value for name, value in fields.items() if value}
    fields["library_name"] = "sentence-transformers" if summary.export.modules else "transformers"
    reads = {"scores": "text-ranking", "states": "feature-extraction"}.get(summary.export.gives)
    fields["pipeline_tag"] = reads or ("image-text-to-text" if summary.export.whole else "text-generation")
    tags = ["darwinlm", "pruning", "structured-pruning"]
    if summary.export.custom_code:
        tags.append("custom_code")
    fields["tags"] = tags
    if (dataset := hub_dataset(summary.text.source)) is not None:
        fields["datasets"] = [dataset]
    if index := model_index(summary, str(fields["pipeline_tag"])):
        fields["model-index"] = index
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _plain(text: str) -> str:
    """Keep Markdown and HTML from reading anything into a name."""
    return re.sub(r"([\\`*_\[\]<>&|#])", r"\\\1", visible(" ".join(text.split())))


def _code(text: str) -> str:
    """Quote a name as code."""
    return f"`{visible(' '.join(text.split())).replace('`', chr(39))}`"
