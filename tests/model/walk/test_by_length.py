"""Batches of sequences of different lengths: every sequence once, none cut, and little padding."""

import pytest
import torch

from darwinlm.model.walk.by_length import batches_by_length, lengths_of


@pytest.mark.parametrize("batch_tokens", [1, 20, 64, 1000])
def test_each_sequence_is_in_one_batch_as_wide_as_its_longest(batch_tokens):
    lengths = torch.tensor([7, 30, 1, 12, 30, 2, 5])
    batches = [(rows.tolist(), width) for rows, width in batches_by_length(lengths, batch_tokens)]
    assert sorted(row for rows, _ in batches for row in rows) == list(range(len(lengths)))
    for rows, width in batches:
        assert width == max(int(lengths[row]) for row in rows)
        assert len(rows) == 1 or len(rows) * width <= batch_tokens
    widths = [width for _, width in batches]
    assert widths == sorted(widths, reverse=True)


def test_the_length_of_a_row_is_up_to_its_last_true_column():
    real = torch.tensor([[True, True, False, False], [False, True, False, True], [False] * 4])
    assert lengths_of(real).tolist() == [2, 4, 1]
