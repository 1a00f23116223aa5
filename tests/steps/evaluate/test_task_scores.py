"""Scores of labelled texts, compared with scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from darwinlm.steps.evaluate.task_scores import Labelled, auc, f1, set_score

NONE = np.empty(0)


def labelled(labels, chosen):
    return Labelled(np.array(labels, dtype=np.float64), NONE, np.array(chosen, dtype=np.float64))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_f1_is_that_of_scikit_learn(count):
    draws = np.random.default_rng(0)
    for size in (2, 50):
        labels, chosen = draws.integers(count, size=(2, size))
        labels[0] = 1
        how = {"average": "binary"} if count == 2 else {"average": "macro", "labels": np.unique(labels)}
        assert f1(count)(labelled(labels, chosen)) == pytest.approx(f1_score(labels, chosen, zero_division=0, **how))


def test_one_text_with_a_label_that_no_other_has_changes_f1_little():
    """The dense model gives one text of a hundred a third label: it isn't scored by another formula for that."""
    labels = np.arange(100) % 10 == 0
    chosen = labels ^ (np.arange(100) % 15 == 0)
    dense = np.where(np.arange(100) == 7, 2, chosen)
    score = set_score("F1", f1(3), labelled(labels, chosen), labelled(labels, dense))
    assert score.value == pytest.approx(f1_score(labels, chosen, average="macro"))
    assert abs(score.difference) < 0.01
    assert score.error < 0.01


def test_f1_is_not_defined_without_a_text_of_the_label():
    score = set_score("F1", f1(2), labelled([0, 0, 0], [0, 1, 0]), labelled([0, 0, 0], [0, 0, 0]))
    assert (score.value, score.difference, score.error) == (None, None, None)


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    """With equal scores, too."""
    draws = np.random.default_rng(0)
    for size in (2, 5, 60):
        labels, scores = np.arange(size) % 2, draws.integers(6, size=size).astype(np.float64)
        found = auc(Labelled(labels.astype(np.float64), scores, NONE))
        assert found == pytest.approx(roc_auc_score(labels, scores))
    assert np.isnan(auc(Labelled(np.ones(3), np.arange(3.0), NONE)))
