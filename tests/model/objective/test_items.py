"""Several texts in one sequence: each is read as if it were alone."""

import pytest
import torch
from tests.tiny.checkpoint import tiny_checkpoint
from tests.tiny.readers import tiny_scorer
from transformers import AutoModelForSequenceClassification

from darwinlm.model.families.checkpoint import Checkpoint
from darwinlm.model.objective.chosen import objective_of
from darwinlm.model.objective.item_objective import ItemObjective
from darwinlm.model.walk import items
from darwinlm.model.walk.decoder import Decoder
from darwinlm.model.walk.streamed import StreamedDecoder

TEXTS = [[5, 17, 101, 33], [9], [8, 99, 4, 61, 7], [250, 3]]


def sequences() -> torch.Tensor:
    rows = [items.sequence_of(TEXTS[:2], incomplete=[7, 7, 7]), items.sequence_of(TEXTS[2:], incomplete=[9])]
    return torch.tensor(rows)


def test_places_and_positions():
    tokens = sequences()
    places = items.places(tokens)
    assert places.sequence.tolist() == [0, 0, 1, 1]
    assert (places.first.tolist(), places.last.tolist()) == ([0, 4, 0, 5], [3, 4, 4, 6])
    assert items.counts(tokens).tolist() == [2, 2]
    assert items.positions(tokens)[0].tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert items.ids(tokens)[1].tolist() == [*TEXTS[2], *TEXTS[3], 9]
    plain = torch.arange(6).view(2, 3)
    assert not items.is_marked(plain)
    assert items.ids(plain) is plain


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"])
@torch.no_grad()
def test_scores_are_those_of_texts_read_alone(family, tmp_path):
    checkpoint = Checkpoint.open(tiny_scorer(tmp_path, family, labels=3))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    alone = torch.cat([model(torch.tensor([text])).logits for text in TEXTS])
    objective, tokens = objective_of(checkpoint), sequences()
    assert isinstance(objective, ItemObjective)
    whole = Decoder(checkpoint.load(torch.float32), checkpoint.family)
    streamed = StreamedDecoder(checkpoint, tokens, dtype=torch.float32, device=torch.device("cpu"))
    for decoder in (whole, streamed):
        (stream,) = decoder.through([tokens])
        with decoder.with_head():
            found = objective.outputs(decoder.head, stream, tokens)
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_padding_at_the_end_of_a_text_is_skipped_as_transformers_does(tmp_path):
    checkpoint = Checkpoint.open(tiny_scorer(tmp_path, pad_token_id=4))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.tensor([items.sequence_of([[5, 17, 4, 4], [4, 8, 4]])])
    alone = torch.cat([model(torch.tensor([text])).logits for text in ([5, 17, 4, 4], [4, 8, 4])])
    decoder = Decoder(checkpoint.load(torch.float32), checkpoint.family)
    (stream,) = decoder.through([tokens])
    torch.testing.assert_close(objective_of(checkpoint).outputs(decoder.head, stream, tokens), alone)


def test_a_language_model_keeps_the_next_token(tmp_path):
    objective = objective_of(Checkpoint.open(tiny_checkpoint(tmp_path)))
    assert (objective.name, objective.reads) == ("next_token", False)
    assert objective.counts(torch.zeros(3, 7, dtype=torch.int64)).tolist() == [7, 7, 7]
