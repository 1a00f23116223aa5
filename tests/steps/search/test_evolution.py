"""The evolutionary loop with losses by a function of candidate and window, in place of a model."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from darwinlm.model.units.cost import CostModel
from darwinlm.model.units.space import Allocation, SearchSpace
from darwinlm.runtime.errors import NumericsError
from darwinlm.steps.budget.problem import Budget, Problem
from darwinlm.steps.search import evolution
from darwinlm.steps.search.evolution import evolve
from darwinlm.steps.search.fitness import Clock, Fitness, Window
from darwinlm.steps.search.guided_children import GuidedChildren
from darwinlm.steps.search.prediction import Curvature, first_order
from darwinlm.steps.search.search_method import Offspring, Propose
from darwinlm.steps.search.search_settings import SearchSettings
from darwinlm.steps.search.state import Generation, SearchState

WINDOWS, WHOLE = [(0, 2), (2, 4)], (0, 4)
START = (4,) * 6
PROBLEM = Problem(SearchSpace(()), CostModel("block parameters", [[10 * at for at in range(9)]] * 6), Budget(240, 240))
FLAT = Curvature([[0.0] * 9] * 6, [None] * 6)
ROUNDS = [{"tokens": 64, "survivors": 2}, {"tokens": 128, "survivors": 1}]
Loss = Callable[[Allocation, Window], float]


class Told(Fitness):
    """A fitness of four sequences whose losses are told by a function, with a record of what was asked."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.asked: list[tuple[Window, list[Allocation]]] = []
        self.n_sequences, self.sequence_length = 4, 32
        self.evaluations, self.clock = 0, Clock()

    def kl_on(self, allocations: Sequence[Allocation], window: Window) -> list[float]:
        self.asked.append((window, list(allocations)))
        return [self.loss(candidate, window) for candidate in allocations]

    def kl(self, allocation: Allocation, n_tokens: int) -> float:
        return self.loss(allocation, WHOLE)

    def kls(self, allocations: Sequence[Allocation], n_tokens: int) -> list[float]:
        return [self.kl(candidate, n_tokens) for candidate in allocations]

    def losses(self, allocation: Allocation) -> list[float]:
        return []

    def remember(self, allocation: Allocation, losses: Sequence[float]) -> None:
        """It knows them anyway."""


def slopes_on(parent: Allocation, window: Window) -> list[list[float]]:
    """Later modules matter more; the second window doubles what the first one says."""
    return [[-(1 + window[0] / 2) * (i + 1) * level / 80 for level in range(9)] for i in range(6)]


def run(
    folder: Path,
    told: Told,
    generations: int,
    gradient: Any = slopes_on,
    offspring: int = 4,
    curvature: Any = FLAT,
    training: int = 0,
    method: str = "gradient",
    propose: Propose | None = None,
    **more: Any,
) -> SearchState:
    rounds = [each | {"training_tokens": training} for each in ROUNDS]
    settings = SearchSettings.model_validate(
        {"method": method, "generations": generations, "offspring": offspring, "rounds": rounds}
    )
    proposals = GuidedChildren(PROBLEM, settings, curvature, gradient, told.windows(settings.rounds[0].tokens))
    more = {"clock": Clock(), "propose": propose or proposals.propose, **more}
    return evolve(told, PROBLEM, settings, lambda: START, folder / "state.json", **more)


def better(allocation: Allocation, window: Window) -> float:
    return 2.0 + first_order(slopes_on(START, WINDOWS[0]), START, allocation)


def worse(allocation: Allocation, window: Window) -> float:
    return 1.0 + (allocation != START)


def test_a_resumed_search_goes_on_with_its_time_and_the_losses_of_its_parent(tmp_path):
    history = [Generation(0, 1.0, improved=False, moved=0, evaluations=1, seconds=50.0)]
    state = SearchState(START, 1.0, [[0.25, 0.75]], seconds=50.0, seen=[START], history=history)
    state.save(tmp_path / "state.json")
    told, remembered = Told(worse), []
    told.remember = lambda *known: remembered.append(known)
    assert run(tmp_path, told, 1).seconds >= 50
    assert remembered == [(START, [0.25, 0.75])]


def test_no_generation_is_begun_that_takes_longer_than_the_time_left(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("darwinlm.steps.search.fitness.working_time", lambda: now[0])

    def slow(parent, window):
        now[0] += 10
        return slopes_on(parent, window)

    state = run(tmp_path, Told(worse), 9, slow, clock=Clock(25.0, begun=0.0))
    assert (state.done, state.ended) == (2, evolution.OUT_OF_TIME)


@pytest.mark.parametrize(
    ("gains", "ends"),
    [
        ([0.0, 0.0], True),
        ([0.8, 0.8], False),
        ([0.8, 0.21], True),  # a gain of 0.505 with an error of 0.295: 1.71 times as much
        ([0.8, 0.22], False),  # a gain of 0.51 with an error of 0.29: 1.76 times as much
        ([0.8], False),
    ],
)
def test_a_search_is_settled_when_its_gain_is_below_the_error(gains, ends):
    early, late = [1.0] * len(gains), [1.0 - gain for gain in gains]
    assert not evolution.settled([early] * evolution.LOOK_BACK)
    assert evolution.settled([early, *[early] * (evolution.LOOK_BACK - 1), late]) is ends


def test_a_search_without_gain_ends_and_says_why_but_the_papers_goes_on(tmp_path):
    class Flat(Told):
        def losses(self, allocation):
            return [0.25, 0.75]

    def propose(state: SearchState) -> Offspring:
        return Offspring([(*START[:-1], 9 + len(state.seen))])

    state = run(tmp_path, Flat(worse), 14)
    assert (state.done, state.ended) == (evolution.LOOK_BACK, evolution.SETTLED)
    assert len(state.losses) == evolution.LOOK_BACK + 1
    assert run(tmp_path / "paper", Flat(worse), 14, method="paper", propose=propose).done == 14


def test_a_search_is_settled_on_the_text_of_the_last_round_whatever_more_some_have_read(tmp_path):
    class Longer(Told):
        def losses(self, allocation):
            return [1.0] * (4 if allocation == START else 6)

    state = run(tmp_path, Longer(better), evolution.LOOK_BACK + 1)
    assert state.ended == evolution.SETTLED
    assert {len(each) for each in state.losses} == {4}


def test_a_child_of_equal_loss_is_not_taken(tmp_path):
    assert run(tmp_path, Told(lambda allocation, window: 1.0), 1).parent == START


class Trainer:
    """Stands in for training: losses by a function, and a record of what was trained."""

    def __init__(self, loss: Callable[[Allocation], float]) -> None:
        self.loss = loss
        self.judged: list[tuple[list[Allocation], int, int]] = []

    def keep(self, candidates: Sequence[Allocation]) -> None:
        """Whose states are kept."""

    def judge(self, pool: Sequence[Allocation], training: int, tokens: int) -> list[float]:
        self.judged.append((list(pool), training, tokens))
        return [self.loss(each) for each in pool]


def test_the_parent_is_trained_and_judged_with_its_children(tmp_path):
    trainer = Trainer(lambda each: better(each, WHOLE))
    state = run(tmp_path, Told(better), 1, training=32, trainer=trainer)
    (everyone, *first), (rest, *second) = trainer.judged
    assert (first, second) == ([32, 64], [32, 128])
    assert everyone[0] == rest[0] == START
    assert rest[1:] == sorted(everyone[1:], key=trainer.loss)[:2]
    assert state.parent == rest[1]
    assert state.history[-1].evaluations == len(everyone) + len(rest)
    with pytest.raises(NumericsError, match=r"finite after training: try compute\.dtype=float32"):
        run(tmp_path / "other", Told(better), 1, training=32, trainer=Trainer(lambda each: math.inf))


def test_children_are_measured_on_another_window_than_their_gradient(tmp_path):
    asked, told = [], Told(better)
    state = run(tmp_path, told, 3, lambda parent, window: asked.append(window) or slopes_on(parent, window))
    assert asked == [WINDOWS[0], WINDOWS[1], WINDOWS[0]]
    assert [window for window, _ in told.asked] == [WINDOWS[1], WHOLE, WINDOWS[0], WHOLE, WINDOWS[1], WHOLE]
    assert state.kl < state.history[0].kl


def test_what_is_worse_on_a_window_goes_no_further_but_in_the_first_generation(tmp_path):
    told = Told(worse)
    run(tmp_path, told, 2)
    (_, first), (_, all_of_them), (_, later), (_, rest) = told.asked
    assert len(first) == len(all_of_them) > 1 < len(later)
    assert rest == [START]


def test_what_looks_better_on_a_window_alone_is_not_taken(tmp_path):
    told = Told(lambda allocation, window: worse(allocation, window) * (1 if window == WHOLE else -1))
    assert run(tmp_path, told, 3).parent == START


def test_candidates_that_overflow_drop_out_and_a_parent_that_does_is_named(tmp_path):
    spoilt = set()

    def loss(allocation, window):
        if allocation != START and not spoilt:
            spoilt.add(allocation)
        return math.inf if allocation in spoilt else better(allocation, window)

    state = run(tmp_path, Told(loss), 2)
    assert state.parent not in spoilt
    assert spoilt.isdisjoint(child for _, child, *_ in state.observations)
    told = Told(lambda allocation, window: math.inf)
    told.kl = lambda allocation, n_tokens: 1.0
    with pytest.raises(NumericsError, match=r"the best allocation's values aren't finite: try compute\.dtype=float32"):
        run(tmp_path / "other", told, 1)
