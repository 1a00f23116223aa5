"""Processes that share the requests of a benchmark."""

from __future__ import annotations

import sys

import pytest
from tests.tiny.benchmarks import QUIET
from tests.unit.test_parallel import in_two_processes

pytestmark = QUIET

CONTEXTS = ([1, 2], [1, 2], [3], [4, 5], [4, 5], [6])
REQUESTS = [(("", ""), context, [number]) for number, context in enumerate(CONTEXTS)]


def _answered(rank):
    from darwinlm.evaluation.shared_context import QuietLM

    class Model(QuietLM):
        def __init__(self) -> None:
            self.answered: list[int] = []

        def _answers(self, requests, override_bs):
            self.answered += [continuation[0] for _, _, continuation in requests]
            if rank == 1 and self.fails:
                raise IndexError("too long")
            return [(float(continuation[0]), False) for _, _, continuation in requests]

    model, found = Model(), {}
    model.fails = False
    found["answers"] = model._loglikelihood_tokens(REQUESTS)
    found["share"] = list(model.answered)
    model.fails = True
    with pytest.raises((IndexError, RuntimeError)) as failure:
        model._loglikelihood_tokens(REQUESTS)
    found["failure"] = f"{failure.type.__name__}: {failure.value}"
    model.fails = False
    found["again"] = model._loglikelihood_tokens(REQUESTS)
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="gloo meets in a file on POSIX systems only")
def test_each_context_is_answered_by_one_process_and_a_failure_is_everybodys(tmp_path):
    found = in_two_processes(_answered, tmp_path)
    assert [found[rank]["share"] for rank in (0, 1)] == [[0, 1, 3, 4], [2, 5]]
    for one in found.values():
        assert one["answers"] == one["again"] == [(float(number), False) for number in range(6)]
    assert found[1]["failure"] == "IndexError: too long"
    assert found[0]["failure"] == "RuntimeError: IndexError: too long"
