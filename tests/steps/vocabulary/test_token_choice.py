"""Tokens are chosen by their uses in the text, and as much by those that the model expects in further text."""

import torch
from tests.tiny.vocabulary import wordy_checkpoint

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.steps.vocabulary.token_choice import ModelTokens


def test_expected_uses_count_as_much_as_the_text(tmp_path):
    dense = Checkpoint.open(wordy_checkpoint(tmp_path / "dense"))
    tokens = ModelTokens.of(dense)
    text = "the river, and a bridge over the river"
    ids = tokens.tokenizer(text, add_special_tokens=False)["input_ids"]
    unused, longest = next(iter(set(tokens.tree.tokens) - set(ids) - set(tokens.always))), len(tokens.tree.tokens)
    predicted = torch.zeros(dense.config.vocab_size, dtype=torch.float64)
    predicted[unused] = 3.0
    uses = tokens.used_by([text], predicted).uses
    assert uses[unused] == sum(uses.values()) - uses[unused] == len(ids)
    size = len(tokens.always | set(tokens.tree.path(unused) or ())) + 1
    assert unused in tokens.used_by([text], predicted).rows(min(size, longest))
