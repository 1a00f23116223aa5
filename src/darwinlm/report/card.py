"""The model card: the README.md that lies beside the weights."""

from __future__ import annotations

import re
from typing import Any

import yaml

from darwinlm import tables
from darwinlm.report import wording
from darwinlm.report.looking_back import WORDS, looking_back_rows
from darwinlm.report.summary import Summary
from darwinlm.report.table import COLUMNS, comparison_rows

PAPER = "https://arxiv.org/abs/2502.07780"

_CITATION = """\
@article{tang2025darwinlm,
  title   = {DarwinLM: Evolutionary Structured Pruning of Large Language Models},
  author  = {Tang, Shengkun and Sieberling, Oliver and Kurtic, Eldar and Shen, Zhiqiang and Alistarh, Dan},
  journal = {arXiv preprint arXiv:2502.07780},
  year    = {2025}
}"""


def model_card(summary: Summary) -> str:
    """Write the card of the model that is saved: Markdown with YAML front matter.

    Files on disk are named without their folders, since cards are published.
    """
    name = _code(wording.short_source(summary.model))
    looking_back, rows = looking_back_rows(summary), comparison_rows(summary)
    figures = [*rows[:-1], [f"**{cell}**" for cell in rows[-1]]]
    # Of a model that was pruned elsewhere, the recovery alone is known not to have seen the evaluation text.
    unseen = "No step of its recovery" if summary.search is None else "No step that made this model"
    sections = [
        f"---\n{_front_matter(summary)}---",
        f"# {_plain(wording.title(summary))}",
        wording.headline(summary),
        _what_it_is(summary, name),
        "## Sizes and losses",
        tables.markdown(COLUMNS, figures, ["In bold: this model. MB are 10⁶ bytes of weights."]),
        *(() if looking_back is None else (tables.markdown(*looking_back, [WORDS]),)),
        f"Perplexity and KL (from the dense model's predictions to this one's) were measured on "
        f"{_plain(wording.measured_on(summary))}. {unseen} has seen this text. "
        f"Speeds were measured on {_plain(wording.machine_words(summary))}, one sequence at a time.",
        *(() if summary.vocabulary is None else (wording.vocabulary_words(summary.vocabulary),)),
        "## Loading it",
        _loading(summary),
        "## Method",
        _method(summary),
        f"```bibtex\n{_CITATION}\n```",
        "## Limits",
        f"- The figures hold for {_plain(wording.measured_on(summary))} and for no other text. Expect larger losses on "
        f"other domains and languages, and on tasks.\n- {wording.what_training_left(summary)}\n"
        "- It inherits the base model's licence, biases and faults. Safety tuning may have been weakened.",
    ]
    return "\n\n".join(section.rstrip("\n") for section in sections) + "\n"


def _front_matter(summary: Summary) -> str:
    origin = summary.origin
    fields: dict[str, Any] = {
        "language": list(origin.languages),
        "license": origin.license or ("other" if origin.license_name else None),
        "license_name": origin.license_name,
        "license_link": origin.license_link,
        "base_model": origin.base_model,
    }
    fields = {name: value for name, value in fields.items() if value}
    fields["library_name"] = "transformers"
    fields["pipeline_tag"] = "image-text-to-text" if summary.export.whole else "text-generation"
    fields["tags"] = ["darwinlm", "pruning", "structured-pruning"]
    if summary.export.custom_code:
        fields["tags"].append("custom_code")
    dataset = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)([:@].*)?", summary.text.source or "")
    if dataset is not None:
        fields["datasets"] = [dataset.group(1)]
    fields["model-index"] = [_measured(summary)]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _measured(summary: Summary) -> dict[str, Any]:
    """Our figures as a `model-index` entry."""
    metrics = [
        {"type": "perplexity", "name": "Perplexity", "value": summary.saved.perplexity},
        {"type": "kl_divergence", "name": "KL from the dense model (nats/token)", "value": summary.saved.kl},
    ]
    text = wording.short_source(summary.text.source)
    return {
        "name": wording.title(summary),
        "results": [
            {
                "task": {"type": "text-generation"},
                "dataset": {"name": wording.measured_on(summary), "type": text.removeprefix("hf:")},
                "metrics": [metric for metric in metrics if metric["value"] is not None],
            }
        ],
    }


def _what_it_is(summary: Summary, name: str) -> str:
    removed = wording.removed(summary.allocation)
    what = f"with {removed} removed" if removed else "with nothing removed"
    gone = dict(zip(("attention", "MLP"), wording.gone(summary.allocation), strict=True))
    shape = "Its blocks differ in size" if summary.export.custom_code else "All of its blocks have the same size"
    lost = [f"{number} {kind}" for kind, number in gone.items() if number]
    if lost:
        total = sum(gone.values())
        shape += f"; {' and '.join(lost)} sub-layer{'' if total == 1 else 's'} of {len(summary.allocation)} blocks " + (
            "is gone" if total == 1 else "are gone"
        )
    return (
        f"This is {name} {what}. The tensors are physically smaller: nothing is masked. {shape}."
        f"{wording.kept_whole(summary)} Weights are stored as {summary.export.dtype}."
    )


def _loading(summary: Summary) -> str:
    if summary.export.custom_code:
        need = (
            "Its blocks differ in size. That needs the modelling file that lies beside the weights and transformers "
            "5.16 or newer; `trust_remote_code=True` lets transformers run that file. `folder` is where this card "
            "lies, or the model's id on the hub."
        )
    else:
        need = (
            "It is a plain transformers model: no custom code. `folder` is where this card lies, or its id on the hub."
        )
    return f"{need}\n\n```python\n{wording.loading_code(summary)}\n```"


def _method(summary: Summary) -> str:
    search, refit, recovery = summary.search, summary.refit, summary.recovery
    steps = []
    if summary.from_pruned:
        steps.append("It was pruned in several rounds. What follows describes the last one.")
    if search is None:
        steps.append("How its sizes were chosen isn't recorded.")
    else:
        steps.append(
            "Attention and MLP sub-layers were pruned to many sizes with second-order information from calibration "
            f"text (structured optimal brain surgeon). The size of each was chosen by {wording.searched_by(search)}: "
            f"{search.evaluations:,} evaluations, from KL {wording.divergence(search.start_kl)} to "
            f"{wording.divergence(search.kl)} nats per token on the search's own text."
        )
    if refit is not None and refit.kept == "refit":
        steps.append("Output projections were then refitted by ridge regression toward the dense model.")
    elif refit is not None:
        steps.append("A refit by ridge regression was no better on validation text and was dropped.")
    if recovery is not None:
        source = _plain(wording.short_source(summary.text.training_source))
        steps.append(f"The smaller model was then trained on {recovery.tokens:,} tokens of {source}.")
    trained = "" if recovery is not None else ", without its continued training"
    steps.append(
        f"The method is that of DarwinLM ([arXiv 2502.07780]({PAPER})){trained}. Made with darwinlm {summary.version}."
    )
    return " ".join(steps)


def _plain(text: str) -> str:
    """Keep Markdown and HTML from reading anything into a name."""
    return re.sub(r"([\\`*_\[\]<>&|#])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Quote a name as code, whatever backticks it holds."""
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"
