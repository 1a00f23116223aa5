"""Shapes and element types in the signatures of formulas are checked in every test."""

import importlib

import pytest
import torch
from jaxtyping import TypeCheckError
from tests.tiny.shapes import FORMULAS

from darwinlm.model.divergence import summed_kl
from darwinlm.steps.database.order import removal_order
from darwinlm.steps.refit.ridge import ridge_solution


def test_wrong_shapes_and_types_are_refused():
    logits, log_p = torch.zeros(3, 5), torch.zeros(3, 4)
    with pytest.raises(TypeCheckError, match="log_p"):
        summed_kl(logits, log_p)
    with pytest.raises(TypeCheckError, match="units"):
        removal_order(torch.eye(4), torch.ones(2, 4), torch.arange(4.0)[:, None])
    with pytest.raises(TypeCheckError, match="W0"):
        ridge_solution(torch.eye(4), torch.ones(2, 4), torch.ones(4, 2), 0.1)


@pytest.mark.parametrize("name", FORMULAS)
def test_every_module_has_a_legend(name):
    assert "etters" in (importlib.import_module(name).__doc__ or "")
