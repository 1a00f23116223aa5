"""Settings of the search."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import model_validator

from darwinlm.steps.search.gradient_method import GradientMethod
from darwinlm.steps.search.paper_method import PaperMethod  # noqa: F401 - its import registers it
from darwinlm.steps.search.search_amounts import SearchAmounts
from darwinlm.steps.search.search_method import SEARCH_METHODS, SearchMethod


class SearchSettings(SearchAmounts):
    """Evolution over allocations: one level for every module."""

    method: Annotated[SearchMethod, SEARCH_METHODS] = GradientMethod()
    """`gradient`: children predicted from gradients of the loss and the database's estimates; any modules may trade,
    and steps shrink. `paper`: DarwinLM's level switch, one level up and one down within a kind."""

    @model_validator(mode="after")
    def _survivors_shrink(self) -> SearchSettings:
        if not self.rounds:
            raise ValueError("rounds: at least one is needed")
        counts = [self.offspring, *(selection.survivors for selection in self.rounds)]
        if any(later >= earlier for earlier, later in pairwise(counts)):
            raise ValueError(f"rounds: survivors must decrease, starting below the offspring, but they are {counts}")
        if self.layers == "equal" and not self.method.equal_layers:
            name = SEARCH_METHODS.name_of(type(self.method))
            raise ValueError(f"method={name} trades levels between layers, which layers=equal doesn't allow")
        if counts[-1] != 1:
            raise ValueError(f"rounds: the last one must leave one survivor, but it leaves {counts[-1]}")
        return self
