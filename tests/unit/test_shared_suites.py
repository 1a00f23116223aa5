"""Processes that share the requests of a benchmark, one after the other in this process."""

import pytest
from tests.tiny.benchmarks import QUIET

from darwinlm.runtime import parallel

pytestmark = QUIET

CONTEXTS = ([1, 2], [1, 2], [3], [4, 5], [4, 5], [6])
REQUESTS = [(("", ""), context, [number]) for number, context in enumerate(CONTEXTS)]


@pytest.mark.parametrize("failing", [None, 1])
def test_each_request_is_answered_by_one_process_and_a_failure_is_everybodys(monkeypatch, failing):
    from darwinlm.evaluation.shared_context import SharedLM

    class Model(SharedLM):
        def __init__(self, process):
            self.process = process

        def _answers(self, requests, override_bs):
            if self.process == failing:
                raise IndexError("too long")
            return [(float(continuation[0]), False) for _, _, continuation in requests]

    def ended(rank, gather):
        monkeypatch.setattr(parallel, "portion", lambda items: items[3 * rank : 3 * rank + 3])
        monkeypatch.setattr(parallel, "gather", gather)
        try:
            return Model(rank)._loglikelihood_tokens(REQUESTS)
        except RuntimeError as error:
            return f"{type(error).__name__}: {error}"

    parts = []
    for rank in (0, 1):
        ended(rank, lambda part: parts.append(part) or parts)
    assert parts[0] == ([(0.0, False), (1.0, False), (2.0, False)], "")
    whole = [(float(number), False) for number in range(6)]
    expected = [whole, whole] if failing is None else ["RuntimeError: IndexError: too long"] * 2
    assert [ended(rank, lambda _: parts) for rank in (0, 1)] == expected
