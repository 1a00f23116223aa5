"""Bits per byte of the right answer, and its log-probability among the choices, from the harness's samples."""

import math

import pytest

from darwinlm.evaluation.choices import right_answers


def sample(log_ps, answers, target):
    return {
        "arguments": [("Which?", answer) for answer in answers],
        "filtered_resps": [(log_p, False) for log_p in log_ps],
        "target": target,
    }


def test_figures_are_those_by_hand():
    first = sample([math.log(0.2), math.log(0.1)], [" Käse", " tea"], 0)
    second = sample([math.log(0.3), math.log(0.1), math.log(0.1)], [" a", " b", " cd"], 2)
    found = right_answers([first, second])
    bits = [-math.log2(0.2) / 6, -math.log2(0.1) / 3]  # an umlaut is two bytes
    log_ps = [math.log(2 / 3), math.log(1 / 5)]
    assert found["bits"] == pytest.approx(sum(bits) / 2)
    assert found["log_p"] == pytest.approx(sum(log_ps) / 2)
    assert found["bits_stderr"] == pytest.approx(abs(bits[0] - bits[1]) / 2)
    assert found["log_p_stderr"] == pytest.approx(abs(log_ps[0] - log_ps[1]) / 2)


@pytest.mark.parametrize(("target", "right"), [(1, 1), ("1", 1), ("no", 1), ("yes ", 0)])
def test_the_right_answer_is_named_by_number_or_by_text(target, right):
    found = right_answers([sample([-1.0, -2.0], [" yes", " no"], target)])
    assert found["bits"] == pytest.approx((1 + right) / math.log(2) / (4 - right))
    assert found["bits_stderr"] is None


def test_improbable_answers_do_not_vanish():
    found = right_answers([sample([-2000.0, -2001.0], [" a", " b"], 0)])
    assert found["log_p"] == pytest.approx(-math.log(1 + math.exp(-1)))


@pytest.mark.parametrize(
    "odd",
    [
        sample([-1.0, -2.0], [" a", " b"], 2),
        sample([-1.0, -2.0], [" a", " b"], "c"),
        sample([-1.0, -2.0], [" a", " b"], [0, 1]),
        sample([-1.0, -2.0], [" a", " a"], "a"),
        sample([-1.0], [" a"], 0),
        sample([-1.0, -2.0], ["", " b"], 0),
        {"arguments": [("How many?", {"until": ["."]})], "filtered_resps": ["seven"], "target": "7"},
    ],
)
def test_items_without_choices_and_one_right_answer_are_left_out(odd):
    assert right_answers([odd]) == {}
    good = sample([-1.0, -2.0], [" a", " b"], 0)
    assert right_answers([odd, good]) == right_answers([good])
