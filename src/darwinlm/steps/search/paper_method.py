"""The search method of the paper (DarwinLM, Algorithm 1)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from darwinlm.steps.search.search_method import SEARCH_METHODS, Offspring, Propose, SearchInputs, SearchMethod

if TYPE_CHECKING:
    from darwinlm.steps.search.state import SearchState


@SEARCH_METHODS.register("paper")
class PaperMethod(SearchMethod):
    """Children from the paper's level switch."""

    words = "with the paper's level switch"

    def begin(self, inputs: SearchInputs) -> Propose:
        """See `SearchMethod.begin`."""
        from darwinlm.steps.search.propose import paper_switch, switched_children

        problem, settings = inputs.problem, inputs.settings
        kinds = [module.kind for module in problem.space.modules]

        def propose(state: SearchState) -> Offspring:
            switch = partial(paper_switch, state.parent, problem.cost.costs, kinds, problem.budget)
            return Offspring(switched_children(state, settings.seed, settings.offspring, switch))

        return propose
