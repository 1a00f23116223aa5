"""The last choice of the search: ranks and losses of the finalists, for the page and the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table
from rich.text import Text

from darwinlm.report import wording
from darwinlm.report.summary import FinalistFigures, SearchFigures


@dataclass(frozen=True)
class LastChoice:
    """What is shown of the finalists.

    Attributes:
        words: what came of it, in a sentence or two.
        columns: headings.
        rows: the cells of each finalist, the best before training first.
        chosen: the row of the one that was taken.
    """

    words: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: int


def last_choice(search: SearchFigures | None) -> LastChoice | None:
    """Lay out the finalists of a search.

    Args:
        search: the search; None where nothing was searched.

    Returns:
        None where there were no finalists.
    """
    if search is None or search.finalists is None:
        return None
    record, candidates = search.finalists, search.finalists.candidates
    rounds = max(len(each.kl_after) for each in candidates)
    ranked = any(each.rank_proxy is not None for each in candidates)
    columns = ["rank before training", "KL before training"]
    columns += ["rank after training"] if rounds else []
    columns += [f"KL after round {number + 1}" for number in range(rounds)]
    columns += ["rank by gradient agreement", "gradient agreement"] if ranked else []
    rows = []
    for each in candidates:
        losses = [wording.divergence(loss) for loss in each.kl_after]
        cells = [str(each.rank_before), wording.divergence(each.kl_before)]
        cells += [str(each.rank_after or "–")] if rounds else []
        cells += [*losses, *["–"] * (rounds - len(losses))]
        cells += [str(each.rank_proxy), f"{each.agreement:.4f}"] if ranked else []
        rows.append(tuple(cells))
    return LastChoice(_words(candidates, record.chosen, rounds), tuple(columns), tuple(rows), record.chosen)


def _words(candidates: Sequence[FinalistFigures], chosen: int, rounds: int) -> str:
    count, before = len(candidates), candidates[chosen].rank_before
    if count == 1:
        return "There was one finalist, so there was nothing to choose."
    how = f"trained for {rounds} round{'s' * (rounds > 1)}" if rounds else "ranked by the agreement of their gradients"
    words = f"The {count} best allocations were {how}; the one taken had rank {before} before."
    if rounds:
        words += f" The first before training came out with rank {candidates[0].rank_after}."
    return words


def finalists_table(search: SearchFigures | None) -> Table | None:
    """The finalists for the terminal, with the one that was taken in bold; None where there were none."""
    choice = last_choice(search)
    if choice is None:
        return None
    table = Table(title=choice.words, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for column in choice.columns:
        table.add_column(Text(column), justify="right", min_width=max(map(len, column.split())))
    for number, cells in enumerate(choice.rows):
        table.add_row(*map(Text, cells), style="bold" if number == choice.chosen else None)
    return table
