"""The model card: the README.md that lies beside the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from darwinlm.report import wording
from darwinlm.report.looking_back import WORDS, looking_back_rows
from darwinlm.report.table import COLUMNS, comparison_rows

PAPER = "https://arxiv.org/abs/2502.07780"

_CITATION = """\
@article{tang2025darwinlm,
  title   = {DarwinLM: Evolutionary Structured Pruning of Large Language Models},
  author  = {Tang, Shengkun and Sieberling, Oliver and Kurtic, Eldar and Shen, Zhiqiang and Alistarh, Dan},
  journal = {arXiv preprint arXiv:2502.07780},
  year    = {2025}
}"""


def model_card(summary: Mapping[str, Any]) -> str:
    """Write the card of the model that is saved: Markdown with YAML front matter.

    Files on disk are named without their folders, since cards are published.

    Args:
        summary: of a run.
    """
    name = _code(wording.short_source(summary["model"]))
    sections = [
        f"---\n{_front_matter(summary)}---",
        f"# {name}, made smaller by pruning",
        f"{wording.headline(summary)}",
        _what_it_is(summary, name),
        "## Sizes and losses",
        _table(summary),
        f"Perplexity and KL (from the dense model's predictions to this one's) were measured on "
        f"{_plain(wording.measured_on(summary, short=True))}, which took no part in pruning, search or refit. "
        f"Speeds were measured on {_plain(wording.machine_words(summary))}, one sequence at a time.",
        "## Loading it",
        _loading(summary),
        "## Method",
        _method(summary),
        f"```bibtex\n{_CITATION}\n```",
        "## Limits",
        _limits(summary),
    ]
    return "\n\n".join(sections) + "\n"


def _front_matter(summary: Mapping[str, Any]) -> str:
    fields: dict[str, Any] = {}
    if source := wording.hub_id(summary["model"]):
        fields["base_model"] = source
    fields["library_name"] = "transformers"
    fields["pipeline_tag"] = "text-generation"
    fields["tags"] = ["darwinlm", "pruning", "structured-pruning"]
    if summary["export"]["custom_code"]:
        fields["tags"].append("custom_code")
    dataset = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)([:@].*)?", summary["text"].get("source") or "")
    if dataset is not None:
        fields["datasets"] = [dataset.group(1)]
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def _what_it_is(summary: Mapping[str, Any], name: str) -> str:
    allocation = summary.get("allocation") or []
    gone = dict(zip(("attention", "MLP"), wording.gone(allocation), strict=True))
    shape = "Its blocks differ in size" if summary["export"]["custom_code"] else "All of its blocks have the same size"
    removed = [f"{number} {kind}" for kind, number in gone.items() if number]
    if removed:
        total = sum(gone.values())
        shape += f"; {' and '.join(removed)} sub-layer{'' if total == 1 else 's'} of {len(allocation)} blocks " + (
            "is gone" if total == 1 else "are gone"
        )
    return (
        f"This is {name} with query heads, key and value heads and MLP channels taken out and the remaining weights "
        f"adjusted. The tensors are physically smaller: nothing is masked. {shape}. Weights are stored as "
        f"{summary['export']['dtype']}."
    )


def _table(summary: Mapping[str, Any]) -> str:
    lines = [_row(COLUMNS), _row(["---", *["---:"] * (len(COLUMNS) - 1)])]
    for row in comparison_rows(summary):
        cells = [f"**{cell}**" for cell in row.cells] if row.final else row.cells
        lines.append(_row(cells))
    return "\n".join(lines) + "\n\nIn bold: this model. MB are 10⁶ bytes of weights." + _looking_back(summary)


def _looking_back(summary: Mapping[str, Any]) -> str:
    found = looking_back_rows(summary)
    if found is None:
        return ""
    headings, rows = found
    lines = [_row(headings), _row(["---", *["---:"] * (len(headings) - 1)]), *map(_row, rows)]
    return "\n\n" + "\n".join(lines) + f"\n\n{WORDS}"


def _row(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"


def _loading(summary: Mapping[str, Any]) -> str:
    if summary["export"]["custom_code"]:
        need = (
            "Its blocks differ in size, which needs the modelling file that lies beside the weights and "
            "transformers 5.16 or newer; `trust_remote_code=True` lets transformers run that file. `folder` is where "
            "this card lies, or the model's id on the hub."
        )
    else:
        need = (
            "It is a plain transformers model: no custom code. `folder` is where this card lies, or its id on the hub."
        )
    return f"{need}\n\n```python\n{wording.loading_code(summary)}\n```"


def _method(summary: Mapping[str, Any]) -> str:
    steps = [
        "Every attention and MLP sub-layer was pruned to every size with second-order information from calibration "
        "text (optimal brain surgeon, structured)"
    ]
    search = summary.get("search")
    if search is None:
        steps.append("the size of each sub-layer was given, not searched")
    else:
        steps.append(
            f"an evolutionary search over {search['evaluations']:,} evaluations chose the size of each sub-layer, from "
            f"KL {wording.divergence(search['start_kl'])} to {wording.divergence(search['kl'])} nats per token on the "
            "search's own text"
        )
    refit, recovery = summary.get("refit"), summary.get("recovery")
    if refit is not None and refit["kept"] == "refit":
        steps.append("the output projections were refitted by ridge regression toward the dense model")
    if recovery is not None:
        steps.append(f"it was trained on {recovery['tokens']:,} tokens")
    trained = "" if recovery is not None else ", without its continued training"
    return (
        "; ".join(steps)
        + f". The method is that of DarwinLM ([arXiv 2502.07780]({PAPER})){trained}; made with darwinlm "
        f"{summary['version']}."
    )


def _limits(summary: Mapping[str, Any]) -> str:
    return "\n".join(
        [
            f"- The figures hold for {_plain(wording.measured_on(summary, short=True))} and for no other text: expect "
            "larger losses on other domains and languages, and on tasks.",
            "- It wasn't recovered by training after pruning. What pruning took away, facts above all, is gone "
            "until it is trained again.",
            "- It inherits the base model's licence, biases and faults; safety tuning may have been weakened.",
        ]
    )


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
