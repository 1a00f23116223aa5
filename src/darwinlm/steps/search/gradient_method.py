"""The search method that is guided by gradients. It isn't in the paper; `guided_children` has the method itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from darwinlm.runtime.step import Cost, Work
from darwinlm.steps.search.search_method import SEARCH_METHODS, Propose, SearchInputs, SearchMethod

if TYPE_CHECKING:
    from darwinlm.steps.search.search_amounts import SearchAmounts
    from darwinlm.steps.workload import Workload

CHILDREN, CONFIRMED = 3, 1.0
"""Children that a generation solves for, all of which the first one evaluates on the whole text, and that later ones
do, measured on 2026-11-30."""


@SEARCH_METHODS.register("gradient")
class GradientMethod(SearchMethod):
    """Children that a knapsack solves for, over losses predicted from gradients around the parent."""

    words = "guided by gradients"
    equal_layers = True
    settles = True

    def begin(self, inputs: SearchInputs) -> Propose:
        """See `SearchMethod.begin`."""
        from darwinlm.steps.search.guided_children import GuidedChildren
        from darwinlm.steps.search.prediction import Curvature, removed_together
        from darwinlm.steps.search.slopes import Gradients

        if not inputs.estimated:
            inputs.say(
                "search: the database has no estimated losses (database.metric=loss has), so local errors are used"
            )
        return GuidedChildren(
            inputs.problem,
            inputs.settings,
            Curvature(inputs.losses, removed_together(inputs.problem.space, inputs.database)),
            Gradients(inputs.fitness, inputs.database).around,
            inputs.fitness.windows(inputs.settings.rounds[0].tokens),
        ).propose

    def evaluated(self, settings: SearchAmounts) -> tuple[float, ...]:
        """See `SearchMethod.evaluated`."""
        confirmed = (min(selection.survivors, CONFIRMED) for selection in settings.rounds[:-1])
        return (min(CHILDREN, settings.offspring), *confirmed)

    def cost(self, load: Workload, settings: SearchAmounts) -> Cost:
        """Slopes of the parent's loss in each generation, and all children of the first one on the whole text."""
        sizes, k = load.sizes, load.sizes.kept
        times, window = settings.generations, settings.rounds[0].tokens
        work = sizes.operations(CHILDREN * settings.fitness_needed, k, heads=1)
        work += sizes.operations(times * window, k, blocks=3, heads=3)
        for d in (float(shape.sizes.width) for shape in sizes.cut):
            work += load.slow * times * (2 * window * d * sizes.width + min(window, sizes.width) * d * d)
        return Cost(work, load.backward, parts={"slopes": self._slopes(load, times, window)})

    @staticmethod
    def _slopes(load: Workload, times: int, window: int) -> Work:
        """Slopes on a GPU: a walk forward and one back in each generation, and a solve for each module in its owner."""
        from darwinlm.steps.search.search_settings import SearchSettings
        from darwinlm.steps.workload import CUT_LAUNCHES

        sizes, r = load.sizes, float(load.sizes.width)
        shared = sizes.processes > 1 and not load.settings(SearchSettings).training_needed
        share = load.share(sizes.depth) if shared else 1.0
        slopes = load.passes(window, sizes.kept, blocks=3, heads=3, at_once=window)
        for d in (float(shape.sizes.width) for shape in sizes.cut):
            solve = Work(float32=r * d * d, moved=4 * (3 * d * d + 6 * r * d), launches=CUT_LAUNCHES)
            slopes += solve * share + load.multiplied(2 * window * d * r) + Work(sent=4 * d * r if shared else 0.0)
        return slopes * times
