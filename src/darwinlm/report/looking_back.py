"""How far the models still read their context: the same rows for the page, the terminal and the model card."""

from __future__ import annotations

from rich.table import Table

from darwinlm import tables
from darwinlm.figures import ModelKey
from darwinlm.report import wording
from darwinlm.report.summary import Summary

COPIED = (
    "Copied: the model is given words or text twice; the share of the repeated tokens that it predicts (loss in nats "
    "per token)."
)
WORDS = f"{COPIED} Seen: KL at next tokens that occurred earlier in the sequence; new: at all others."
"""What the columns mean."""

Rows = tuple[tuple[str, ...], list[tuple[str, ...]]]


def looking_back_rows(summary: Summary, *, losses: bool = True, split: bool = True) -> Rows | None:
    """Headings, and a row of cells for each model; None where it wasn't measured of all of them.

    With `losses`, cells of copying hold the loss too. With `split`, there are columns of the KL by whether the next
    token stood in the block before.
    """
    headings: tuple[str, ...] = ()
    rows = []
    for key, model in summary.measured():
        figures = model.looking_back
        if figures is None:
            return None
        if _refit_dropped(key, summary):
            continue
        both = ("KL, seen", "KL, new") if split else ()
        headings = ("model", *both, *(f"copied, {score.name}" for score in figures.copying))
        copied = [
            f"{100 * score.accuracy:.0f} %" + (f" ({score.loss:.2f})" if losses else "") for score in figures.copying
        ]
        halves = [wording.divergence(kl) for kl in (figures.kl_seen, figures.kl_new)] if split else []
        rows.append((wording.model_name(key, summary), *halves, *copied))
    return headings, rows


def where_rows(summary: Summary) -> tuple[tuple[str, ...], list[tuple[str, tuple[float | None, ...]]]] | None:
    """Where the loss of each smaller model sits: KL by the next token, and by how far into the text it stands.

    Returns:
        Headings, and for each model its name and figures; None where the saved model's weren't measured.
    """
    final = summary.saved.looking_back
    if final is None:
        return None
    ends = [end for end, _ in final.kl_by_position]
    spans = [f"tokens {begin + 1} to {end}" for begin, end in zip([0, *ends], ends, strict=False)]
    rows = []
    for key, model in summary.measured():
        figures = model.looking_back
        if key != "dense" and figures is not None and not _refit_dropped(key, summary):
            by_position = (kl for _, kl in figures.kl_by_position)
            rows.append((wording.model_name(key, summary), (figures.kl_seen, figures.kl_new, *by_position)))
    return ("model", "next token seen", "next token new", *spans), rows


def where_words(summary: Summary) -> str:
    """In a sentence, whether the saved model loses more on tokens that the text before holds; empty if unknown."""
    figures = summary.saved.looking_back
    if figures is None or not figures.kl_seen or not figures.kl_new:
        return ""
    share = f"{100 * figures.seen:.0f} % of the predicted tokens occurred earlier in the sequence."
    if figures.kl_new >= figures.kl_seen:
        return f"{share} The KL of the other tokens is {figures.kl_new / figures.kl_seen:.1f} times as high."
    return f"{share} Their KL is {figures.kl_seen / figures.kl_new:.1f} times that of the others."


def looking_back_remarks(summary: Summary) -> tuple[str, ...]:
    """What wasn't measured, and why, as sentences."""
    figures = summary.dense.looking_back
    return () if figures is None else tuple(f"{each[:1].upper()}{each[1:]}." for each in figures.remarks)


def looking_back_table(summary: Summary) -> Table | None:
    """The rows for the terminal, the model that is saved in bold; None where there are none."""
    found = looking_back_rows(summary, losses=False)
    if found is None:
        return None
    headings, rows = found
    return tables.terminal(headings, rows, bold=len(rows) - 1)


def _refit_dropped(key: ModelKey, summary: Summary) -> bool:
    """Whether a model is the stitched one under another name."""
    return key == "refit" and key != summary.saved_key and summary.refit is not None and summary.refit.kept != "refit"
